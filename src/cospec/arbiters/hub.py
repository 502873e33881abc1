"""Trained arbiters on the Hugging Face hub and in its cache; only this file asks for them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from cospec.arbiters.record import CARD, FILES, Record
from cospec.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from cospec.results import Json

_HUB_ID = re.compile(r"(?!.*\.gguf$)(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
_METADATA = re.compile(r"\A---\n.*?\n---\n\s*", re.DOTALL)


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
            f"{repo_id} is neither a folder nor a repository of the hub that can be reached: "
            f"{error} -- check the name (USER/NAME or USER/NAME@REVISION) and the connection; "
            "without one, pass a folder, or what `cospec arbiters` lists as cached."
        ) from None


def in_cache() -> dict[str, Path]:
    """Return the folders of repositories in the hub's cache, by ``user/name@commit``."""
    from huggingface_hub import constants, scan_cache_dir  # noqa: PLC0415  # heavy
    from huggingface_hub.errors import CacheNotFound  # noqa: PLC0415

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return {}
    return {
        f"{repository.repo_id}@{revision.commit_hash}": revision.snapshot_path
        for repository in sorted(repositories, key=lambda r: r.repo_id)
        for revision in repository.revisions
    }


def push(folder: Path | str, repo_id: str, *, is_private: bool = False) -> str:
    """Upload a trained arbiter, and nothing else that is in its folder.

    Args:
        folder: Folder that `LearnedArbiter.save` wrote.
        repo_id: ``user/name``; made if it does not exist.
        is_private: Whether to make it a private one.

    Returns:
        Its address.

    Raises:
        CheckpointError: The folder holds no trained arbiter, or the hub did not take it.
        ConfigError: There is no token to log in with, or a private repository was asked for and
            there is a public one of that name.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token  # noqa: PLC0415  # heavy

    from cospec.arbiters.learned import LearnedArbiter  # noqa: PLC0415  # heavy

    folder = Path(os.path.expanduser(folder))
    card = with_metadata(folder, LearnedArbiter.load(folder).about)
    if get_token() is None:
        raise ConfigError(
            "there is no token of the Hugging Face hub; run `hf auth login`, or set HF_TOKEN to "
            "one that may write."
        )
    files = {name: folder / name for name in FILES if (folder / name).is_file()}
    contents: dict[str, Path | bytes] = files | {CARD: card.encode()}
    hub = HfApi()
    try:
        url = hub.create_repo(repo_id, private=is_private, exist_ok=True)  # which may be public
        if is_private and hub.repo_info(repo_id).private is not True:
            raise ConfigError(
                f"{repo_id} is a public repository, and a private one was asked for; make it "
                "private in its settings, pass another --repo-id, or leave --private out."
            )
        hub.create_commit(  # which has the hub check the card before anything is sent
            repo_id,
            [CommitOperationAdd(name, content) for name, content in contents.items()],
            commit_message="Upload a CoSpec arbiter",
        )
    except ConfigError:
        raise
    except Exception as error:  # each version of the library has another HTTP client's errors
        raise CheckpointError(
            f"{folder} could not be pushed to {repo_id}: {error}; check the connection, the name "
            "(user/name) and that the token may write there."
        ) from error
    return str(url)


def with_metadata(folder: Path, about: Json) -> str:
    """Return the card of an arbiter with the metadata that the hub reads.

    Args:
        folder: Folder of the arbiter; its card may be missing.
        about: Config of the arbiter.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData  # noqa: PLC0415  # heavy

    name, pair = str(about.get("name", folder.name)), about.get("pair", {})
    models = [pair.get(key) for key in ("target", "draft")]
    results = []
    if (found := Record.of(about)).tune_accuracy is not None:
        results.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=found.task,
                dataset_name=f"{found.task}, tune split",
                metric_type="accuracy",
                metric_value=found.tune_accuracy,
            )
        )
    data = ModelCardData(
        library_name="cospec",
        tags=["cospec-arbiter", "speculative-decoding"],
        base_model=[model for model in models if model and _is_hub_id(model)] or None,
        model_name=name,
        eval_results=results or None,
    )
    path = folder / CARD
    text = path.read_text(encoding="utf-8") if path.is_file() else f"# {name}\n"
    text = _METADATA.sub("", text)  # metadata of a card that was pushed before
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))


def _is_hub_id(model: str) -> bool:
    """Return whether this names a model of the hub: it looks like one and is no local path."""
    return _HUB_ID.fullmatch(model) is not None and not Path(model).exists()
