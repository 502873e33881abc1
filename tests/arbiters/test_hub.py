"""Trained arbiters to the hub and back: a folder stands in for it."""

from __future__ import annotations

import shutil
import sys
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

import huggingface_hub
import pytest

from cospec import cli, load_arbiter
from cospec.arbiters.learned import LearnedArbiter
from cospec.errors import CheckpointError
from tests.arbiters.test_learned import learned

if TYPE_CHECKING:
    from pathlib import Path

SENT = ["README.md", "config.json", "model.safetensors", "trained_on.safetensors"]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished training run: the arbiter, and what its training left."""
    folder = tmp_path / "run"
    learned(threshold=0.25).save(folder, "# A card\n")
    for name in (
        "state.pt",
        "run.json",
        "metrics.jsonl",
        "wandb_id",
        "trained_on.safetensors",
    ):
        (folder / name).write_text("of the run")
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What a hub was asked; its repositories are folders of `home`."""
    asked: dict[str, Any] = {"home": tmp_path / "hub"}

    def create_repo(_: object, repo_id: str, **options: object) -> str:
        asked["create"] = {"repo_id": repo_id, **options}
        return f"https://hub.example/{repo_id}"

    def upload_folder(
        _: object, *, repo_id: str, folder_path: Path, allow_patterns: list[str], **__: object
    ) -> None:
        for path in (path for path in folder_path.rglob("*") if path.is_file()):
            name = path.relative_to(folder_path)
            if any(fnmatch(str(name), pattern) for pattern in allow_patterns):
                (asked["home"] / repo_id / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, asked["home"] / repo_id / name)

    def snapshot_download(repo_id: str, **_: object) -> str:
        return str(asked["home"] / repo_id)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_token")
    return asked


@pytest.fixture
def cospec(monkeypatch: pytest.MonkeyPatch):
    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["cospec", *map(str, arguments)])
        cli.main()

    return run


@pytest.mark.parametrize("flags", [[], ["--private"]])
def test_what_was_pushed_is_pulled_by_name(cospec, run_folder, hub, flags, capsys) -> None:
    cospec("push", "--arbiter", run_folder, "--repo-id", "someone/arbiter", *flags)
    assert "https://hub.example/someone/arbiter" in capsys.readouterr().out
    is_private = bool(flags)
    assert hub["create"] == {"repo_id": "someone/arbiter", "private": is_private, "exist_ok": True}
    there = hub["home"] / "someone" / "arbiter"
    assert sorted(str(p.relative_to(there)) for p in there.rglob("*")) == SENT
    assert load_arbiter("someone/arbiter").threshold == 0.25


def test_a_folder_without_a_card_is_pushed_without_one(cospec, run_folder, hub) -> None:
    (run_folder / "README.md").unlink()
    cospec("push", "--arbiter", run_folder, "--repo-id", "someone/arbiter")
    assert LearnedArbiter.load(hub["home"] / "someone" / "arbiter").threshold == 0.25


def test_a_run_that_is_not_finished_is_not_pushed(cospec, run_folder, hub) -> None:
    (run_folder / "config.json").unlink()
    for folder in (run_folder, run_folder / "nowhere"):
        with pytest.raises(SystemExit, match="is no trained arbiter"):
            cospec("push", "--arbiter", folder, "--repo-id", "someone/arbiter")
    assert "create" not in hub


def test_without_a_token_nothing_is_asked(cospec, run_folder, hub, monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(SystemExit, match="no token of the Hugging Face hub; run `hf auth login`"):
        cospec("push", "--arbiter", run_folder, "--repo-id", "someone/arbiter")
    assert "create" not in hub


@pytest.mark.parametrize("repo_id", ["someone/arbiter", "no such name"])
def test_a_hub_that_is_not_there_is_told_with_its_error(run_folder, repo_id, monkeypatch) -> None:
    """The true client, and a port on which nobody listens."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    from cospec.arbiters.hub import push

    with pytest.raises(CheckpointError, match=f"could not be pushed to {repo_id}.*connection"):
        push(run_folder, repo_id)


def test_a_run_keeps_the_revision_that_it_resolved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The hub may move on between the check of an arbiter and its loading for the pair."""
    from cospec.cli.options import PairOptions
    from cospec.evaluation.problems import describe_arbiter

    asked = []

    def snapshot_download(repo_id: str, *, revision: str | None, **_: object) -> str:
        asked.append((repo_id, revision))
        folder = tmp_path / "snapshots" / (revision or f"commit{len(asked)}")
        learned(threshold=0.25).save(folder)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    spec = PairOptions().find_arbiter("user/name:threshold=0.5")
    assert asked == [("user/name", None)]
    arbiter = load_arbiter(spec)
    assert len(asked) == 1 and arbiter.threshold == 0.5
    assert describe_arbiter(arbiter)["revision"] == "commit1"
    pinned = PairOptions().find_arbiter("user/name@v2")
    assert asked[1:] == [("user/name", "v2")]
    assert describe_arbiter(load_arbiter(pinned))["revision"] == "v2"
