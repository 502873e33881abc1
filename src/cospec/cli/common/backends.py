"""Options that say where texts are decoded, and the backends that they name."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from cospec.cli.common.options import set_threads
from cospec.errors import ConfigError, check_least
from cospec.results import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cospec.backends.base import RolloutBackend
    from cospec.backends.jobs import Decoders, Player
    from cospec.config import DecodeConfig
    from cospec.models import ModelPair
    from cospec.models.source import PairSource
    from cospec.results import Json
    from cospec.tasks import Task
    from cospec.types import Arbiter
    from cospec.vllm_plugin.backend import VllmSource
    from cospec.vllm_plugin.settings import Records


_OWN_ARGUMENTS = {
    "model": "--target sets",
    "dtype": "--dtype sets",
    "max_num_seqs": "--batch-size sets",
    "speculative_config": "--draft and -k set",
    "additional_config": "CoSpec sets",
    "worker_extension_cls": "CoSpec sets",
}
"""Arguments of ``vllm.LLM`` that other options set; the result records those options."""


@dataclass(frozen=True)
class BackendOptions:
    """Engine that decodes texts, and the number of such engines."""

    backend: Literal["transformers", "vllm"] = "transformers"
    """Engine: transformers (this package's own, on any causal model) or vllm, which is for large
    models and decodes greedily (cospec[vllm])."""
    tensor_parallel_size: int = 1
    """GPUs that vLLM spreads the target over."""
    vllm_options: str = "{}"
    """More arguments of vllm.LLM as JSON, such as '{"gpu_memory_utilization": 0.8}'."""
    num_replicas: int = 1
    """Engines to decode on, each a Ray actor (cospec[ray]); 1 is this process, without Ray."""
    ray_address: str | None = None
    """Ray cluster to run on, such as auto; by default one is started on this machine."""

    def __post_init__(self) -> None:
        check_least(
            1, tensor_parallel_size=self.tensor_parallel_size, num_replicas=self.num_replicas
        )
        asks_for_vllm = self.tensor_parallel_size > 1 or self.vllm_options != "{}"
        if self.backend != "vllm" and asks_for_vllm:
            raise ConfigError(
                "tensor_parallel_size and vllm_options are vLLM's; add --backend vllm."
            )
        self._given()

    def load(self, source: PairSource, task: Task | None = None) -> ModelPair:
        """Load the pair, for the problems of a task.

        Under vLLM this copy is on the CPU. It serves for the tokenizer, the token kinds, the
        fingerprint and, in an audit, the draft's choices.

        Raises:
            ConfigError: The pair or the task has a setting that vLLM does not know.
        """
        if self.backend == "transformers":
            return source.load()
        if source.device not in ("auto", "cpu"):
            raise ConfigError(
                f"device is {source.device}, and vLLM chooses its devices itself; leave it out and "
                "set CUDA_VISIBLE_DEVICES or --tensor-parallel-size."
            )
        if task is not None and "draft_shots=" in task.name:
            raise ConfigError(
                f"draft_shots of {task.name} gives the draft a prompt of its own, and vLLM's draft "
                "reads the target's; leave it out, or decode with --backend transformers."
            )
        for name, plain in (
            ("draft_quantization", "none"),
            ("draft_vocab_size", None),
            ("allow_different_tokenizers", False),
        ):
            if (value := getattr(source, name)) != plain:
                raise ConfigError(
                    f"{name} is {value}, which vLLM does not know; leave it out, or decode with "
                    "--backend transformers."
                )
        return replace(source, device="cpu").load(pack_weights=False)

    def decoders(self, source: PairSource, pair: ModelPair, records: Records) -> Decoders:
        """Return the maker of decoders for the arms of an evaluation."""
        if self.backend == "transformers":
            from cospec.evaluation.arms import EngineDecoders

            return EngineDecoders(pair)
        from cospec.vllm_plugin.decoders import VllmDecoders

        return VllmDecoders(pair, self.source(source, pair), records)

    def source(self, source: PairSource, pair: ModelPair) -> VllmSource:
        """Return the models of a pair that vLLM loads, and its arguments."""
        from cospec.vllm_plugin.backend import VllmSource

        target, draft = source.sources()
        assert draft is not None, "the pair was loaded"
        dtype = str(pair.target.dtype).removeprefix("torch.")
        return VllmSource(target, draft, dtype, self._arguments())

    def device(self, pair: ModelPair) -> str:
        """Return the device on which the texts are decoded."""
        import torch

        if self.backend == "vllm":  # `pair` is a copy on the CPU
            return "cuda" if torch.cuda.is_available() else "cpu"
        return str(pair.target.device)

    def open(
        self,
        source: PairSource,
        pair: ModelPair,
        config: DecodeConfig,
        records: Records,
        threads: int | None = None,
    ) -> RolloutBackend:
        """Start the backend of a run; `threads` is the number per replica (None: Ray's)."""
        if not self._uses_ray:
            return make_backend(self, source, config, records, pair=pair)
        from cospec.backends.ray import RayBackend

        return RayBackend(
            partial(make_backend, self, source, config, records, threads),
            self.num_replicas,
            address=self.ray_address,
            chunk_size=config.batch_size,
            gpus_per_replica=self._gpus_per_replica(source),
        )

    @contextmanager
    def arms(
        self, source: PairSource, pair: ModelPair, records: Records, threads: int | None = None
    ) -> Iterator[tuple[Decoders, Player]]:
        """Make the maker of an evaluation's decoders and the player; close them afterwards."""
        from cospec.backends.jobs import play_here

        if not self._uses_ray:
            yield self.decoders(source, pair, records), play_here
            return
        from cospec.backends.ray_decoders import RayDecoders

        remote = RayDecoders(
            pair,
            partial(make_decoders, self, source, records, threads),
            self.num_replicas,
            address=self.ray_address,
            gpus_per_replica=self._gpus_per_replica(source),
        )
        try:
            yield remote, remote.play
        finally:
            remote.close()

    def notes(self) -> list[str]:
        """Return notes on an audit with these options."""
        if self.backend != "vllm" or not self._uses_ray:
            return []
        return [
            "the draft's own answers are decoded in this process, by one more engine beside the "
            "replicas: it needs its GPUs on this machine"
        ]

    @property
    def _uses_ray(self) -> bool:
        return self.num_replicas > 1 or self.ray_address is not None

    def _gpus_per_replica(self, source: PairSource) -> int:
        if source.device in ("balanced", "sequential"):
            raise ConfigError(
                f"device is {source.device}, and a replica on transformers has one GPU; leave "
                "--num-replicas out, or take --backend vllm with --tensor-parallel-size."
            )
        return 0 if source.device == "cpu" else self._num_gpus

    @property
    def _num_gpus(self) -> int:
        """GPUs of an engine."""
        given = self._given()
        return int(given["tensor_parallel_size"]) * int(given.get("pipeline_parallel_size", 1))

    def _arguments(self) -> Json:
        """Return the arguments of ``vllm.LLM``."""
        # In an actor vLLM would ask Ray for the GPUs that the actor itself holds.
        if self._uses_ray and self._num_gpus > 1:
            return {"distributed_executor_backend": "mp", **self._given()}
        return self._given()

    def _given(self) -> Json:
        """Return the arguments of ``vllm.LLM`` that the options name."""
        try:
            given = parse_json(self.vllm_options)
        except ValueError as error:
            raise ConfigError(f"vllm_options is no JSON: {error}.") from None
        if not isinstance(given, dict):
            raise ConfigError(f"vllm_options is {given!r}; it must be an object.")
        for name, ours in _OWN_ARGUMENTS.items():
            if name in given:
                raise ConfigError(f"vllm_options has {name!r}, which {ours}; leave it out.")
        return {"tensor_parallel_size": self.tensor_parallel_size, **given}


def records_for(arbiters: Iterable[Arbiter]) -> Records:
    """Return the inputs of arbiters that a rollout engine has to record."""
    from cospec.types import Needs

    return "hidden" if any(arbiter.needs & Needs.HIDDEN for arbiter in arbiters) else "scalar"


def make_backend(
    options: BackendOptions,
    source: PairSource,
    config: DecodeConfig,
    records: Records,
    threads: int | None = None,
    pair: ModelPair | None = None,
) -> RolloutBackend:
    """Make the backend of this process; a replica gives no pair, and loads it first."""
    set_threads(threads)
    pair = options.load(source) if pair is None else pair
    if options.backend == "vllm":
        from cospec.vllm_plugin.backend import VllmBackend

        return VllmBackend(pair, options.source(source, pair), config, records=records)
    from cospec.backends.engine import EngineBackend

    return EngineBackend(pair, config)


def make_decoders(
    options: BackendOptions, source: PairSource, records: Records, threads: int | None
) -> Decoders:
    """Load the pair in a replica, and make the maker of an evaluation's decoders."""
    set_threads(threads)
    return options.decoders(source, options.load(source), records)
