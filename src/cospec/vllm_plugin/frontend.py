"""Hooks in the server's process: requests are checked, and responses count overrides apart.

A request with a wrong setting has to be refused here, since an error in the engine ends the engine.
`install` wraps private names of vLLM; in another version it may fail, and names the missing one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.output_processor import RequestState
from vllm.v1.metrics.stats import RequestSpecDecodeMetrics

from cospec.arbiters import RULES, with_threshold
from cospec.errors import ConfigError
from cospec.registered import registered_names
from cospec.vllm_plugin.settings import KEY, RequestSettings
from cospec.vllm_plugin.wrap import wrap_once

if TYPE_CHECKING:
    from collections.abc import Callable

    from cospec.vllm_plugin.settings import Settings

_SERVED: list[Settings] = []
"""Settings of the servers of this process."""


def install(settings: Settings, find_overrides: Callable[[str], int | None]) -> None:
    """Wrap vLLM's functions that check requests and build responses, each once.

    Args:
        settings: Settings of the server.
        find_overrides: Looks up the number of overrides of a request, by its id in the engine.
    """
    _SERVED.append(settings)
    wrap_once(SamplingParams, "_verify_extra_args", _checked)
    wrap_once(
        RequestState, "_new_completion_output", lambda stock: _annotated(stock, find_overrides)
    )
    wrap_once(RequestSpecDecodeMetrics, "to_dict", _with_counts)


def _checked(stock: Any) -> Any:  # Any: a method of SamplingParams
    def verify_extra_args(params: SamplingParams) -> None:
        stock(params)
        try:
            asked = RequestSettings.from_extra_args(params.extra_args)
            _check_threshold(asked.threshold)
            if asked.rollout is not None and all(one.records is None for one in _SERVED):
                raise ConfigError(f"rollout of {KEY} is not for requests to a server; leave it out")
        except ConfigError as error:
            raise VLLMValidationError(str(error), parameter="vllm_xargs") from None

    return verify_extra_args


def _check_threshold(threshold: float | None) -> None:
    """Refuse a threshold if no served arbiter has one."""
    kinds = [one.arbiter.partition(":")[0] for one in _SERVED]
    if all(kind in RULES for kind in kinds):
        with_threshold(_SERVED[0].arbiter, threshold)  # refused if there is one
    elif threshold is not None and {*kinds} <= {*RULES, *registered_names("cospec.arbiters")}:
        raise ConfigError(
            f"threshold is {threshold:g}, which is of trained arbiters, and {kinds[0]} is of "
            "another package; leave it out."
        )


def _annotated(
    stock: Any,  # Any: a method of RequestState
    find_overrides: Callable[[str], int | None],
) -> Any:  # Any: the same
    def new_completion_output(state: RequestState, *args: object, **kwargs: object) -> Any:
        output = stock(state, *args, **kwargs)
        if output.spec_decode_metrics is not None:
            output.spec_decode_metrics.cospec_overrides = find_overrides(state.request_id)
        return output

    return new_completion_output


def _with_counts(stock: Any) -> Any:  # Any: a method of RequestSpecDecodeMetrics
    def to_dict(metrics: RequestSpecDecodeMetrics) -> dict[str, Any]:  # Any: a JSON object
        found: dict[str, Any] = stock(metrics)
        overrides = getattr(metrics, "cospec_overrides", None)
        if overrides is not None:
            strict = found["num_accepted_draft_tokens"] - overrides
            found |= {"num_strict_accepts": strict, "num_overrides": overrides}
        return found

    return to_dict
