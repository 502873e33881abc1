"""The command line of lm-evaluation-harness, with ``--model cospec`` registered.

The harness (0.4.13) finds the models of its own package only, and neither entry points nor
``--include_path`` (which is for tasks) add to them. So this file registers the model and calls the
harness's main function.
"""

from __future__ import annotations

import importlib
import sys

from cospec.errors import CospecError


def main() -> None:
    """Run the harness; exit with a sentence on bad input."""
    try:
        importlib.import_module("cospec.lm_eval.model")  # registers, or says what is missing
        from lm_eval.__main__ import cli_evaluate  # noqa: PLC0415  # only now known to be there

        cli_evaluate()
    except CospecError as error:
        sys.exit(f"cospec: {error}")


if __name__ == "__main__":
    main()
