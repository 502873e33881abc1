"""The plugin enters only a vLLM that it knows, and only where it was asked to."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import sys
import types

import pytest
import torch

from cospec.errors import ConfigError
from cospec.vllm_plugin import cpu_repairs, hooks, known, register


def test_a_version_that_we_do_not_know_is_refused_in_one_sentence():
    known.check_version("0.32.0")
    known.check_version("0.33.11+cpu")
    known.check_version("0.34.0")
    for version in ("0.31.0", "0.35.0", "0.3.2", "0.320.0", "dev"):
        message = rf"vLLM {version} is installed .* knows 0\.32 to 0\.34; install one"
        with pytest.raises(ConfigError, match=message):
            known.check_version(version)


@pytest.fixture
def module(monkeypatch):
    """A module with one class, as vLLM might have it."""

    class Sampler:
        def forward(self, logits, metadata):
            pass

    made = types.ModuleType("some_engine")
    made.Sampler = Sampler
    monkeypatch.setitem(sys.modules, "some_engine", made)
    return made


def test_a_name_has_to_be_there_with_the_parameters_that_we_know(module):
    known.check_names({"some_engine:Sampler.forward": "self logits metadata"})
    with pytest.raises(ConfigError, match=r"forward .* takes \(self logits metadata\) .* \(self"):
        known.check_names({"some_engine:Sampler.forward": "self metadata logits"})
    known.check_names({"some_engine:Sampler.forward": "self logits | self logits metadata"})
    with pytest.raises(ConfigError, match=r"knows it with \(self logits \| self\)"):
        known.check_names({"some_engine:Sampler.forward": "self logits | self"})
    with pytest.raises(ConfigError, match=r"has no some_engine:Sampler\.sample"):
        known.check_names({"some_engine:Sampler.sample": "self"})
    with pytest.raises(ConfigError, match="has no no_such_engine:Sampler"):
        known.check_names({"no_such_engine:Sampler": ""})


def test_attributes_of_objects_are_looked_up_too():
    runner = types.SimpleNamespace(input_batch=types.SimpleNamespace(req_ids=[]))
    known.require(runner, ["input_batch.req_ids"])
    with pytest.raises(ConfigError, match=r"has no input_batch\.prompts"):
        known.require(runner, ["input_batch.req_ids", "input_batch.prompts"])


def wrapper_module(monkeypatch):
    """vLLM's module of worker wrappers, as far as we touch it."""

    class WorkerWrapperBase:
        def __init__(self, additional_config):
            self.vllm_config = types.SimpleNamespace(additional_config=additional_config)
            self.worker = None

        def init_device(self):
            self.worker = types.SimpleNamespace(model_runner="stock")

    name = "vllm.v1.worker.worker_base"
    made = types.ModuleType(name)
    made.WorkerWrapperBase = WorkerWrapperBase
    for part in ("vllm", "vllm.v1", "vllm.v1.worker"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, name, made)
    return made


def test_without_settings_a_worker_stays_as_it_is(monkeypatch):
    base = wrapper_module(monkeypatch).WorkerWrapperBase
    register()
    for additional_config in ({}, {"other": 1}, None):
        wrapper = base(additional_config)
        wrapper.init_device()
        assert vars(wrapper.worker) == {"model_runner": "stock"}


def test_with_settings_an_unknown_vllm_does_not_start(monkeypatch):
    base = wrapper_module(monkeypatch).WorkerWrapperBase
    sys.modules["vllm"].__version__ = "0.99.0"
    register()
    with pytest.raises(ConfigError, match=r"vLLM 0\.99\.0"):
        base({"cospec": {"arbiter": "lossless"}}).init_device()
    with pytest.raises(ConfigError, match="unknown key"):
        base({"cospec": {"arbitre": "lossless"}}).init_device()


def test_registering_again_changes_nothing(monkeypatch):
    base = wrapper_module(monkeypatch).WorkerWrapperBase
    register()
    hooked = base.init_device
    register()
    assert base.init_device is hooked


def test_a_vllm_without_workers_is_left_alone_with_a_warning(monkeypatch, caplog):
    wrapper_module(monkeypatch)
    del sys.modules["vllm.v1.worker.worker_base"].WorkerWrapperBase
    register()
    assert "stays off" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_values_of_requests_are_spread_over_their_tokens(dtype):
    """vLLM 0.32 returns memory that was never written here, on a CPU."""
    x = torch.tensor([2, 0, 7, 5], dtype=dtype)
    spread = cpu_repairs.expand_batch_to_tokens(
        x, torch.tensor([2, 3, 3, 6], dtype=torch.int32), 6, 0, 1
    )
    assert spread.tolist() == [2, 2, 1, 5, 5, 5]
    assert spread.dtype == dtype
    nothing = torch.tensor([0, 0, 0, 0], dtype=torch.int32)
    assert cpu_repairs.expand_batch_to_tokens(x, nothing, 0).shape == (0,)


def test_a_step_without_drafted_rows_is_no_error_on_a_cpu():
    """vLLM 0.32 asks for the maximum of nothing here, with top-k."""
    calls = []
    sampler = types.SimpleNamespace(
        apply_sampling_constraints=lambda *args: calls.append(args) or "stock",
        expand_batch_to_tokens=None,
    )
    for _ in range(2):
        cpu_repairs.repair_cpu(sampler)
    empty = torch.empty(0, 5)
    assert sampler.apply_sampling_constraints(empty, None, None) is empty
    assert sampler.apply_sampling_constraints(torch.ones(1, 5), 2, 3) == "stock"
    assert len(calls) == 1, "repaired once only"
    assert sampler.expand_batch_to_tokens is cpu_repairs.expand_batch_to_tokens


needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"
)
FIRST_RUNNER = "vllm.v1.worker.gpu_model_runner"


def skip_without_the_runner(runner):
    if runner == "v1" and importlib.util.find_spec(FIRST_RUNNER) is None:
        pytest.skip("this vLLM has no first runner")


@needs_vllm
@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_the_installed_vllm_has_the_names_that_we_use(runner):
    skip_without_the_runner(runner)
    known.check_version(importlib.import_module("vllm").__version__)
    known.check_names(known.V1_NAMES if runner == "v1" else known.V2_NAMES)


@needs_vllm
def test_another_version_starts_if_it_is_allowed_and_has_the_names(monkeypatch, caplog):
    skip_without_the_runner("v1")
    monkeypatch.setattr(importlib.import_module("vllm"), "__version__", "0.99.0")
    installed = []
    v1 = importlib.import_module("cospec.vllm_plugin.v1")
    monkeypatch.setattr(v1, "install", lambda runner, *_: installed.append(runner))
    worker = types.SimpleNamespace(use_v2_model_runner=False, model_runner="runner")
    settings = {"arbiter": "lossless"}
    config = types.SimpleNamespace(additional_config={"cospec": settings})
    with pytest.raises(ConfigError, match=r"vLLM 0\.99\.0 is installed"):
        hooks.activate(worker, config)
    settings["any_vllm_version"] = True
    hooks.activate(worker, config)
    assert installed == ["runner"]
    monkeypatch.setitem(known.V1_NAMES, "vllm:no_such_name", "")
    with pytest.raises(ConfigError, match="has no vllm:no_such_name"):
        hooks.activate(worker, config)


@needs_vllm
@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_a_worker_does_not_start_where_one_name_takes_other_parameters(runner, monkeypatch):
    """The modules are those of the installed vLLM; the second runner's load without a GPU too."""
    skip_without_the_runner(runner)
    worker = types.SimpleNamespace(use_v2_model_runner=runner == "v2")
    config = types.SimpleNamespace(additional_config={"cospec": {"arbiter": "lossless"}})
    for name in known.V2_NAMES if runner == "v2" else known.V1_NAMES:
        module, _, path = name.partition(":")
        *owners, last = path.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        with monkeypatch.context() as patch:
            patch.setattr(owner, last, lambda other: None)
            sentence = rf"{re.escape(name)} of this vLLM takes \(other\) and CoSpec's plugin knows"
            with pytest.raises(ConfigError, match=sentence):
                hooks.activate(worker, config)
            patch.delattr(owner, last)
            with pytest.raises(ConfigError, match=re.escape(name)):
                hooks.activate(worker, config)
