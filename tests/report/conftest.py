"""Result documents of every kind, small, with hostile texts in them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from pathlib import Path

EVIL = "</script><script>alert('x')</script><img src=x onerror=alert(1)>"
"""Text that a model may write."""
TURNED = "user\u202etxt.exe\x1b"
"""Text with controls that turn the order of a line, or steer a terminal."""


def arm(name, accuracy, speedup, **changes):
    """An entry as `cospec.evaluation.summary.summarize` makes them."""
    entry = {
        "name": name,
        "arbiter": None if name in ("target", "draft") else name,
        "num_problems": 100,
        "accuracy": accuracy,
        "accuracy_ci95": [accuracy - 0.05, accuracy + 0.05],
        "wins": 12,
        "losses": 10,
        "mcnemar_p": 0.83,
        "num_texts_unlike_target": 0,
        "tokens_per_s": 1000 * speedup,
        "speedup_vs_target": speedup,
        "speedup_vs_target_ci95": [0.9 * speedup, 1.1 * speedup],
        "speedup_vs_lossless": speedup / 2,
        "speedup_vs_lossless_ci95": [0.45 * speedup, 0.55 * speedup],
        "num_overrides": 7,
        "mean_acceptance_length": 3.5,
        "target_forwards_per_token": 0.3,
        "target_forwards_per_solved": 30.0,
    }
    return entry | changes


ARMS = [
    arm("target", 0.50, 1.0, wins=0, losses=0, mcnemar_p=1.0),
    arm("draft", 0.40, 6.0, target_forwards_per_token=0.0, target_forwards_per_solved=0.0),
    arm("lossless", 0.50, 2.0, wins=0, losses=0, mcnemar_p=1.0),
    arm("runs/ours", 0.60, 1.9, wins=20, losses=10, mcnemar_p=0.01, mean_acceptance_length=3.9),
    arm("gap:max_gap=1", 0.55, 2.5, speedup_vs_lossless_ci95=[1.1, 1.4]),
    arm("random:rate=0.5", 0.45, 2.2, wins=5, losses=20, mcnemar_p=0.004),
]
PROVENANCE = {"git": "abc", "device": "a machine", "versions": {"torch": "2"}, "seconds": 3.0}
PAIR = {"pair": None, "target": "org/Big-7B", "draft": "org/Small-1B"}


def result(command, config, **parts):
    argv = ["cospec", command, EVIL]
    head = {"schema": 1, "command": command, "argv": argv, "config": config}
    return head | {"provenance": PROVENANCE} | parts


def eval_document(arms=ARMS, rows=()):
    evaluation = {
        "task": "gsm8k", "num_problems": 100, "num_speculative_tokens": 4, "max_batch_size": 8,
    }  # fmt: skip
    config = {"pair": PAIR, "evaluation": evaluation}
    return result("eval", config, arms=list(arms), rows=list(rows), chunks=[])


def text_rows(texts):
    """Rows of one problem, by arm; an answer is right if it has a 3 in it."""
    return [
        {"id": "p/1", "arm": arm, "text": text, "correct": "3" in text}
        for arm, text in texts.items()
    ]


def bench_document():
    """Two cells; in the first an arm is a ceiling, and the arms' names are hostile."""
    kinds = ["exact", "reference", "exact", "learned", "rule", "random"]
    arms = [
        each | {"kind": kind, "k": 4, "knob": None, "repeats": {"tokens_per_s": [900.0, 1100.0]}}
        for each, kind in zip(ARMS, kinds, strict=True)
    ]
    arms[3] = arms[3] | {
        "vs_rival": {"rival": "gap:max_gap=1", "wins": 8, "losses": 3, "mcnemar_p": 0.2}
    }
    ceiling = arm("oracle path", 0.9, 3.0, kind="ceiling", k=4, knob=EVIL)
    rows = [
        {"arm": "lossless", "num_target_forwards": 10, "num_accepted_tokens_per_pos": [9, 7, 4]},
        {"arm": "lossless", "num_target_forwards": 10, "num_accepted_tokens_per_pos": [8, 5]},
    ]
    head = {"task": "gsm8k", "batch_size": 16, "chunks": []}
    cells = [
        head | {"temperature": 0.0, "arms": [*arms, ceiling], "rows": rows,
                "best_rival": "gap:max_gap=1"},
        head | {"temperature": 1.0, "arms": arms, "rows": [],
                "left_out": [{"arm": "assisted", "reason": "it is greedy"}]},
    ]  # fmt: skip
    tries = [{"k": 2, "knob": "a=1", "accuracy": 0.4}, {"k": 4, "knob": "a=2", "accuracy": 0.55}]
    tuning = [{"arm": "gap", "temperature": 0.0, "tries": tries, "chosen": 1}]
    return result("bench", {"pair": {"pair": "bundled:family"}}, cells=cells, tuning=tuning)


def share(value):
    return {"share": value, "ci95": [value - 0.1, value + 0.1], "count": 1, "of": 2}


def audit_document():
    outcomes = ("only_draft", "only_target", "both", "neither")
    summary = {
        "num_problems": 20,
        "num_branches": 40,
        "mismatches_per_problem": 2.0,
        "target_accuracy": share(0.5),
        "draft_accuracy": share(0.3),
        "outcomes": {name: share(0.25) for name in outcomes},
        "one_step_oracle": {"problems_right_or_one_override_away": share(0.6)},
    }
    return result("audit", {"pair": PAIR, "task": {"task": "gsm8k"}}, summary=summary)


def calibrate_document():
    row = {"from": 0.5, "to": 0.6, "num_mismatches": 9, "mean_score": 0.55}
    row |= {"share_draft_right": 0.5, "ci95": [0.3, 0.7]}
    scores = {"bins": [row], "expected_calibration_error": 0.05, "num_differing": 9}
    config = {"calibrate": {"arbiter": "runs/ours"}, "task": {"task": "gsm8k"}}
    return result("calibrate", config, arms=[], calibration={"reliability": scores})


def trace_document():
    """Two problems: one won by an override of a hostile token, one with a vetoed override."""
    mismatch = {
        "position": 1, "block_position": 0, "p_draft_id": 0.25, "p_target_id": 0.5,
        "q_draft_id": 0.75, "q_target_id": 0.125, "draft_text": EVIL, "target_text": "\n",
        "score": 0.875, "keep_draft": True, "veto": None,
        "draft_correct": True, "target_correct": False,
    }  # fmt: skip
    vetoed = mismatch | {
        "position": 2, "draft_text": "<eos>", "target_text": "\n", "keep_draft": False,
        "veto": "stop_token", "draft_correct": False, "target_correct": True,
    }  # fmt: skip
    row = {
        "id": "p/1", "arm": "runs/ours", "question": f"How many? {EVIL} {TURNED}", "answer": "3",
        "extracted": "3", "correct": True, "target_correct": False, "finish_reason": "stop",
        "num_drafts": 2, "num_overrides": 1, "num_accepted_tokens_per_pos": [2, 1],
    }  # fmt: skip
    rows = [
        row | {"id": "p/2", "target_correct": True, "num_overrides": 0,
               "tokens": [["So" + TURNED, "match"], [" it", "bonus"], ["\n", "correction"]],
               "mismatches": [vetoed]},
        row | {"tokens": [["It", "match"], [EVIL, "override"], [" 3", "bonus"]],
               "mismatches": [mismatch, vetoed | {"position": 2, "target_text": " 3"}]},
    ]  # fmt: skip
    return result("trace", {"pair": PAIR, "task": {"task": "gsm8k"}}, rows=rows)


def write_dataset(path: Path) -> None:
    tensors = {
        "features": torch.tensor([[0.5, -0.5], [2.0, -1.5], [0.0, 0.0]]),
        "draft_correct": torch.tensor([True, False, True]),
        "target_correct": torch.tensor([False, False, True]),
    }
    about = {"feature_names": json.dumps(["gap_p", "log_q_draft"]), "task": "gsm8k"}
    save_file(tensors, path, about | {"pair": json.dumps(PAIR)})


def write_metrics(path: Path) -> None:
    rounds = [
        {"round": i, "accuracy": 0.5 + 0.01 * i, "accuracy_target": 0.5, "override_rate": 0.2}
        for i in (1, 2, 3)
    ]
    path.write_text("".join(json.dumps(each) + "\n" for each in rounds))


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> Path:
    """A folder with a file of every kind, and one that is for no report."""
    folder = tmp_path_factory.mktemp("results")
    documents = {
        "eval": eval_document(
            rows=text_rows({"target": f"It is 2. {EVIL}", "runs/ours": f"It is 3. {EVIL}"})
        ),
        "bench": bench_document(),
        "audit": audit_document(),
        "calibrate": calibrate_document(),
        "trace": trace_document(),
        "other": {"command": "engine_speed"},
    }
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    write_dataset(folder / "audit.safetensors")
    write_metrics(folder / "ours.metrics.jsonl")
    return folder
