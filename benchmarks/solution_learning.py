"""What a policy learns from worked solutions, by what it sees and by how many of them it learns.

    python benchmarks/solution_learning.py RUN --json FILE

RUN is a folder of ``cospec train --features hidden --num-solutions N`` (with its
``solutions.safetensors``). An eighth of the decisions are held out, and every policy is judged on
these: how many tokens it would put right, net of those it would spoil. The rule beside them keeps
the draft's token where the average of both models' probabilities prefers it (``ensemble``).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.features import SCALAR_NAMES
from cospec.results import Json, Provenance, check_writable, document, write_json
from cospec.rl.config import TrainConfig
from cospec.rl.updates import imitate

if TYPE_CHECKING:
    from torch import Tensor

_NUM_SCALARS = len(SCALAR_NAMES)
_STRETCH = 100


@dataclass(frozen=True)
class Variant:
    """What a policy sees, what it is, and from how much of the rest it learns."""

    sees: tuple[str, ...] = ("target", "draft")
    """Whose hidden states it sees beside the scalars."""
    share: float = 1.0
    policy: PolicyConfig | None = None


VARIANTS = {
    "scalars": Variant(()),
    "and the draft's states": Variant(("draft",)),
    "and the target's states": Variant(("target",)),
    "and both": Variant(),
    "both, a half": Variant(share=1 / 2),
    "both, a quarter": Variant(share=1 / 4),
    "both, an eighth": Variant(share=1 / 8),
    "both, a small policy": Variant(policy=PolicyConfig(dropout=0.3)),
}


def seen(variant: Variant, features: Tensor, width: int) -> Tensor:
    """The features (N, F) without the states that a variant does not see; `width` is the target's.

    The target's states after the drafted token are not known and are left out.
    """
    parts = [features[:, :_NUM_SCALARS]]
    if "target" in variant.sees:
        parts.append(features[:, _NUM_SCALARS : _NUM_SCALARS + width])
    if "draft" in variant.sees:
        parts.append(features[:, _NUM_SCALARS + 2 * width :])
    return torch.cat(parts, dim=1)


def judge(keep: Tensor, delta: Tensor) -> Json:
    """Held-out decisions put right and spoiled by the draft's tokens that are kept, (N,) bool."""
    won, lost = int((keep & (delta > 0)).sum()), int((keep & (delta < 0)).sum())
    return {"won": won, "lost": lost, "accuracy": float((keep == (delta > 0)).float().mean())}


def averaged(features: Tensor, weight: float) -> Tensor:
    """Whether the average of both models' probabilities prefers the draft's token, (N,) bool."""
    p_d, p_t, q_d, q_t = features[:, :4].exp().unbind(dim=1)
    return weight * q_d + (1 - weight) * p_d > weight * q_t + (1 - weight) * p_t


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    check_writable(args.json, args.overwrite)
    torch.set_num_threads(1)
    found = load_file(args.run / "solutions.safetensors")
    # Decisions of one problem are neighbours: whole stretches are held out, or drawn for a share.
    stretches = torch.split(torch.arange(len(found["delta"])), _STRETCH)
    drawn = torch.randperm(len(stretches), generator=torch.Generator().manual_seed(0)).tolist()
    order = torch.cat([stretches[i] for i in drawn])
    features, delta = found["features"][order], found["delta"][order]
    settings = json.loads((args.run / "run.json").read_text())
    stored = settings["train"]
    policy = PolicyConfig(**stored["policy"])
    config = TrainConfig(
        num_solutions=stored["num_solutions"],
        num_solution_epochs=stored["num_solution_epochs"],
        learning_rate=stored["learning_rate"],
        weight_decay=stored["weight_decay"],
        policy=policy,
    )
    num_held = len(delta) // 8
    width = _width(features)
    rows: list[Json] = [
        {"name": f"ensemble, {weight:g} of the draft", "num_learnt": 0}
        | judge(averaged(features[:num_held], weight), delta[:num_held])
        for weight in (0.4, 0.5)
    ]
    for name, variant in VARIANTS.items():
        x = seen(variant, features, width)
        stop = num_held + round(variant.share * (len(x) - num_held))
        one = Policy(x.shape[1], variant.policy or policy, num_hidden=x.shape[1] - _NUM_SCALARS)
        one.normalise_by(x[num_held:stop], float("inf"))
        loss = imitate(one, x[num_held:stop], delta[num_held:stop], config)
        with torch.no_grad():
            keep = one(x[:num_held]) > 0
        rows.append(
            {"name": name, "num_learnt": stop - num_held, "loss": loss}
            | judge(keep, delta[:num_held])
        )
        print(rows[-1], flush=True)
    where = Provenance().to_dict("cpu", "torch.float32")
    num_right = int((delta[:num_held] > 0).sum())
    about = {"run": settings, "num_held_out": num_held, "num_draft_right": num_right}
    write_json(args.json, document("solution_learning", about, where, rows=rows))


def _width(features: Tensor) -> int:
    """Of the target's states: what lies before and behind the zeros in the place of the later."""
    is_zero = (features[:, _NUM_SCALARS:] == 0).all(dim=0)
    return int(is_zero.nonzero()[0, 0])


if __name__ == "__main__":
    main()
