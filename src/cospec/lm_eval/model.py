"""The model ``cospec`` of lm-evaluation-harness; importing this file registers it.

The only file that knows the harness. The engine answers `generate_until`; log-likelihoods and chat
templates come from the harness's own Hugging Face model on the target.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from cospec.arbiters import load_arbiter
from cospec.arbiters.learned import notes_on
from cospec.engine import Engine
from cospec.engine.prompts import make_rows
from cospec.errors import ConfigError, GenerationInterrupted, MissingExtraError
from cospec.lm_eval.settings import ModelArgs, overruled, sampling_config
from cospec.models.pair import num_weights
from cospec.types import Stats

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
    from lm_eval.utils import simple_parse_args_string
except ImportError as error:
    raise MissingExtraError("lm-evaluation-harness", "lm-eval") from error

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lm_eval.api.instance import Instance

    from cospec.config import SamplingConfig
    from cospec.types import Completion

_log = logging.getLogger(__name__)
_CHUNKS = 16
"""Full batches that the engine gets at a time; after each, results are cached and the bar moves."""


@register_model("cospec")
class CospecLM(HFLM):  # type: ignore[misc]  # the harness is untyped
    """A pair with an arbiter.

    Args:
        **model_args: Keys of `ModelArgs`; ``k`` is short for ``num_speculative_tokens``.

    Raises:
        CospecError: A key or value is not allowed, or the pair or the arbiter cannot be loaded.
    """

    def __init__(self, **model_args: Any) -> None:  # Any: whatever the user wrote
        self.args = ModelArgs.from_dict(model_args)
        spec = self.args.arbiter_spec
        load_arbiter(spec)  # a bad one is refused before any model is loaded
        pair = self.args.load()
        if pair.tokenizer is None:
            raise ConfigError("the pair has no tokenizer, and the harness sends texts.")
        super().__init__(
            pretrained=pair.target,
            tokenizer=pair.tokenizer,
            backend="causal",
            batch_size=self.args.batch_size,
        )
        arbiter = load_arbiter(spec, pair)
        self.engine = Engine(pair, arbiter, self.args)
        self.stats = Stats()
        self._noted: set[str] = set()
        for note in (*pair.notes, *notes_on(arbiter, self.engine.config)):
            self._note(note)

    @classmethod
    def create_from_arg_obj(
        cls,
        arg_dict: dict[str, Any],  # Any: whatever the user wrote
        additional_config: dict[str, Any] | None = None,
    ) -> CospecLM:
        """Build the model as the harness does; ``--model_args`` override the harness's options.

        The harness's ``--device`` is ``cuda:0`` unless the user names another: without CUDA such a
        device is ignored.
        """
        others = {k: v for k, v in (additional_config or {}).items() if v is not None}
        if str(others.get("device")).startswith("cuda") and not torch.cuda.is_available():
            del others["device"]
        size = others.get("batch_size")
        if isinstance(size, str) and size.isdecimal():  # as the harness's command line has it
            others["batch_size"] = int(size)
        return cls(**others | arg_dict)

    @classmethod
    def create_from_arg_string(
        cls,
        arg_string: str,
        additional_config: dict[str, Any] | None = None,  # Any: as above
    ) -> CospecLM:
        """Build the model from ``key=value,key=value``."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answer each request with the engine, many at a time; first, all of them are checked."""
        texts: list[str] = []
        asked = [self._encode(request) for request in requests]
        if asked:
            prompts, sampling = zip(*asked, strict=True)
            make_rows(self.engine.pair, prompts, sampling, reader=self.engine.reader)
        size = _CHUNKS * self.args.batch_size
        with tqdm(total=len(requests), disable=disable_tqdm, desc="generate_until") as bar:
            for start in range(0, len(requests), size):
                prompts, sampling = zip(*asked[start : start + size], strict=True)
                streams = range(start, start + len(prompts))
                try:
                    rollouts = self.engine.rollouts(
                        prompts, sampling, streams=streams, keep_caches=False
                    )
                except (Exception, GenerationInterrupted) as error:
                    # Our errors, and those for lack of memory, carry the finished completions.
                    self._cache(requests[start:], getattr(error, "completions", {}).items())
                    raise
                done = [rollout.completion for rollout in rollouts]
                self._cache(requests[start:], enumerate(done))
                texts += [completion.text for completion in done]
                self.stats += sum((completion.stats for completion in done), Stats())
                bar.update(len(done))
        return texts

    def _cache(self, requests: Sequence[Instance], done: Iterable[tuple[int, Completion]]) -> None:
        """Hand answers to the harness's cache, each with the place of its request."""
        for i, completion in done:
            self.cache_hook.add_partial("generate_until", requests[i].args, completion.text)

    def _encode(self, request: Instance) -> tuple[list[int], SamplingConfig]:
        """Token ids, cut on the left if they leave no room for an answer, and settings.

        Raises:
            ConfigError: An answer alone is too long for the context, or a setting is not taken.
        """
        context, generation_kwargs = request.args
        sampling = sampling_config(
            generation_kwargs,
            default_max_new_tokens=self.max_gen_toks,
            stop_token_ids=() if self.eot_token_id is None else (self.eot_token_id,),
            seed=self.args.seed,
        )
        for note in overruled(generation_kwargs):
            self._note(note)
        limit = self.engine.context_length
        room = limit - sampling.max_new_tokens
        if room < 1:
            raise ConfigError(
                f"the task asks for {sampling.max_new_tokens} new tokens, and the context holds "
                f"{limit}; lower it with --gen_kwargs max_gen_toks=N."
            )
        ids: list[int] = self.tok_encode(context)
        if len(ids) > room:
            self._note(
                f"prompts longer than the context less the answer are cut on the left (first one: "
                f"{len(ids)} tokens to {room})"
            )
        return ids[-room:], sampling

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return log-likelihoods of the target alone."""
        self._note_target()
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm)
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return log-likelihoods of the target alone."""
        self._note_target()
        found: list[float] = super().loglikelihood_rolling(requests, disable_tqdm)
        return found

    def _note_target(self) -> None:
        self._note(
            "log-likelihoods are the target's alone: nothing is generated, so that draft and "
            "arbiter have no part in them"
        )

    def _note(self, text: str) -> None:
        """Log a note, unless it was logged before."""
        if text not in self._noted:
            self._noted.add(text)
            _log.warning("note: %s", text)

    def get_model_info(self) -> dict[str, Any]:  # Any: a JSON object
        """Describe the pair, the arbiter and its counts, for the harness's result files."""
        pair, stats = self.engine.pair, self.stats
        return {
            "model_num_parameters": num_weights(pair.target),
            "model_dtype": str(pair.target.dtype),
            "draft_num_parameters": num_weights(pair.draft_model),
            "pair_fingerprint": pair.fingerprint,
            "arbiter": self.engine.arbiter.name,
            "num_speculative_tokens": self.engine.num_speculative_tokens,
            "generation_stats": stats.to_dict(),
        }
