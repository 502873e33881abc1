"""Fit arbiters to decisions and test them on databases never seen.

Usage: python experiments/text_to_sql/learn.py PIECES... [--pair TARGET DRAFT --out ARBITER]

PIECES are folders of `collect.py` or `read_gold.py`; a decision that several have counts once. Each
database in turn is left out, or with --known-databases each tenth of the questions. A growing share
of the others' decisions trains the policies of `cospec train --method policy_iteration`, on a few
scalars, on all and on hidden states, and the thresholds of some rules. The table is about the
decisions left out. It has, of those that matter, the share that go to the right token and the area
under the curve, and the answers gained in 100 decisions of any kind if each of them counted alone.
With --test there is a table of other decisions too. With --out a policy learns from all and is
saved.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from cospec import ModelPair
from cospec.arbiters.guard import PromptGuard
from cospec.arbiters.learned import LearnedArbiter
from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.evaluation.problems import prompt_ids
from cospec.features import SCALAR_NAMES, HiddenFeatures, ScalarFeatures, make_features
from cospec.rl.config import RidgeConfig
from cospec.rl.methods import Labels
from cospec.rl.ridge import fit, penalties
from cospec.tasks import load_task
from cospec.tasks.sql.dice import stable_hash

FEW = RidgeConfig(
    scalars=(
        "block_mean_log_q",
        "lookahead_mean_log_p",
        "lookahead_share",
        "log_p_draft",
        "entropy_p",
        "log_position",
    ),
    scalar_penalty=10.0,
)
"""Scalars that tell something each, for blocks as long as an answer."""
KINDS = {
    "few": FEW,
    "scalars": RidgeConfig(),
    "hidden": RidgeConfig(),
    "hidden_few": RidgeConfig(scalars=FEW.scalars),
}
"""Policies by name, and what is fitted."""
HIDDEN = HiddenFeatures(torch.zeros(1, dtype=torch.int64), (1536, 896), torch.empty(0, 1536))
"""Of this pair, to know which number is what."""
LINEAR = PolicyConfig(kind="linear", hidden_projection=1)
BLOCKS = {"num_speculative_tokens": 64, "end_blocks_at_stop": True}
"""Blocks of `collect.py`, which an arbiter records, so that it is decoded with the same."""


def main() -> None:
    """Print the table; fit and save if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pieces", nargs="+", type=Path)
    parser.add_argument(
        "--other-draft",
        nargs="+",
        type=Path,
        default=[],
        help="branches of other drafts, a folder each",
    )
    parser.add_argument("--test", nargs="+", type=Path, help="folders: a table of these as well")
    parser.add_argument(
        "--known-databases", action="store_true", help="leave out tenths of the questions instead"
    )
    parser.add_argument("--pair", nargs=2, type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--prompts", type=Path, help="DATA: the arbiter stands back from others")
    parser.add_argument("--kind", choices=KINDS, default="hidden")
    parser.add_argument("--json", type=Path, help="the table as a file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    x, worth, names, questions = read(options.pieces)
    for folder in options.other_draft:
        more = read([folder])
        x, worth = torch.cat([x, more[0]]), torch.cat([worth, more[1]])
        names, questions = names + more[2], questions + more[3]
    if options.known_databases:
        left_out = torch.tensor([stable_hash(question) % 10 for question in questions])
    else:
        left_out = torch.tensor([sorted(set(names)).index(name) for name in names])
    matters = worth != 0
    if options.out:
        save(learned(x, worth, options.kind), set(questions), options)
    table = {
        "num_databases": len(set(names)),
        "num_decisions": len(worth),
        "num_that_matter": int(matters.sum()),
        "draft_right": round(float((worth[matters] > 0).float().mean()), 4),
        "shares": {share: crossed(x, worth, left_out, share) for share in (0.25, 0.5, 1.0)},
    }
    if options.test:
        test_x, test_worth, *_ = read(options.test)
        scores = scored(x[matters], worth[matters], test_x)
        table["test"] = {"num_decisions": len(test_worth)} | measured(scores, test_worth)
    print(json.dumps(table, indent=1))
    if options.json:
        options.json.write_text(json.dumps(table, indent=1) + "\n")


def read(folders) -> tuple[torch.Tensor, torch.Tensor, list[str], list[str]]:
    """Features, worth, database and question of each decision; one that was read is left out."""
    known, x, worth, names, questions = set(), [], [], [], []
    for path in (path for folder in folders for path in sorted(folder.glob("*.safetensors"))):
        piece = load_file(path)
        texts = path.with_suffix(".jsonl")
        places = [(path, i) for i in range(len(piece["worth"]))]
        if texts.exists():
            rows = map(json.loads, texts.open())
            places = [(row["id"], one["position"]) for row in rows for one in row["branches"]]
        new = torch.tensor([place not in known for place in places])
        known.update(places)
        x.append(piece["features"][new].float())
        worth.append(piece["worth"][new])
        names += [path.name.partition(".")[0]] * int(new.sum())
        questions += [str(place[0]) for place, is_new in zip(places, new, strict=True) if is_new]
    return torch.cat(x), torch.cat(worth), names, questions


def crossed(x, worth, left_out, share):
    """Leave each part out, a database or some questions; learn from a share of the others."""
    scores = {name: torch.zeros(len(x)) for name in (*RULES, *KINDS)}
    for number in range(int(left_out.max()) + 1):
        test = left_out == number
        train = (~test & (worth != 0)).nonzero()[:, 0]
        some = torch.randperm(len(train), generator=torch.Generator().manual_seed(number))
        train = train[some[: int(share * len(train))]]
        for name, found in scored(x[train], worth[train], x[test]).items():
            scores[name][test] = found
    return measured(scores, worth)


def scored(x, worth, test):
    """Learn from decisions that matter, and return a score of each test decision by arm."""
    found = {name: rule(test) - best_threshold(rule(x), worth) for name, rule in RULES.items()}
    for kind in KINDS:
        policy = learned(x, worth, kind)
        with torch.no_grad():
            found[kind] = policy(test[:, : len(policy.mean)])
    return found


def measured(scores, worth):
    """What each arm's scores are worth."""
    matters = worth != 0
    is_draft = worth[matters] > 0
    return {
        name: {
            "right": round(float(((score[matters] > 0) == is_draft).float().mean()), 4),
            "auc": round(area(score[matters], is_draft), 4),
            "gain": round(100 * float(worth[score > 0].sum()) / len(worth), 2),
        }
        for name, score in scores.items()
    }


def column(x, name):
    """Return a scalar feature."""
    return x[:, SCALAR_NAMES.index(name)]


RULES = {
    "cascade_diff": lambda x: column(x, "log_q_draft").exp() - column(x, "log_p_target").exp(),
    "gap": lambda x: -column(x, "gap_p"),
    "agreement": lambda x: column(x, "lookahead_share"),
    "chow_average": lambda x: column(x, "block_mean_log_q"),
}
"""Scores of rules before their threshold: how much surer the draft is, how little the target
prefers its own token, how much of what follows it agrees with, how sure the draft is of it all."""


def best_threshold(score, worth) -> float:
    """Return the threshold above which overrides gain the most answers."""
    values, place = score.unique(return_inverse=True)  # ascending; what ties is overridden together
    gains = torch.zeros(len(values)).index_add_(0, place, worth).flip(0).cumsum(0)
    edges = torch.cat([values[-1:] + 1, values.flip(0), values[:1] - 1])
    best = int(torch.cat([torch.zeros(1), gains]).argmax())
    return float((edges[best] + edges[best + 1]) / 2)


def area(score, is_draft) -> float:
    """Return the chance that a draft's decision scores higher than a target's; half for a tie."""
    ours, theirs = score[is_draft][:, None], score[~is_draft]
    return float(((ours > theirs).float() + (ours == theirs).float() / 2).mean())


def features_of(kind) -> ScalarFeatures:
    """Return the features that a kind of policy is fitted to."""
    return HIDDEN if kind.startswith("hidden") else ScalarFeatures(HIDDEN.kinds)


def learned(x, worth, kind) -> Policy:
    """Fit a linear policy, of scalars or of hidden states, to the decisions that matter."""
    features = features_of(kind)
    policy = Policy(len(features.names), LINEAR, 0, features.num_hidden)
    labels = Labels(worth > 0, (worth != 0).float())
    fit(policy, x[:, : len(features.names)], labels, penalties(features, KINDS[kind]))
    return policy


def save(policy, questions, options, **decoding) -> None:
    """Save a policy as an arbiter of the pair, and the prompts and blocks that it knows."""
    pair = ModelPair.from_pretrained(*options.pair, dtype="float32", pack_weights=False)
    about = {
        "pair": {"fingerprint": pair.fingerprint},
        "name": options.out.name,
        "training": {"train": BLOCKS | decoding},
    }
    spec = "hidden" if options.kind.startswith("hidden") else "scalar"
    arbiter = LearnedArbiter(policy, make_features(spec, pair), about=about)
    if options.prompts:
        task = load_task("spider", data_dir=options.prompts)
        prompts = prompt_ids(pair, task, [e for e in task.examples("train") if e.id in questions])
        arbiter = replace(arbiter, prompt_guard=PromptGuard.of(prompts, prompts))
    arbiter.save(options.out)


if __name__ == "__main__":
    main()
