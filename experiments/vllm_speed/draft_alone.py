"""Seconds a token of a draft alone inside vLLM, greedy, after a short prompt.

Usage: python experiments/vllm_speed/draft_alone.py DRAFT --json OUT [--compile]

A token takes the seconds of 65 tokens less those of 9, over 56; the median of --trials.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from cospec.results import Provenance, check_writable, document, write_json

PROMPT = "Count the users older than 30 in the table users(id, name, age), in SQL.\n"


def seconds(llm: Any, num_tokens: int) -> float:  # Any: vllm.LLM
    """Return the seconds of one completion."""
    from vllm import SamplingParams  # noqa: PLC0415  # slow

    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    start = time.perf_counter()
    llm.generate([PROMPT], params, use_tqdm=False)
    return time.perf_counter() - start


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("draft", type=Path)
    parser.add_argument("--compile", action="store_true", help="as vLLM does by default")
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    check_writable(args.json, overwrite=False)
    from vllm import LLM  # noqa: PLC0415  # slow

    provenance = Provenance()
    llm = LLM(
        str(args.draft),
        dtype="bfloat16",
        max_model_len=1024,
        max_num_seqs=1,
        enforce_eager=not args.compile,
    )
    seconds(llm, 9)
    trials = [(seconds(llm, 65) - seconds(llm, 9)) / 56 for _ in range(args.trials)]
    config = {"draft": args.draft.name, "compile": args.compile}
    found = {"seconds_per_token": statistics.median(trials), "trials": trials}
    where = provenance.to_dict("cpu", "bfloat16")
    write_json(args.json, document("draft_alone", config, where, **found))
    print(args.draft.name, found)


if __name__ == "__main__":
    main()
