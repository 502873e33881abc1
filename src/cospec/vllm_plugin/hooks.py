"""The plugin's way into vLLM: each worker looks for our settings once its runner is built."""

from __future__ import annotations

import importlib
import logging
from typing import Any

from cospec.vllm_plugin.known import NAMED, V1_NAMES, V2_NAMES, check_names, check_version
from cospec.vllm_plugin.settings import Settings
from cospec.vllm_plugin.wrap import wrap_once

logger = logging.getLogger(__name__)


def hook_workers() -> None:
    """Have every worker of this process look for our settings once its runner is built.

    It does nothing for a worker without settings, and may be called any number of times.
    """
    try:
        base = importlib.import_module("vllm.v1.worker.worker_base").WorkerWrapperBase
        wrap_once(base, "init_device", _with_arbiter)
    except (ImportError, AttributeError) as error:
        logger.warning("CoSpec finds no worker to rule in and stays off: %s", error)


def _with_arbiter(stock: Any) -> Any:  # Any: a method of WorkerWrapperBase
    def init_device(self: Any) -> None:  # Any: vLLM's WorkerWrapperBase
        stock(self)
        activate(self.worker, self.vllm_config)

    return init_device


def activate(worker: Any, vllm_config: Any) -> None:  # Any: vLLM's Worker and VllmConfig
    """Put the arbiter, if there are settings, into a worker whose model is not loaded yet.

    Raises:
        ConfigError: There are settings, and this vLLM or this engine is not supported.
    """
    settings = Settings.from_vllm(vllm_config)
    if settings is None:
        return
    version = importlib.import_module("vllm").__version__
    if settings.any_vllm_version:
        logger.warning("CoSpec: checking the names of vLLM %s; %s were tested", version, NAMED)
    else:
        check_version(version)
    if getattr(worker, "use_v2_model_runner", True):  # vLLM 0.34 has no other runner
        check_names(V2_NAMES)
        from cospec.vllm_plugin import v2  # noqa: PLC0415  # imports vLLM

        v2.install(worker.model_runner, settings, vllm_config)
    else:
        check_names(V1_NAMES)
        from cospec.vllm_plugin import v1  # noqa: PLC0415  # imports vLLM

        v1.install(worker.model_runner, settings, vllm_config)
