"""Backends of the commands: what replicas ask of Ray and of vLLM. Neither is needed here."""

from __future__ import annotations

import json

import pytest

from cospec.cli.common import backends
from cospec.cli.common.backends import BackendOptions, make_backend, make_decoders
from cospec.config import DecodeConfig
from cospec.errors import ConfigError
from cospec.models.source import PairSource
from cospec.tasks import load_task
from tests.cli.conftest import stop_after


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


@pytest.mark.parametrize("name", ["dtype", "speculative_config", "additional_config", "model"])
def test_arguments_of_vllm_that_other_options_set_are_refused(name) -> None:
    """Found: they replaced these options, and the result recorded what was not decoded with."""
    with pytest.raises(ConfigError, match=f"vllm_options has '{name}', which .* sets?; leave"):
        BackendOptions(backend="vllm", vllm_options=f'{{"{name}": null}}')


def test_a_target_spread_over_gpus_has_no_replicas() -> None:
    source = PairSource("target", "draft", device="balanced")
    with pytest.raises(ConfigError, match="device is balanced, and a replica on transformers has"):
        BackendOptions(num_replicas=2).open(source, None, DecodeConfig(), "scalar")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("draft_quantization", "int8"),
        ("draft_vocab_size", 32768),
        ("allow_different_tokenizers", True),
    ],
)
def test_what_vllm_would_leave_out_of_a_pair_is_refused(setting, value) -> None:
    """Found: vLLM loaded a draft with another tokenizer as it was."""
    source = PairSource("target", "draft", **{setting: value})
    with pytest.raises(ConfigError, match=f"{setting} is {value}, which vLLM does not know; leave"):
        BackendOptions(backend="vllm").load(source)


def test_a_prompt_of_the_drafts_own_is_refused_for_vllm_before_anything_is_loaded(problems) -> None:
    """Found: it was refused once the other arms had warmed up."""
    task = load_task(f"jsonl:{problems},scorer=numeric,shots=2,draft_shots=0")
    with pytest.raises(ConfigError, match=r"draft_shots of jsonl:.*draft_shots=0 gives the draft"):
        BackendOptions(backend="vllm").load(PairSource("target", "draft"), task)


@pytest.mark.parametrize(("before", "after"), [(1, 10), (10, 1)])
def test_another_number_of_engines_resumes_a_run(
    tiny, tmp_path, monkeypatch, before, after
) -> None:
    """Found: a run that was advised to go on with fewer replicas was refused as another one.

    First for their number, and then for the chunks, which were cut so that all have one.
    """
    rows = [{"id": f"p/{i}", "question": "the hen" + "s" * i, "answer": i} for i in range(11)]
    problems, result, whole = (tmp_path / name for name in ("p.jsonl", "r.json", "whole.json"))
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(BackendOptions, "_uses_ray", False)  # all of them are this process
    task = f"jsonl:{problems},scorer=numeric,split=test"
    command = ["eval", "--task", task, "--max-new-tokens", 4, "--batch-size", 1, "--json"]
    tiny(*command, whole, "--num-replicas", after)
    with monkeypatch.context() as patch:
        stop_after(patch, 5)  # three warm-ups and two turns
        with pytest.raises(SystemExit):
            tiny(*command, result, "--num-replicas", before)
    log = tmp_path / "r.json.part.jsonl"
    head, *turns = log.read_text().splitlines()
    assert turns and "num_replicas" not in head and '"backend": "transformers"' in head
    tiny(*command, result, "--num-replicas", after)
    document, expected = (json.loads(path.read_text()) for path in (result, whole))
    assert document["num_resumed_turns"] == 2

    def by_place(document):
        return {(row["arm"], row["id"]): row for row in document["rows"]}

    assert by_place(document) == by_place(expected)
    assert len(document["chunks"]) == 3 * {1: 5, 10: 11}[before]


def test_a_replica_takes_the_threads_of_the_command(monkeypatch) -> None:
    """Found: `--threads` set those of the process that only waits."""
    asked: list[int | None] = []
    monkeypatch.setattr(backends, "set_threads", asked.append)
    monkeypatch.setattr(BackendOptions, "load", lambda *_: None)
    make_decoders(BackendOptions(num_replicas=2), PairSource(), "scalar", 3)
    make_backend(BackendOptions(num_replicas=2), PairSource(), DecodeConfig(), "scalar", 5)
    assert asked == [3, 5]


@pytest.mark.parametrize("device", ["cuda:1", "balanced"])
def test_a_device_is_refused_for_vllm(device) -> None:
    """Found: it was ignored."""
    with pytest.raises(ConfigError, match=f"device is {device}, and vLLM chooses its devices"):
        BackendOptions(backend="vllm").load(PairSource("target", "draft", device=device))
