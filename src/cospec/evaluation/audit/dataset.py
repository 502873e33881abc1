"""The mismatches of an audit as a data set to train on: one safetensors file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open

from cospec.config import DECIDING
from cospec.errors import ConfigError
from cospec.results import write_tensors
from cospec.tasks.trained_on import read_hashes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from cospec.config import DecodeConfig
    from cospec.results import Json


def write_dataset(
    path: Path, records: Sequence[Json], feature_names: Sequence[str], about: Mapping[str, str]
) -> None:
    """Write the mismatches of all records, whole or not at all.

    Tensors: ``features`` (N, F) float32; ``problem``, ``position``, ``draft_id`` and ``target_id``
    (N,) int64; ``draft_correct`` and ``target_correct`` (N,) bool; ``weight`` (N,) float32, the
    number of its problem's mismatches that each stands for, 1 if all were played. The file's
    metadata hold the names of the features, the ids of the problems (which ``problem`` indexes) and
    `about`.
    """
    places = [(i, m) for i, record in enumerate(records) for m in record["mismatches"]]
    tensors = {"problem": torch.tensor([i for i, _ in places], dtype=torch.int64)}
    for name in ("position", "draft_id", "target_id"):
        tensors[name] = torch.tensor([m[name] for _, m in places], dtype=torch.int64)
    for name in ("draft_correct", "target_correct"):
        tensors[name] = torch.tensor([m[name] for _, m in places], dtype=torch.bool)
    numbers = [(record.get("num_mismatches"), len(record["mismatches"])) for record in records]
    weights = [(numbers[i][0] or numbers[i][1]) / numbers[i][1] for i, _ in places]
    tensors["weight"] = torch.tensor(weights, dtype=torch.float32)
    rows = [m["features"] for _, m in places]
    tensors["features"] = torch.tensor(rows).view(len(rows), len(feature_names))
    metadata = {
        **about,
        "feature_names": json.dumps(list(feature_names)),
        "problem_ids": json.dumps([record["id"] for record in records]),
    }
    write_tensors(path, tensors, metadata)


def check_own(path: Path, ids: Sequence[str], about: Mapping[str, str]) -> None:
    """Refuse to replace a data set, unless it is of the run that writes it once more.

    Args:
        path: The file, which may be missing.
        ids: Ids of the run's problems.
        about: Origin that the run's data set records.

    Raises:
        ConfigError: There is a file of something else.
    """
    if not path.exists():
        return
    metadata = read_metadata(path, None)
    same_ids = json.loads(metadata.get("problem_ids", "[]")) == list(ids)
    if not same_ids or not about.items() <= metadata.items():
        raise ConfigError(
            f"{path} exists and is of another run than the one that is resumed; name another file "
            "for --dataset, move that one, or pass --overwrite."
        )


def read_tensors(path: Path, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and metadata of a safetensors file.

    Args:
        path: The file.
        what: Name of the expected contents, for the error.

    Raises:
        ConfigError: It is no such file.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} is not {what}: {error}.") from error


def read_metadata(path: Path, fingerprint: str | None) -> dict[str, str]:
    """Return the metadata of a data set.

    Args:
        path: The file.
        fingerprint: Fingerprint of the expected pair; None if that is not known.

    Raises:
        ConfigError: It is no data set, or was made with another pair.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} is not a data set of cospec audit: {error}.") from error
    if fingerprint is not None and metadata.get("fingerprint", fingerprint) != fingerprint:
        raise ConfigError(
            f"{path} is of another pair ({metadata.get('pair')}); audit this one with --dataset."
        )
    return metadata


def describe_decoding(config: DecodeConfig) -> dict[str, str]:
    """Return the settings that mismatches were decoded with, for the metadata of their data set.

    Args:
        config: Settings of an audit or of rollouts, with a ``temperature``.
    """
    names = (*DECIDING, "temperature")
    return {name: json.dumps(getattr(config, name), default=float) for name in names}


def notes_on_decoding(path: Path, config: DecodeConfig) -> tuple[str, ...]:
    """Return a warning if a data set was decoded with other settings than later rollouts.

    Args:
        path: The file; settings that an older one does not record are not compared.
        config: Settings of the rollouts, with a ``temperature``.

    Raises:
        ConfigError: It is no data set.
    """
    metadata, ours = read_metadata(path, None), describe_decoding(config)
    unlike = [
        f"{name} {metadata[name]} (here {value})"
        for name, value in ours.items()
        if json.loads(metadata.get(name, value)) != json.loads(value)
    ]
    if not unlike:
        return ()
    return (
        f"{path} was decoded with {' and '.join(unlike)}: its mismatches are not quite those that "
        "the rounds will meet; audit with the settings of the rollouts to have the same ones",
    )


def count_met(metadata: Mapping[str, str], folder: Path) -> tuple[int, int]:
    """Count the questions of a data set that an arbiter was trained on, and all of them.

    Args:
        metadata: Metadata of the data set; those of an older version have no questions.
        folder: Folder of the arbiter; it may have no record of what it was trained on.

    Raises:
        CheckpointError: The folder's record is damaged.
    """
    ours = json.loads(metadata.get("trained_on", "{}")).get("questions", [])
    theirs = read_hashes(folder) or {"questions": set()}
    known = {one.hex() for one in theirs["questions"]}
    return sum(one in known for one in ours), len(ours)


def read_origin(path: Path, fingerprint: str) -> dict[str, list[str]]:
    """Return the hashes of the questions that a data set was made from; none for older files.

    Args:
        path: The file.
        fingerprint: Fingerprint of the pair to train for.

    Raises:
        ConfigError: It is no data set, or was made with another pair or from test problems.
    """
    metadata = read_metadata(path, fingerprint)
    if metadata.get("split") == "test":
        raise ConfigError(
            f"{path} is of test problems, which an arbiter is measured on; audit with --split "
            "train."
        )
    found: dict[str, list[str]] = json.loads(metadata.get("trained_on", "{}"))
    return found


def read_dataset(path: Path, feature_names: Sequence[str]) -> dict[str, Tensor]:
    """Return the tensors of a data set, by the names that `write_dataset` lists.

    Older files have no weights: in them each mismatch counts once.

    Args:
        path: The file.
        feature_names: Names of the features that it must hold, in order.

    Raises:
        ConfigError: It is no data set, or holds other features.
    """
    tensors, metadata = read_tensors(path, "a data set of cospec audit")
    names = json.loads(metadata.get("feature_names", "null"))
    if names != list(feature_names):
        found = "none" if names is None else f"{len(names)} others"
        raise ConfigError(
            f"{path} must hold the {len(feature_names)} features that the policy sees, and holds "
            f"{found}; make it with cospec audit --dataset FILE --features ... of this version."
        )
    tensors.setdefault("weight", torch.ones(len(tensors["features"])))
    is_finite = tensors["features"].isfinite().all(dim=1)  # NaN would spread to the whole policy
    return {name: tensor[is_finite] for name, tensor in tensors.items()}
