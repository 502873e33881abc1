"""Where texts are decoded: what replicas ask of Ray and of vLLM. Neither is needed here."""

from __future__ import annotations

import pytest

from cospec.cli.backends import BackendOptions
from cospec.config import DecodeConfig
from cospec.errors import ConfigError
from cospec.models.source import PairSource


@pytest.mark.parametrize(
    ("options", "num_gpus", "executor"),
    [
        ({"num_replicas": 2}, 1, None),
        ({"num_replicas": 2, "tensor_parallel_size": 4}, 4, "mp"),
        ({"ray_address": "auto", "vllm_options": '{"pipeline_parallel_size": 2}'}, 2, "mp"),
        ({"num_replicas": 2, "vllm_options": '{"tensor_parallel_size": 4}'}, 4, "mp"),
        ({"tensor_parallel_size": 4}, 4, None),
    ],
)
def test_a_replica_reserves_what_its_engine_spreads_over(options, num_gpus, executor) -> None:
    engine = BackendOptions(backend="vllm", **options)
    assert engine._num_gpus == num_gpus
    assert engine._arguments().get("distributed_executor_backend") == executor


def test_a_target_spread_over_gpus_has_no_replicas() -> None:
    source = PairSource("target", "draft", device="balanced")
    with pytest.raises(ConfigError, match="device is balanced, and a replica on transformers has"):
        BackendOptions(num_replicas=2).open(source, None, DecodeConfig(), "scalar")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "value"), [("draft_quantization", "int8"), ("allow_different_tokenizers", True)]
)
def test_what_vllm_would_leave_out_of_a_pair_is_refused(setting, value) -> None:
    """Found: vLLM loaded a draft with another tokenizer as it was."""
    source = PairSource("target", "draft", **{setting: value})
    with pytest.raises(ConfigError, match=f"{setting} is {value}, which vLLM does not know; leave"):
        BackendOptions(backend="vllm").load(source)
