"""CoSpec as a plugin of vLLM: an arbiter rules on drafted tokens inside vLLM's own workers.

vLLM calls `register` in each of its processes, through the entry point group
``vllm.general_plugins``. vLLM's decoding stays as it is unless the engine was given settings,
``additional_config={"cospec": {"arbiter": ...}}``. ``docs/vllm.md`` tells how to use it.

`settings` reads the user's options, `bridge` and `verdicts` are the mathematics, `requests` and
`adapter` serve both of vLLM's model runners, `v1` and `v2` know one runner each. `known`
checks that the installed vLLM is the one whose names they know, `hooks` enters it by `wrap`, and
`cpu_repairs` repairs it. Rollouts: `backend`, `rollouts`, `replay`, `parcels`, `decoders`. Server:
`frontend`, `stat_logger`, `metrics`, `decisions`, `supervise`.
"""

from __future__ import annotations

__all__ = ["register"]


def register() -> None:
    """Make this process's vLLM workers look for CoSpec's settings when they start."""
    from cospec.vllm_plugin.hooks import hook_workers  # noqa: PLC0415  # vLLM need not be there

    hook_workers()
