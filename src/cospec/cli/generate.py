"""``cospec generate``: complete prompts from the command line or a file."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from cospec.cli.common.options import DecodeOptions, OutputOptions, PairOptions
from cospec.cli.common.run import Run
from cospec.config import SamplingConfig
from cospec.errors import ConfigError, GenerationInterrupted, check_least
from cospec.results import Json, parse_json, write_text
from cospec.text import typed, visible

if TYPE_CHECKING:
    from cospec.models import ModelPair
    from cospec.types import Completion, Delta

_SHOWN = (
    "num_tokens",
    "tokens_per_s",
    "mean_acceptance_length",
    "draft_acceptance_rate",
    "num_strict_accepts",
    "num_overrides",
    "num_mismatches",
    "num_target_forwards",
)


@dataclass(frozen=True)
class PromptOptions:
    """Prompts."""

    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A prompt; may be given several times."""
    file: Path | None = None
    """A file of prompts: .jsonl, else text with one prompt a line."""
    field: tyro.conf.Suppress[str] = "prompt"
    """The field of a .jsonl line that holds the prompt."""
    num_prompts: tyro.conf.Suppress[int | None] = None
    """Take only this many prompts from the file."""
    template: tyro.conf.Suppress[str] = "{prompt}"
    r"""Text around each prompt, such as '{prompt}\nAnswer:'; \n is a line break, \\ a backslash."""
    chat: bool | None = None
    """Use the target's chat template. By default if it has one."""
    system: str | None = None
    """System message of the chat."""

    def read(self) -> list[str]:
        """The prompts, templates filled in.

        Raises:
            ConfigError: There is no prompt, num_prompts is below 1, it or `field` is given
                without a file, the file does not fit, or a system message has no chat.
        """
        if self.system is not None and self.chat is False:
            raise self._no_chat("--chat is False")
        check_least(1, num_prompts=self.num_prompts)
        prompts = list(self.prompt)
        if self.num_prompts is not None and self.file is None:
            raise ConfigError(
                f"num_prompts is {self.num_prompts}, and there is no file to take them from; "
                "pass --file FILE, or leave it out."
            )
        if self.field != "prompt" and (self.file is None or self.file.suffix != ".jsonl"):
            raise ConfigError(
                f"field is {self.field!r}, and there is no .jsonl file to take it from; pass "
                "--file FILE.jsonl, or leave it out."
            )
        if self.file is not None:
            prompts += _read_file(self.file, self.field)[: self.num_prompts]
        if not prompts:
            raise ConfigError("there is no prompt; pass --prompt TEXT or --file FILE.")
        if "{prompt}" not in self.template:
            raise ConfigError(f"template is {self.template!r}; it must hold {{prompt}}.")
        template = typed(self.template)
        return [template.replace("{prompt}", prompt) for prompt in prompts]

    def encode(self, pair: ModelPair) -> list[str | list[int]]:
        """The prompts as the engine takes them.

        Raises:
            ConfigError: As in `read`; or a system message is given, and the target has no chat
                template.
        """
        assert pair.tokenizer is not None
        prompts = self.read()
        if not (bool(pair.tokenizer.chat_template) if self.chat is None else self.chat):
            if self.system is not None:
                raise self._no_chat("the target has no chat template")
            return list(prompts)
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [pair.encode_chat([*system, {"role": "user", "content": p}]) for p in prompts]

    def _no_chat(self, reason: str) -> ConfigError:
        return ConfigError(
            f"system is {self.system!r}, and {reason}: a system message is part of a chat; leave "
            "it out, or write it into the template."
        )


@dataclass(frozen=True)
class Generate:
    """Complete prompts with a draft, a target and an arbiter."""

    prompts: PromptOptions = field(default_factory=PromptOptions)
    pair: PairOptions = field(default_factory=PairOptions)
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(seed=0))
    output: OutputOptions = field(default_factory=OutputOptions)
    trace: Path | None = None
    """Write one JSON line a prompt with every block and mismatch."""

    def run(self) -> None:
        """Generate, show and write."""
        from cospec.arbiters import load_arbiter
        from cospec.arbiters.learned import notes_on
        from cospec.engine import Engine

        run = Run("generate", self.output, files=(self.trace,))
        self.prompts.read()
        spec = self.pair.find_arbiter(self.decode.arbiter)
        pair = self.pair.load(needs_draft="model" in self.decode.drafter)
        arbiter = load_arbiter(spec, pair)
        decode = self.decode.for_arbiters([arbiter])
        for note in (*pair.notes, *notes_on(arbiter, decode, self.sampling)):
            print(f"note: {visible(note)}", file=sys.stderr)
        engine = Engine(pair, arbiter, decode, keep_trace=self.trace is not None)
        prompts = self.prompts.encode(pair)
        done: dict[int, Completion] = {}
        sampling = replace(self.sampling, stop=tuple(map(typed, self.sampling.stop)))
        deltas = _Timed(engine.stream(prompts, sampling))
        with run.log(replace(self, decode=decode), pair, {self.decode.arbiter: arbiter}):
            try:
                if len(prompts) == 1:
                    _stream_one(deltas, pair, done, is_kept=bool(self.output.json or self.trace))
                else:
                    _stream_many(deltas, len(prompts), done)
            except KeyboardInterrupt:
                raise GenerationInterrupted(done) from None
            finally:
                if done:
                    self._write(run, done, len(prompts), deltas.seconds)

    def _write(
        self, run: Run, done: dict[int, Completion], num_prompts: int, seconds: float
    ) -> None:
        """Print the totals; write the finished completions, even after an interrupt."""
        from cospec.types import Stats

        rows = [done[i] for i in sorted(done)]
        totals = sum((c.stats for c in rows), Stats()).to_dict()
        rate = round(totals["num_tokens"] / seconds, 3)
        totals |= {"seconds": round(seconds, 3), "tokens_per_s": rate}
        run.write(
            num_prompts=num_prompts,
            num_finished=len(rows),
            totals=totals,
            rows=[_row(c, self.decode.arbiter) for c in rows],
        )
        if self.trace is not None:
            write_text(self.trace, "".join(json.dumps(c.to_dict()) + "\n" for c in rows))
        summary = "  ".join(f"{name} {totals[name]:.5g}" for name in _SHOWN)
        print(f"{len(rows)}/{num_prompts} prompts  {summary}", file=sys.stderr)


def _read_file(path: Path, field_name: str) -> list[str]:
    """Read the prompts of a file.

    Raises:
        ConfigError: The file is missing or a line does not fit.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}; pass a text or .jsonl file.") from None
    lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    if path.suffix != ".jsonl":
        return [line for _, line in lines]
    prompts = []
    for i, line in lines:
        try:
            prompt = parse_json(line)[field_name]
            if isinstance(prompt, bool) or not isinstance(prompt, str | int | float):
                raise TypeError
            prompts.append(str(prompt))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}, line {i} has no field {field_name!r} with a text "
                f"({type(error).__name__}); every line must be a JSON object with it; another "
                'field is --config \'{"field": "NAME"}\'.'
            ) from None
    return prompts


def _row(completion: Completion, arm: str) -> Json:
    stats = completion.stats.to_dict()
    return {
        "id": completion.index,
        "arm": arm,
        "finish_reason": completion.finish_reason,
        "text": completion.text,
    } | stats


class _Timed:
    """The deltas of a stream, with the seconds that it took to produce them."""

    def __init__(self, stream: Iterator[Delta]) -> None:
        self._stream, self.seconds = stream, 0.0

    def __iter__(self) -> Iterator[Delta]:
        return self

    def __next__(self) -> Delta:
        start = time.perf_counter()
        try:
            return next(self._stream)
        finally:
            self.seconds += time.perf_counter() - start


def _stream_one(
    deltas: Iterable[Delta], pair: ModelPair, done: dict[int, Completion], *, is_kept: bool
) -> None:
    """Show one completion as it comes, in colour where the terminal has it.

    Args:
        deltas: Deltas of the completion.
        pair: The models.
        done: Mapping that gets the completion.
        is_kept: Whether to finish it even if nobody reads the output, since it goes to a file.
    """
    from cospec.cli.common.progress import QuietConsole
    from cospec.cli.views.paint import LEGEND, Painter

    assert pair.tokenizer is not None
    console, painter = QuietConsole(highlight=False, soft_wrap=True), Painter(pair.tokenizer)
    for delta in deltas:
        if delta.completion:
            done[delta.index] = delta.completion
        console.print(painter.paint(delta), end="")
        if console.quiet and not is_kept:
            break
    console.print()
    if console.is_terminal:
        console.print(LEGEND)


def _stream_many(deltas: Iterable[Delta], num_prompts: int, done: dict[int, Completion]) -> None:
    """Complete many prompts with their progress on standard error, then print them in order."""
    from cospec.cli.common.progress import Progress

    num_tokens = 0
    with Progress(num_prompts, "prompts") as progress:
        for delta in deltas:
            num_tokens += len(delta.token_ids)
            if delta.completion:
                done[delta.index] = delta.completion
            progress.update(len(done), f"{num_tokens} tokens")
    for i in sorted(done):
        print(f"--- {i} ({done[i].finish_reason})\n{visible(done[i].text)}")
