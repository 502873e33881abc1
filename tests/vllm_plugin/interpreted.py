"""vLLM's second runner on a CPU, for tests and for what is not timed."""

from __future__ import annotations

import os
from types import SimpleNamespace

NO_WARM_UP = {"kernel_config": {"enable_jit_warmup": False}}
"""Options of an engine whose kernels are interpreted: some that it would try need a compiler."""


def interpret_kernels():
    """Let vLLM's second runner run on a CPU: Triton interprets its kernels, slowly.

    vLLM takes Triton for absent on a CPU unless it has a backend for one. The interpreter of Triton
    3.9 refuses masks that are integers, which compiled kernels take, and has no `log1p`.
    """
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.language
    from triton.backends import backends
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    backends["cpu"] = SimpleNamespace(driver=None)

    def with_boolean_mask(name, place):
        stock = getattr(InterpreterBuilder, name)

        def masked(self, *args):
            mask = TensorHandle(args[place].data.astype(bool), triton.language.int1)
            return stock(self, *args[:place], mask, *args[place + 1 :])

        setattr(InterpreterBuilder, name, masked)

    with_boolean_mask("create_masked_load", 1)
    with_boolean_mask("create_masked_store", 2)
    from vllm.v1.worker.gpu.spec_decode import rejection_sampler_utils

    def log1p(x):
        return triton.language.log(1 + x)

    rejection_sampler_utils.tldevice = SimpleNamespace(log1p=log1p)
