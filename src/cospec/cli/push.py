"""``cospec push``: a trained arbiter to the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Push:
    """Upload a trained arbiter to the Hugging Face hub, for --arbiter USER/NAME anywhere."""

    arbiter: Path
    """Folder of the arbiter; its config, weights and card are sent, but no state of its training.
    The config tells what it was trained on, names of folders included."""
    repo_id: str
    """Repository to push to: user/name."""
    private: bool = False
    """Make a repository that only you see."""

    def run(self) -> None:
        """Push and tell where it is."""
        from cospec.arbiters.hub import push

        url = push(self.arbiter, self.repo_id, is_private=self.private)
        print(f"pushed {self.arbiter} to {url}: use it with --arbiter {self.repo_id}")
