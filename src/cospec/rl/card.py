"""Model card of a trained arbiter, written from its record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cospec.rl.methods import METHODS, MethodName
from cospec.settings import flat

if TYPE_CHECKING:
    from cospec.results import Json


_HOW = {
    "rl": "Trained by reinforcement learning on final answers with CoSpec.",
    "one_step": "Trained on single rulings off the target's own path with CoSpec.",
    "policy_iteration": "Trained by policy iteration on final answers with CoSpec.",
}
"""Origin of an arbiter, by method."""


def write_card(about: Json) -> str:
    """Return the README.md of a checkpoint.

    Args:
        about: Name, pair, training settings, provenance, best round and history of the run.
    """
    pair, training = about["pair"], about["training"]
    models = pair.get("pair") or f"{pair.get('target')} with {pair.get('draft')}"
    train = flat(training["train"])
    method = train["method"]
    how = _HOW.get(method, f"A control, trained by the method {method} of CoSpec.")
    best = next(row for row in about["history"] if row["round"] == about["best"]["round"])
    rounds = [row for row in about["history"] if row["round"]]
    if not best["round"]:
        data = "the models' own answers" if _reads_samples(train) else "worked solutions"
        data = data if train.get("num_solutions") else "the branches of an audit"
        rest = "; no round of reinforcement did better" if rounds else ""
        how = f"Trained on {data} with CoSpec{rest}."
    rows = [
        f"| {row['round']} | {row['accuracy']:.3f} | {row['accuracy_target']:.3f} | "
        f"{row['override_rate']:.3f} | {row['mean_acceptance_length']:.2f} | "
        + (f"{row['tune_accuracy']:.3f} |" if "tune_accuracy" in row else "|")
        for row in rounds
    ]
    return "\n".join(
        [
            f"# {about['name']}: an arbiter for {models}",
            "",
            "Rules whose token stands where the draft and the target of a speculative decoder",
            f"disagree. {how}",
            "",
            f"- Pair: {models}, fingerprint {pair['fingerprint']}.",
            f"- Task: {training['task']['task']}, train split; watched on "
            f"{train['num_tune']} problems of the tune split.",
            f"- Price of time (lambda): {train['cost_weight']}; seed {train['seed']}; "
            f"{len(rounds)} rounds; commit {about['provenance']['git']}.",
            *_solutions(train, about["history"][0]),
            f"- Best round: {best['round']}. On the tune problems, which chose the round: "
            f"{best['tune_accuracy']:.3f} right against {best['tune_accuracy_target']:.3f} of the "
            f"target alone ({best['tune_wins']} won, {best['tune_losses']} lost), with "
            f"{best['tune_relative_cost']:.3f} of the target forwards of lossless decoding. The "
            "guards, which were set afterwards, were off.",
            *_guard(about["best"].get("max_mismatch_rate")),
            *_prompts(about.get("min_prompt_likeness")),
            "",
            f"Training, by round ({_player(method)} on train problems; tune: threshold 0.5):",
            "",
            "| round | right | target alone | override rate | acceptance length | tune right |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            "With this arbiter the output is not the target's, by design: the lossless arbiter",
            "switches it off. On another pair or task it can do harm: measure it with",
            "`cospec eval`.",
            "",
        ]
    )


def _player(method: MethodName) -> str:
    if METHODS[method].is_ridge:
        return "policy by its threshold"
    return "the target's path" if METHODS[method].on_target_path else "stochastic policy"


def _solutions(train: Json, first: Json) -> list[str]:
    """Return a line on training before the first round, if there was any."""
    if not train.get("num_solutions"):
        return []
    texts = "the models' own answers to" if _reads_samples(train) else "the worked solutions of"
    return [
        f"- Before its first round, from {first['num_solution_decisions']} decisions that "
        f"{texts} {train['num_solutions']} other problems settle: "
        f"{first['tune_accuracy']:.3f} of the tune problems right with that alone."
    ]


def _reads_samples(train: Json) -> bool:
    """Return whether the models' answers take the place of worked solutions."""
    return bool(train.get("solutions_from") == "samples")


def _prompts(least: float | None) -> list[str]:
    """Return a line on the guard of prompts, if it has one."""
    if not least:
        return []
    return [
        f"- Prompts: it stands back where their likeness to those of its training is below "
        f"{least:.3f}; these are decoded losslessly."
    ]


def _guard(rate: float | None) -> list[str]:
    """Return a line on the guard, also if there is none."""
    if rate is None:
        return ["- Guard: none, since the models agreed on all tune problems."]
    return [f"- Guard: it keeps nothing where a text has more than {rate:.3f} mismatches a token."]
