"""Write into each bundled arbiter's folder the hashes of the problems that it was trained on.

    python tools/bundled_trained_on.py

The arbiters are older than these files (`cospec.tasks.trained_on`). Their problems are drawn again
with the seeds and sizes of their configs, which takes a few minutes.
"""

import json
from pathlib import Path

from bundled_export import write_checksums

from cospec.models.bundled import bundled_home
from cospec.tasks import Example, load_task
from cospec.tasks.trained_on import write_trained_on

SOLUTION_SEED = 1_000_000  # of `cospec train`


def problems_of(config: Path) -> list[Example]:
    """The problems of the rounds, of the tune split, and those whose solutions were read."""
    training = json.loads(config.read_text())["training"]
    task, train = load_task(training["task"]["task"]), training["train"]
    num_rounds = train["num_rounds"] * train["prompts_per_round"]
    found = task.examples("train", num_rounds, train["seed"])
    found += task.examples("tune", train["num_tune"], train["seed"])
    if num_solutions := train.get("num_solutions", 0):
        found += task.examples("train", num_solutions, SOLUTION_SEED)
    return found


def main() -> None:
    """Write the files and the checksums of the folder that ships."""
    for config in sorted((bundled_home() / "arbiters").glob("*/config.json")):
        problems = problems_of(config)
        write_trained_on(config.parent, problems)
        print(f"{config.parent.name}: {len(problems)} problems", flush=True)
    write_checksums(bundled_home())


if __name__ == "__main__":
    main()
