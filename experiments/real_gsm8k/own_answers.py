r"""Whether a policy tells from its features which tokens of the models' own answers are worth more.

    python experiments/real_gsm8k/own_answers.py SOLUTIONS TRAIN_JSON OUT.json

SOLUTIONS is what ``cospec train --solutions-from samples --solutions SOLUTIONS`` wrote, TRAIN_JSON
the settings in its folder. Each of six consecutive parts of the decisions is judged by a policy
that was trained on the other five. Answers to one problem are read together, so that few problems
are in two parts. The area under the curve is of the policy's logit for "the draft's token is worth
more", each decision counted once; 0.5 is chance. A token's worth is that of the answer it is in.
A second policy starts from even odds and is trained ten times as long: with few decisions the
settings' own start, which prefers the target, hardly moves.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean

import torch
from safetensors.torch import load_file
from scipy.stats import mannwhitneyu

from cospec.arbiters.policy import Policy
from cospec.features import SCALAR_NAMES
from cospec.results import write_json
from cospec.rl.config import TrainConfig
from cospec.rl.solutions import SolutionData
from cospec.rl.updates import imitate

NUM_PARTS = 6
GAP = "gap_p"
"""What the rule `gap` looks at."""


def main(solutions: str, settings: str, out: str) -> None:
    """Train and judge, and write the numbers with the command."""
    config = TrainConfig.from_dict(json.loads(Path(settings).read_text(encoding="utf-8")))
    data = SolutionData(**load_file(solutions))
    longer = replace(
        config,
        policy=replace(config.policy, init_logit=0.0),
        warmup=replace(config.warmup, num_solution_epochs=400),
    )
    result = {
        "argv": sys.argv,
        "num_decisions": len(data.delta),
        "num_draft_worth_more": int((data.delta > 0).sum()),
        "worth_of_drafts_tokens": float(data.delta.sum()),
        "worth_in_all": float(data.delta.abs().sum()),
        "as_trained": told(data, config),
        "from_even_odds_for_400_passes": told(data, longer),
    }
    write_json(Path(out), result)
    print(json.dumps(result, indent=1))


def told(data: SolutionData, config: TrainConfig) -> dict[str, object]:
    """Return how well a policy tells decisions it did not see, and how often it keeps a draft."""
    parts = torch.arange(len(data.delta)).chunk(NUM_PARTS)
    judged = [judge(data, held_out, config) for held_out in parts]
    kept = float((trained(data, config)(data.features).detach() > 0).float().mean())
    means = {name: mean(part[name] for part in judged) for name in judged[0]}
    return {"kept_after_all_decisions": kept, "mean": means, "parts": judged}


def trained(data: SolutionData, config: TrainConfig) -> Policy:
    """Return a policy that was trained as `cospec train` trains it before the first round."""
    policy = Policy(data.features.shape[1], config.policy_shape)
    policy.normalize_by(data.features, math.inf)
    imitate(policy, data, config)
    return policy


def judge(data: SolutionData, held_out: torch.Tensor, config: TrainConfig) -> dict[str, float]:
    """Return how well decisions are told by a policy trained on the others, and by the gap."""
    is_ours = torch.ones(len(data.delta), dtype=torch.bool)
    is_ours[held_out] = False
    ours = SolutionData(data.features[is_ours], data.delta[is_ours])
    policy = trained(ours, config)
    features, delta = data.features[held_out], data.delta[held_out]
    with torch.no_grad():
        logits = policy(features)
    return {
        "area_of_policy": area(logits, delta),
        "area_of_gap": area(-features[:, SCALAR_NAMES.index(GAP)], delta),
        "kept_by_policy": float((logits > 0).float().mean()),
        "worth_by_policy": float(delta[logits > 0].sum()),
        "worth_of_all_drafts": float(delta.sum()),
    }


def area(scores: torch.Tensor, delta: torch.Tensor) -> float:
    """Return the chance that a decision for the draft has a higher score than one against it."""
    better, worse = scores[delta > 0], scores[delta < 0]
    statistic = mannwhitneyu(better.numpy(), worse.numpy()).statistic
    return float(statistic) / (len(better) * len(worse))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
