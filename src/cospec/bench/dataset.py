"""The mismatches of an audit as a data set that others can train on: one safetensors file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from cospec.results import Json


def write_dataset(
    path: Path, records: Sequence[Json], feature_names: Sequence[str], about: Mapping[str, str]
) -> None:
    """Write the mismatches of all records, whole or not at all.

    Tensors: ``features`` (N, F) float32; ``problem``, ``position``, ``draft_id`` and ``target_id``
    (N,) int64; ``draft_correct`` and ``target_correct`` (N,) bool. The file's metadata hold the
    names of the features, the ids of the problems (which ``problem`` indexes) and `about`.
    """
    places = [(i, m) for i, record in enumerate(records) for m in record["mismatches"]]
    tensors = {"problem": torch.tensor([i for i, _ in places], dtype=torch.int64)}
    for name in ("position", "draft_id", "target_id"):
        tensors[name] = torch.tensor([m[name] for _, m in places], dtype=torch.int64)
    for name in ("draft_correct", "target_correct"):
        tensors[name] = torch.tensor([m[name] for _, m in places], dtype=torch.bool)
    rows = [m["features"] for _, m in places]
    tensors["features"] = torch.tensor(rows).view(len(rows), len(feature_names))
    metadata = {
        **about,
        "feature_names": json.dumps(list(feature_names)),
        "problem_ids": json.dumps([record["id"] for record in records]),
    }
    part = path.with_name(path.name + ".part")
    save_file(tensors, part, metadata)
    part.replace(path)
