"""Fit arbiters of one correction to all that they can write, and compare them on other questions.

Usage: python experiments/text_to_sql/trees.py DATA TREES... [--also TREES...] [--json FILE]
           [--fit few.rounds --pair TARGET DRAFT --out ARBITER] [--arms ARBITER RULE:KNOB=NUMBER...]
           [--slim FILE.npz]

TREES are folders of `collect.py --arbiter always_draft --finish target`. They hold the draft's
answer to each question and, for each of its mismatches in turn, the answer after the target takes
over there. An arbiter with `--max-corrections 1` writes one of these, so all that it is worth is
known without more decoding. The first of them is the target's own answer.

Policies are fitted to nine tenths of the queries and tried on the last tenth, in turn. Both
wordings of a query are in one tenth. With --also they are fitted to the trees of other pairs as
well, of the same nine tenths. Three ways to fit, all to right answers alone:

* labels: logistic regression on which token leads to the better answer if the draft's tokens stand
  from there on (`learn.py`, and a first round of `cospec train --method policy_iteration`).
* rounds: the same, again and again, with the policy just fitted going on from there.
* reward: gradient ascent on the expected share of right answers, over all answers of the tree.

With --arms nothing is fitted: FILE has what each arbiter, and each model alone, writes. A rule
without a number has the one that is best on TREES itself: an upper bound for the rule.

With --slim nothing is fitted either: FILE has all that policies on scalars need of TREES, without
hidden states and texts. Such files can stand in for TREES.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from halves import skeleton
from learn import HIDDEN, KINDS, LINEAR, RULES, features_of, save
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence

from cospec.arbiters.checkpoint import read_checkpoint
from cospec.arbiters.policy import Policy
from cospec.rl.methods import Labels
from cospec.rl.ridge import fit, fit_reward, penalties
from cospec.tasks import load_task
from cospec.tasks.sql.dice import stable_hash

if TYPE_CHECKING:
    from torch import Tensor

WIDTH = len(HIDDEN.names)
NUM_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Tree:
    """All answers to a question that an arbiter of one correction can write.

    Attributes:
        question: Its id.
        database: Its database.
        query: Its gold query without literals.
        x: Features of the mismatches in the draft's answer, (M, F).
        corrected: Whether the answer is right if the target takes over there, (M,).
        kept: Whether the draft's own answer is right.
    """

    question: str
    database: str
    query: str
    x: Tensor
    corrected: Tensor
    kept: float

    def right(self, keep: Tensor) -> float:
        """Whether the answer is right if the draft's token is kept where ``keep`` (M,) says so."""
        stops = (~keep).nonzero()[:1, 0]
        return float(self.corrected[stops[0]]) if len(stops) else self.kept

    def worth(self, keep: Tensor) -> Tensor:
        """Return what is gained by the draft's token if the policy goes on as ``keep`` (M,)."""
        after = torch.empty(len(keep))
        value = self.kept
        for i in reversed(range(len(keep))):
            after[i] = value
            value = value if keep[i] else float(self.corrected[i])
        return after - self.corrected


def main() -> None:
    """Print the table of the left-out queries; fit to all and save if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("trees", type=Path, nargs="+")
    ways = [f"{kind}.{way}" for kind in KINDS for way in WAYS]
    parser.add_argument("--fit", choices=ways, help="save this one in --out")
    parser.add_argument("--pair", nargs=2, type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--arms", nargs="+", help="folders of arbiters, and rules with a number")
    parser.add_argument("--also", nargs="+", type=Path, default=[], help="fit to these as well")
    parser.add_argument("--json", type=Path, help="the table, or the arms' bits, as a file")
    parser.add_argument("--slim", type=Path, help="write the trees' bits and scalars there")
    options = parser.parse_args()
    if bool(options.fit) != bool(options.out and options.pair):
        parser.error("--fit, --pair and --out go together")
    torch.set_num_threads(1)
    trees = [tree for folder in options.trees for tree in read(folder, options.data)]
    others = [tree for folder in options.also for tree in read(folder, options.data)]
    if options.fit:
        options.kind, way = options.fit.split(".")
        options.prompts = None  # no guard
        learned = [tree for tree in [*trees, *others] if len(tree.x)]
        save(WAYS[way](learned, options.kind), set(), options, max_corrections=1)
    elif options.arms:
        play(trees, options)
    elif options.slim:
        slim(trees, options.slim)
    else:
        tabulate(trees, others, options)


def tabulate(trees, others, options) -> None:
    """Print what each way to fit is worth on left-out queries."""
    table = {
        "num_questions": len(trees),
        "num_queries": len({tree.query for tree in trees}),
        "num_mismatches": sum(len(tree.corrected) for tree in trees),
        "draft": sum(tree.kept for tree in trees),
        "target": sum(tree.right(torch.zeros(len(tree.x), dtype=torch.bool)) for tree in trees),
        "best": sum(max([tree.kept, *tree.corrected.tolist()]) for tree in trees),
        "thresholds": {name: best_stop(trees, rule) for name, rule in RULES.items()},
    }
    rights = crossed(trees, others)
    table["right"] = {name: sum(right.values()) for name, right in rights.items()}
    print(json.dumps(table, indent=1))
    if options.json:
        alone = {"target": torch.zeros, "draft": torch.ones}
        for name, keep in alone.items():
            rights[name] = {t.question: t.right(keep(len(t.x)) > 0) for t in trees}
        table["correct"] = {
            name: "".join(str(int(right[t.question])) for t in trees)
            for name, right in rights.items()
        }
        table["groups"] = [t.database for t in trees]
        options.json.write_text(json.dumps(table, indent=1) + "\n")


def play(trees, options) -> None:
    """Print the right answers of arms, and write a bit a question."""
    scores = {"lossless": lambda x: -torch.ones(len(x)), "draft_only": lambda x: torch.ones(len(x))}
    scores |= {arm: score_of(arm, trees) for arm in options.arms}
    arms = []
    for name, score in scores.items():
        keeps = [score(tree.x) > 0 for tree in trees]
        right = [tree.right(keep) for tree, keep in zip(trees, keeps, strict=True)]
        kept = sum(int(keep.int().cumprod(0).sum()) for keep in keeps)
        arms.append(
            {"name": name, "num_problems": len(trees), "num_overrides": kept}
            | {"num_tokens": 0, "num_target_forwards": 0}  # not counted
            | {"correct": "".join(str(int(one)) for one in right)}
        )
        print(f"{name}: {int(sum(right))} of {len(right)} right, {kept} overrides")
    document = {
        "ids": [tree.question for tree in trees],
        "databases": [tree.database for tree in trees],
        "arms": arms,
    }
    if options.json:
        options.json.write_text(json.dumps(document) + "\n")


def slim(trees, path) -> None:
    """Write trees so that `read` finds them again, with scalars only."""
    num_scalars = len(features_of("scalars").names)
    np.savez_compressed(
        path,
        ids=[tree.question for tree in trees],
        kept=np.array([tree.kept for tree in trees], np.int8),
        sizes=np.array([len(tree.x) for tree in trees], np.int16),
        corrected=torch.cat([tree.corrected for tree in trees]).numpy().astype(np.int8),
        scalars=torch.cat([tree.x[:, :num_scalars] for tree in trees]).half().numpy(),
    )


def score_of(arm, trees):
    """Return the score of mismatches, positive for the draft, of a folder or a rule's spec.

    A rule without a number gets the best one for these trees, chosen in hindsight.
    """
    if Path(arm).is_dir():
        policy = read_checkpoint(Path(arm)).policy
        return lambda x: logits(policy, x)
    name, _, setting = arm.partition(":")
    knob, _, number = setting.partition("=")
    if not setting:
        edge = best_stop(trees, RULES[name])
        return lambda x: RULES[name](x) - edge
    edge = float(number) if knob.startswith("min_") else -float(number)  # alpha, max_gap
    return lambda x: RULES[name](x) - edge


def read(path: Path, data: Path) -> list[Tree]:
    """Read the trees of a folder, or of a file of --slim."""
    examples = {e.id: e for e in load_task("spider", data_dir=data).examples("train")}
    found = []
    for question, x, corrected, kept in answers(path):
        example = examples[question]
        database = example.metadata["db_id"]
        query = f"{database}/{skeleton(example)}"
        found.append(Tree(question, database, query, x, corrected, kept))
    return found


def answers(folder: Path):
    """Yield of each question the id, features, and the answers' bits."""
    if folder.suffix == ".npz":
        kept = np.load(folder)
        sizes = kept["sizes"].tolist()
        x = torch.from_numpy(kept["scalars"]).float().split(sizes)
        corrected = torch.from_numpy(kept["corrected"]).float().split(sizes)
        yield from zip(
            kept["ids"].tolist(), x, corrected, kept["kept"].astype(float).tolist(), strict=True
        )
        return
    for path in sorted(folder.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.open()]
        tensors = path.with_suffix(".safetensors")
        features = torch.empty(0, WIDTH)
        if tensors.exists():
            features = load_file(tensors)["features"].float()
        for row in rows:
            branches = row["branches"]
            x, features = features[: len(branches)], features[len(branches) :]
            corrected = torch.tensor([branch["correct"] for branch in branches])
            yield row["id"], x, corrected, row["correct"]


def crossed(trees, others) -> dict[str, dict[str, float]]:
    """Whether each arm is right, by question, if it is fitted to the nine tenths without it.

    The thresholds of the rules are fitted to `trees` alone: they differ by pair.
    """
    right: dict[str, dict[str, float]] = {}
    for tenth in range(10):
        train = [tree for tree in trees if stable_hash(tree.query) % 10 != tenth]
        test = [tree for tree in trees if stable_hash(tree.query) % 10 == tenth]
        more = [tree for tree in others if stable_hash(tree.query) % 10 != tenth]
        some, every = ([t for t in one if len(t.x)] for one in (train, train + more))
        for name, score in fitted(some, every).items():
            found = right.setdefault(name, {})
            found |= {tree.question: tree.right(score(tree.x) > 0) for tree in test}
    return right


def fitted(trees, every):
    """Fit rules to trees and policies to every tree; return scores of mismatches by name."""
    found = {}
    for name, rule in RULES.items():
        edge = best_stop(trees, rule)
        found[name] = lambda x, rule=rule, edge=edge: rule(x) - edge
    width = max(tree.x.shape[1] for tree in every)
    for kind in (kind for kind in KINDS if len(features_of(kind).names) <= width):
        for way, learn in WAYS.items():
            policy = learn(every, kind)
            found[f"{kind}.{way}"] = lambda x, policy=policy: logits(policy, x)
    return found


def best_stop(trees, rule) -> float:
    """The threshold of a rule with the most right answers."""
    scores = torch.cat([rule(tree.x) for tree in trees]).unique()
    edges = torch.cat([scores[:1] - 1, (scores[1:] + scores[:-1]) / 2, scores[-1:] + 1])  # (E,)
    padded = pad_sequence([rule(tree.x) for tree in trees], True, torch.inf)  # (T, M)
    is_over = padded[:, :, None] <= edges  # (T, M, E)
    first = torch.where(is_over.any(1), is_over.int().argmax(1), padded.shape[1])  # (T, E)
    corrected = pad_sequence([tree.corrected for tree in trees], True)
    kept = torch.tensor([[float(tree.kept)] for tree in trees])
    right = torch.cat([corrected, kept], 1).gather(1, first).sum(0)
    return float(edges[right.argmax()])


def logits(policy, x):
    """Return the policy's logits, (M,)."""
    with torch.no_grad():
        return policy(x[:, : len(policy.mean)])


def by_labels(trees, kind, rounds=1) -> Policy:
    """Fit to which token is better, with the policy of the round before going on."""
    x = torch.cat([tree.x for tree in trees])
    features = features_of(kind)
    policy = Policy(len(features.names), LINEAR, 0, features.num_hidden)
    keeps = [torch.ones(len(tree.x), dtype=torch.bool) for tree in trees]
    for _ in range(rounds):
        worth = torch.cat([t.worth(keep) for t, keep in zip(trees, keeps, strict=True)])
        labels = Labels(worth > 0, (worth != 0).float())
        fit(policy, x[:, : len(features.names)], labels, penalties(features, KINDS[kind]))
        keeps = [logits(policy, tree.x) > 0 for tree in trees]
    return policy


def by_rounds(trees, kind) -> Policy:
    """Fit to which token is better, in rounds."""
    return by_labels(trees, kind, NUM_ROUNDS)


def by_reward(trees, kind) -> Policy:
    """Fit to the expected number of right answers, from the policy of the labels on."""
    policy, features = by_labels(trees, kind), features_of(kind)
    x = torch.cat([tree.x for tree in trees])[:, : len(features.names)]
    corrected = torch.cat([tree.corrected for tree in trees]).float()
    kept = torch.tensor([float(tree.kept) for tree in trees])
    sizes = [len(tree.x) for tree in trees]
    fit_reward(policy, x, sizes, corrected, kept, penalties(features, KINDS[kind]))
    return policy


WAYS = {"labels": by_labels, "rounds": by_rounds, "reward": by_reward}

if __name__ == "__main__":
    main()
