"""Tokenizer, architectures and training batches of the bundled pairs.

Knows the shape of the models and how problems become padded tensors. All bundled models are plain
Hugging Face Llama models over one tokenizer: a deep narrow target, because on a CPU the time of a
single-token step is set by the number of layers, and a draft of two layers.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from random import Random
from unittest.mock import patch

import torch
from bundled_data import Problem, training_chunk
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB_SIZE = 2_048
MAX_LENGTH = 512
PAD, EOS = "<pad>", "<eos>"
TOKENIZER_SEED = 1_100_000_000  # of its training text


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Shape of one model."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    init_seed: int

    def build(self) -> LlamaForCausalLM:
        """A freshly initialised float32 model."""
        torch.manual_seed(self.init_seed)
        config = LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_heads,
            max_position_embeddings=MAX_LENGTH,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
            attn_implementation="eager",  # faster than SDPA here: short rows on a CPU
        )
        return LlamaForCausalLM(config).float()


def train_tokenizer(num_chunks: int = 3) -> PreTrainedTokenizerFast:
    """Byte-level BPE on text of all tasks; every digit is a token of its own.

    Digits are cut off first, so a space before a number is a token too and a prompt that ends in
    ``Answer:`` never shares a token with what follows it.
    """
    texts = [
        f"{problem.prompt} {problem.solution}"
        for chunk in range(num_chunks)
        for mixture in ("sample", "broad")
        for problem in training_chunk(mixture, TOKENIZER_SEED, chunk)
    ]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        padding_side="left",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    return tokenizer


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Right-padded rows: ids (B, T) and the loss weight of predicting each of them (B, T)."""

    ids: Tensor
    weights: Tensor
    num_tokens: int  # without padding


def encode(
    tokenizer: PreTrainedTokenizerFast, rows: list[Problem], prompt_weight: float
) -> list[tuple[list[int], list[float]]]:
    """Ids and loss weights of ``prompt + " " + solution + eos``; over-long rows are dropped.

    In a drill only what follows an equals sign has full weight: the left sides are random.
    """
    core = tokenizer.backend_tokenizer
    prompts = core.encode_batch([row.prompt for row in rows])
    solutions = core.encode_batch([" " + row.solution for row in rows])
    encoded = []
    for row, prompt, solution in zip(rows, prompts, solutions, strict=True):
        ids = [*prompt.ids, *solution.ids, tokenizer.eos_token_id]
        weights = [prompt_weight] * len(prompt.ids) + [1.0] * (len(solution.ids) + 1)
        if row.is_drill:
            weights = [prompt_weight] * len(prompt.ids)
            weights += _result_weights(solution.tokens, prompt_weight)
            weights.append(prompt_weight)
        if len(ids) <= MAX_LENGTH:
            encoded.append((ids, weights))
    return encoded


def _result_weights(tokens: list[str], other_weight: float) -> list[float]:
    """1 between an equals sign and the end of its line (included), ``other_weight`` elsewhere."""
    weights, is_result = [], False
    for token in tokens:
        weights.append(1.0 if is_result else other_weight)
        if "=" in token:
            is_result = True
        elif "\u010a" in token:  # how byte-level BPE spells a newline
            is_result = False
    return weights


def collate(rows: list[tuple[list[int], list[float]]]) -> MicroBatch:
    """Pad on the right: a causal model then needs no mask, and padding has weight 0."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)  # (B, T)
    weights = torch.zeros(len(rows), width)
    for index, (row_ids, row_weights) in enumerate(rows):
        ids[index, : len(row_ids)] = torch.tensor(row_ids)
        weights[index, : len(row_ids)] = torch.tensor(row_weights)
    return MicroBatch(ids, weights, sum(len(row_ids) for row_ids, _ in rows))


def grouped(
    rows: list[tuple[list[int], list[float]]], tokens_per_micro: int
) -> list[list[tuple[list[int], list[float]]]]:
    """Cut rows, sorted by length, into groups of at most as many tokens as a micro-batch."""
    groups: list[list[tuple[list[int], list[float]]]] = [[]]
    for row in sorted(rows, key=lambda row: len(row[0])):
        if (len(groups[-1]) + 1) * len(row[0]) > tokens_per_micro and groups[-1]:
            groups.append([])
        groups[-1].append(row)
    return groups


def batches(
    tokenizer: PreTrainedTokenizerFast,
    mixture: str,
    base_seed: int,
    *,
    start: tuple[int, int],
    tokens_per_micro: int,
    num_micro: int,
    prompt_weight: float,
) -> Iterator[tuple[tuple[int, int], list[MicroBatch]]]:
    """Endless training batches from position ``start`` = (chunk, batch) on.

    Within a chunk rows are sorted by length and cut
    into micro-batches; a batch is ``num_micro`` of them drawn from different lengths, so that it
    does not consist of one or two templates.

    Yields:
        The position of the batch after this one, and the micro-batches.
    """
    chunk, skip = start
    while True:
        rows = encode(tokenizer, training_chunk(mixture, base_seed, chunk), prompt_weight)
        groups = grouped(rows, tokens_per_micro)
        Random(base_seed + chunk).shuffle(groups)
        num_batches = len(groups) // num_micro
        for index in range(skip, num_batches):
            chosen = islice(groups, index * num_micro, (index + 1) * num_micro)
            following = (chunk, index + 1) if index + 1 < num_batches else (chunk + 1, 0)
            yield following, [collate(group) for group in chosen]
        chunk, skip = chunk + 1, 0


def has_bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16; else it is ten times slower than float32."""
    return torch.cpu._is_avx512_bf16_supported()


def half_precision() -> torch.autocast:
    """Matrix products in bfloat16 where the processor has it."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_bfloat16())


def orthogonalizing() -> AbstractContextManager[object]:
    """Let torch's Muon orthogonalise in float32, not in bfloat16, where the processor lacks it."""
    if has_bfloat16():
        return nullcontext()
    return patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone)


def weighted_loss(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Sum over the batch of weight x negative log-likelihood of each next token (a scalar)."""
    with half_precision():
        logits = model(input_ids=batch.ids, use_cache=False).logits  # (B, T, V)
    losses = nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none"
    )
    return (losses * batch.weights[:, 1:].flatten()).sum()


@torch.no_grad()
def teacher_forced(model: nn.Module, rows: list[MicroBatch]) -> float:
    """Share of problems whose whole reference solution is the model's greedy path.

    A lower bound of its accuracy that needs one forward.
    """
    num_exact, num_rows = 0, 0
    for batch in rows:
        with half_precision():
            choice = model(input_ids=batch.ids, use_cache=False).logits[:, :-1].argmax(-1)
        wrong = (choice != batch.ids[:, 1:]) & (batch.weights[:, 1:] == 1)
        num_exact += int((~wrong.any(-1)).sum())
        num_rows += len(wrong)
    return num_exact / num_rows
