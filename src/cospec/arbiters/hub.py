"""Trained arbiters on the Hugging Face hub; the one file that asks it for them."""

from __future__ import annotations

from pathlib import Path

from cospec.errors import CheckpointError, ConfigError

FILES = ("config.json", "model.safetensors", "README.md", "trained_on.safetensors")
"""What an arbiter is; a folder of a training run holds its state and metrics as well."""


def download(repo_id: str) -> Path:
    """Return the folder of a hub repository, downloaded if it is not there yet.

    Args:
        repo_id: ``user/name`` for its newest revision, or ``user/name@revision``.

    Raises:
        CheckpointError: There is no such repository, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415  # heavy
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415

    try:
        name, _, revision = repo_id.partition("@")
        found = snapshot_download(name, revision=revision or None, allow_patterns=list(FILES))
        return Path(found)
    except (OSError, ValueError, HFValidationError, HfHubHTTPError) as error:
        raise CheckpointError(
            f"{repo_id} is neither a folder nor a repository of the hub: {error}"
        ) from None


def push(folder: Path, repo_id: str, *, is_private: bool = False) -> str:
    """Upload a trained arbiter, and nothing else that is in its folder.

    Args:
        folder: Of `LearnedArbiter.save`.
        repo_id: ``user/name``; made if it does not exist.
        is_private: Make it a private one.

    Returns:
        Its address.

    Raises:
        CheckpointError: The folder holds no trained arbiter, or the hub did not take it.
        ConfigError: There is no token to log in with.
    """
    from huggingface_hub import HfApi, get_token  # noqa: PLC0415  # heavy

    from cospec.arbiters.learned import LearnedArbiter  # noqa: PLC0415  # heavy

    LearnedArbiter.load(folder)
    if get_token() is None:
        raise ConfigError(
            "there is no token of the Hugging Face hub; run `hf auth login`, or set HF_TOKEN to "
            "one that may write."
        )
    hub = HfApi()
    try:
        url = hub.create_repo(repo_id, private=is_private, exist_ok=True)
        hub.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=list(FILES),
            commit_message="Upload a CoSpec arbiter",
        )
    except Exception as error:  # each version of the library has another HTTP client's errors
        raise CheckpointError(
            f"{folder} could not be pushed to {repo_id}: {error}; check the connection, the name "
            "(user/name) and that the token may write there."
        ) from error
    return str(url)
