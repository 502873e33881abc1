"""Fill the tables and the marked numbers of the pages; ``--check`` fails when one differs.

    python experiments/readme.py [--check]

A block between ``<!-- results: NAME -->`` and ``<!-- end -->`` is what the function of that name in
`experiments.tables.blocks` makes of result files. A number between ``<!-- n ... -->`` and
``<!-- /n -->`` is what `experiments.tables.numbers` computes. Both start from the rows. A test runs
the check.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from experiments.tables import numbers  # noqa: E402  # scripts of the repository
from experiments.tables.blocks import BLOCKS  # noqa: E402

PAGES = (
    "README.md",
    *(f"docs/{name}" for name in ("safety.md", "vllm.md")),
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/results/*.md")),
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("experiments/*/README.md")),
)


def filled(text: str) -> str:
    """A page with every block and every marked number made anew."""

    def replace(match: re.Match[str]) -> str:
        name = match[1]
        if name not in BLOCKS:
            raise SystemExit(f"no table is called {name}; there are {', '.join(sorted(BLOCKS))}")
        return f"<!-- results: {name} -->\n{BLOCKS[name]()}\n<!-- end -->"

    text = re.sub(r"<!-- results: (\w+) -->\n.*?<!-- end -->", replace, text, flags=re.DOTALL)
    return numbers.filled(text)


def main() -> None:
    """Rewrite the pages, or with ``--check`` exit 1 if that would change one."""
    for page in PAGES:
        old = (ROOT / page).read_text(encoding="utf-8")
        new = filled(old)
        if "--check" not in sys.argv[1:]:
            (ROOT / page).write_text(new, encoding="utf-8")
        elif new != old:
            sys.exit(f"{page} differs from the result files in experiments/")


if __name__ == "__main__":
    main()
