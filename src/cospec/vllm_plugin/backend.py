"""Rollouts on vLLM: a `RolloutBackend` whose handles are token ids.

One `vllm.LLM` with a draft model decodes all items; its workers rule by the arbiter that they were
handed last, and give each request's decisions back. A branch is a request whose prompt is the text
up to and including the other token. vLLM's prefix cache has all of it but the last block of 16
tokens. The models are frozen, so that the cache stays valid for the whole run.

Two things differ from our engine. vLLM takes the first token of every request from the forward of
its prompt, so no block is drafted for it; and rollouts are greedy.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import pickle
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from cospec.backends.base import BranchPoint, Item, Rollout, foreign
from cospec.config import DecodeConfig
from cospec.engine.prompts import make_row, make_rows
from cospec.errors import ConfigError, MissingExtraError
from cospec.types import Origin
from cospec.vllm_plugin.adapter import check_block_length
from cospec.vllm_plugin.parcels import Sender
from cospec.vllm_plugin.replay import by_request, replay
from cospec.vllm_plugin.settings import KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cospec.config import SamplingConfig
    from cospec.engine.rows import Row
    from cospec.models import ModelPair
    from cospec.types import Arbiter, Completion
    from cospec.vllm_plugin.rollouts import RecordedStep
    from cospec.vllm_plugin.settings import Records

_HONOURED = {
    "num_speculative_tokens",
    "batch_size",
    "draft_confidence_threshold",
    "end_blocks_at_stop",
    "max_corrections",
    "cascade",
    "enable_prefix_caching",  # vLLM always does
    "keep_trace",
    # These change nothing without an option that is refused.
    "prompt_lookup_max",
    "prompt_lookup_min",
}
"""Options of `DecodeConfig` that act on vLLM; all others are refused."""
_NUM_LAST_BLOCKS = 3
"""vLLM drafts nothing for a whole batch if one text is so near the end of the context: it adds the
block just verified, the next one, and with async scheduling the one in flight."""
_WORKER = "cospec.vllm_plugin.rollouts.RolloutWorker"


@dataclass(frozen=True)
class VllmSource:
    """Models that vLLM loads, and its arguments."""

    target: str
    """Folder or hub id of the target."""
    draft: str
    dtype: str
    """Data type of the weights, such as float32."""
    options: dict[str, Any] = field(default_factory=dict)  # Any: arguments of vllm.LLM
    """More arguments of ``vllm.LLM``, such as tensor_parallel_size."""


@dataclass(frozen=True)
class _Handle:
    """The parts of a rollout that a branch needs."""

    backend: VllmBackend
    sampling: SamplingConfig
    completion: Completion


class VllmBackend:
    """A pair of models on vLLM.

    Args:
        pair: The same models as `source` names: their tokenizer and stop tokens are used.
        source: Models that vLLM loads, and its arguments.
        config: Block length, batch size and other decoding options.
        records: Inputs that arbiters may see.

    Attributes:
        on_finished: Called with the number of completions that have ended, if it is set.

    Raises:
        MissingExtraError: vLLM is not installed.
        ConfigError: vLLM does not have an option.
    """

    def __init__(
        self,
        pair: ModelPair,
        source: VllmSource,
        config: DecodeConfig,
        *,
        records: Records = "scalar",
    ) -> None:
        check_config(config)
        self.pair, self.config = pair, config
        self.on_finished: Callable[[int], None] | None = None
        self._keys = itertools.count()
        self._sender = Sender()
        self._llm = start(
            source,
            source.target,
            pair,
            max_num_seqs=config.batch_size,
            speculative_config={
                "method": "draft_model",
                "model": source.draft,
                "num_speculative_tokens": config.k,
                "draft_sample_method": "probabilistic",  # the second runner keeps logits then
            },
            additional_config={
                KEY: {
                    "arbiter": "lossless",
                    "records": records,
                    "draft_confidence_threshold": config.draft_confidence_threshold,
                    "end_blocks_at_stop": config.end_blocks_at_stop,
                    "max_corrections": config.max_corrections,
                    "cascade": config.cascade,
                }
            },
            worker_extension_cls=_WORKER,
            **({"async_scheduling": False} if config.needs_each_draft else {}),
        )
        self._room = int(self._llm.llm_engine.model_config.max_model_len)

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its answer, with room for the last blocks."""
        return self._room - _NUM_LAST_BLOCKS * self.config.k

    def forget_prompts(self) -> None:
        """Empty vLLM's prefix cache, so that the next prompts are read whole."""
        self._llm.reset_prefix_cache()

    def complete(
        self, items: Sequence[Item], arbiter: Arbiter, *, keep_handles: bool = False
    ) -> list[Rollout]:
        """Complete items, as `RolloutBackend.complete` says."""
        if not items:
            return []
        samplings = [item.sampling for item in items]
        rows = list(make_rows(self.pair, [item.prompt for item in items], samplings))
        if any(row.draft_prompt_ids is not None for row in rows):
            raise ConfigError(
                "a prompt differs between the models, and vLLM's draft reads the target's; leave "
                "draft_shots out of the task, or take --backend transformers."
            )
        chances = [(item.sampling.seed or 0, item.stream) for item in items]
        return self._play(rows, chances, arbiter, keep_handles)

    def branch(
        self, points: Sequence[BranchPoint], arbiter: Arbiter, *, keep_handles: bool = False
    ) -> list[Rollout]:
        """Play branches out, each from the text of its rollout, which vLLM has cached."""
        if not points:
            return []
        rows = [self._branch_row(i, point) for i, point in enumerate(points)]
        chances = [(point.seed, point.stream) for point in points]
        return self._play(rows, chances, arbiter, keep_handles)

    def close(self) -> None:
        """Stop the engine and free its memory."""
        stop(self._llm)

    def _branch_row(self, index: int, point: BranchPoint) -> Row:
        """Return a row that stands after the point's token."""
        handle = point.rollout.handle
        if not isinstance(handle, _Handle) or handle.backend is not self:
            raise foreign(handle)
        parent = handle.completion
        row = make_row(self.pair, index, parent.prompt_ids, handle.sampling)
        row.generated = parent.token_ids[: point.position]
        row.origins = parent.origins[: point.position]
        row.emit(point.token_id, point.origin)
        return row

    def _play(
        self,
        rows: list[Row],
        chances: Sequence[tuple[int, int]],
        arbiter: Arbiter,
        keep_handles: bool,
    ) -> list[Rollout]:
        """Complete rows; `chances` has the seed and the stream of each."""
        for row in rows:
            check_row(row, self._room, self.config.k)
        self._use(arbiter, rows)
        keys = [str(next(self._keys)) for _ in rows]
        open_rows = [i for i, row in enumerate(rows) if not row.finish_reason]
        requests = [
            request(rows[i], {"rollout": _rollout(rows[i], keys[i], *chances[i])})
            for i in open_rows
        ]
        emitted = generate(self._llm, requests, self.on_finished)
        blocks = by_request(self._take())
        for i, token_ids in zip(open_rows, emitted, strict=True):
            replay(rows[i], blocks.get(keys[i], []), token_ids)
        if self.on_finished is not None and len(open_rows) < len(rows):
            self.on_finished(len(rows) - len(open_rows))
        done = [(row.config, row.completion()) for row in rows]
        return [Rollout(c, _Handle(self, s, c) if keep_handles else None) for s, c in done]

    def _use(self, arbiter: Arbiter, rows: list[Row]) -> None:
        """Let the workers rule by an arbiter."""
        prefixes = {row.config.exact_prefix_tokens for row in rows}
        if len(prefixes) > 1:
            raise ConfigError(
                f"exact_prefix_tokens of these items are {sorted(prefixes)}; on vLLM it is one "
                "number for all items of a call."
            )
        self._llm.collective_rpc(
            "cospec_use_arbiter", args=(self._sender.pack(arbiter), prefixes.pop())
        )

    def _take(self) -> list[RecordedStep]:
        answers = [one for one in self._llm.collective_rpc("cospec_take_steps") if one is not None]
        steps: list[RecordedStep] = pickle.loads(answers[0])
        return steps


def check_config(config: DecodeConfig) -> None:
    """Refuse options that vLLM does not have.

    Raises:
        ConfigError: Such an option is set.
    """
    check_block_length(config.num_speculative_tokens or 0)
    for option in fields(DecodeConfig):
        value = getattr(config, option.name)
        if option.name not in _HONOURED and value != option.default:
            raise ConfigError(
                f"{option.name} is {value!r}, and vLLM drafts with the draft model in its own way; "
                f"leave out {option.name}, or use the transformers backend."
            )


def check_row(row: Row, room: int, k: int) -> None:
    """Refuse settings of an item that vLLM does not take.

    Raises:
        ConfigError: There is such a setting.
    """
    config = row.config
    if not config.is_greedy:
        raise ConfigError(
            f"temperature is {config.temperature}; rollouts on vLLM are greedy, since it draws its "
            "tokens by other random numbers. Set it to 0, or use the transformers backend."
        )
    if config.override_stop_tokens:
        raise ConfigError(
            "override_stop_tokens is set; on vLLM no arbiter rules on a token that ends a text."
        )
    most = len(row.prompt_ids) + config.max_new_tokens + _NUM_LAST_BLOCKS * k
    if most > room:
        raise ConfigError(
            f"a prompt of {len(row.prompt_ids)} tokens with max_new_tokens {config.max_new_tokens} "
            f"and {_NUM_LAST_BLOCKS} blocks of {k} take {most} tokens, and vLLM's max_model_len is "
            f"{room}; lower max_new_tokens."
        )


def start(
    source: VllmSource,
    model: str,
    pair: ModelPair,
    **arguments: Any,  # Any: arguments of vllm.LLM
) -> Any:  # Any: vllm.LLM
    """Start an engine of vLLM.

    Raises:
        MissingExtraError: vLLM is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise MissingExtraError("vLLM", "vllm")
    if importlib.util.find_spec("vllm.v1.worker.gpu_model_runner") is not None:
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # of two, the runner whose tests are wider
    vllm = importlib.import_module("vllm")
    settled: dict[str, Any]  # Any: arguments of vllm.LLM
    settled = {
        "dtype": source.dtype,
        "max_model_len": pair.context_length,
        "enable_prefix_caching": True,
        "generation_config": "vllm",  # no sampling settings but ours
        "disable_log_stats": True,
    }
    if importlib.import_module("vllm.platforms").current_platform.is_cpu():
        settled["enforce_eager"] = True  # compiling takes minutes on a CPU
    return vllm.LLM(model=model, **settled | arguments | source.options)


def stop(llm: Any) -> None:  # Any: vllm.LLM
    """Stop an engine."""
    llm.llm_engine.engine_core.shutdown()


def request(row: Row, extra: dict[str, Any] | None = None) -> tuple[Any, Any]:  # Any: vLLM's
    """Return the prompt and the sampling parameters of a row, greedy.

    Args:
        row: Row to complete.
        extra: CoSpec's settings for the request.
    """
    params = importlib.import_module("vllm").SamplingParams(
        temperature=0.0,
        max_tokens=row.config.max_new_tokens - len(row.generated),
        stop=list(row.config.stop),
        stop_token_ids=sorted(row.stop_ids),
        ignore_eos=True,  # those that count are among the stop tokens
        detokenize=bool(row.config.stop),
        extra_args={KEY: extra} if extra else None,
    )
    return {"prompt_token_ids": row.prompt_ids + row.generated}, params


def generate(
    llm: Any,  # Any: vllm.LLM
    requests: Sequence[tuple[Any, Any]],  # Any: as above
    on_finished: Callable[[int], None] | None,
) -> list[list[int]]:
    """Return the tokens that vLLM emits for requests, in their order."""
    if not requests:
        return []
    prompts, params = zip(*requests, strict=True)
    outputs = llm.generate(
        list(prompts),
        list(params),
        use_tqdm=False if on_finished is None else progress(on_finished),
    )
    return [list(output.outputs[0].token_ids) for output in outputs]


class _Bar:
    """A progress bar that nobody sees."""

    def __init__(self, on_finished: Callable[[int], None]) -> None:
        self._on_finished = on_finished
        self.n, self.postfix = 0, ""
        self.format_dict = {"elapsed": 1.0}

    def update(self, number: int) -> None:
        self.n += number
        self._on_finished(number)

    def refresh(self) -> None:
        pass

    def close(self) -> None:
        pass


def progress(on_finished: Callable[[int], None]) -> Callable[..., Any]:  # Any: like tqdm
    """Return a stand-in for tqdm in vLLM that reports each completion.

    vLLM calls it with a total for completions, and with the requests themselves when it adds them.
    """

    def make(requests: object = None, **options: object) -> object:
        return _Bar(on_finished) if requests is None else requests

    return make


def _rollout(row: Row, key: str, seed: int, stream: int) -> dict[str, Any]:  # Any: JSON
    """Return the `RolloutRequest` of a row."""
    num_overrides = row.origins.count(Origin.OVERRIDE)
    return {
        "key": key,
        "seed": seed % 2**64,  # as our engine takes it; msgpack has no larger number
        "stream": stream,
        "num_before": len(row.generated),
        "num_overrides": num_overrides,
        "num_mismatches": num_overrides + row.origins.count(Origin.CORRECTION),
    }
