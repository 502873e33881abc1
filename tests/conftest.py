"""Tiny pairs of real architectures, and table models whose law is known exactly."""

from __future__ import annotations

import copy
import itertools
import os
from typing import Any

import pytest
import torch
from hypothesis import settings
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import CausalLMOutput

from cospec.models import ModelPair

settings.register_profile("fixed", derandomize=True)  # the same examples in every run
settings.load_profile("fixed")

torch.set_num_threads(1)  # tiny models; more threads only get in each other's way
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same for the processes that tests start

VOCAB = 61
EOS = 5
CONTEXT = 192

_COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=CONTEXT,
    initializer_range=0.4,
)
_GQA = dict(num_key_value_heads=2, head_dim=8)
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _COMMON | _GQA,
    "qwen2": _COMMON | dict(num_key_value_heads=2),
    "qwen3": _COMMON | _GQA,
    "mistral": _COMMON | _GQA | dict(sliding_window=7),
    "gemma2": _COMMON | _GQA | dict(sliding_window=7, tie_word_embeddings=False),
    "gemma3_text": _COMMON
    | _GQA
    | dict(sliding_window=7, sliding_window_pattern=2, tie_word_embeddings=False),
    "phi3": _COMMON | _GQA | dict(pad_token_id=0, sliding_window=9),
    "gpt_neox": _COMMON,
    "gpt2": dict(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, initializer_range=0.4
    ),
    "opt": dict(
        vocab_size=VOCAB,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        init_std=0.4,
        pad_token_id=0,
    ),
}


def random_model(family: str, seed: int = 2, **changes: Any) -> PreTrainedModel:
    """A float32 model of a real class with random weights."""
    config = AutoConfig.for_model(
        family, **FAMILIES[family] | dict(bos_token_id=1, eos_token_id=EOS) | changes
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(eos_token_id=EOS, pad_token_id=0)
    return model.eval()


def disturbed(model: PreTrainedModel, noise: float, seed: int = 1) -> PreTrainedModel:
    """A copy with noise on its weights: a draft that agrees with `model` now and then."""
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in twin.parameters():
            weight += (
                noise
                * weight.std().nan_to_num(0.0)
                * torch.randn(weight.shape, generator=generator)
            )
    return twin


_PAIRS: dict[str, ModelPair] = {}


def family_pair(family: str) -> ModelPair:
    """A pair of one family, whose draft agrees with its target about half of the time."""
    if family not in _PAIRS:
        target = random_model(family)
        _PAIRS[family] = ModelPair(target, disturbed(target, 0.12))
    return _PAIRS[family]


def some_prompts(num_prompts: int, seed: int = 3) -> list[list[int]]:
    """Prompts of 1 to 21 tokens without end-of-sequence tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = itertools.islice(itertools.cycle([1, 7, 21, 3, 12, 2, 9, 16]), num_prompts)
    return [torch.randint(6, VOCAB, (n,), generator=generator).tolist() for n in lengths]


class TableConfig(PretrainedConfig):
    model_type = "table"

    def __init__(self, vocab_size: int = 4, **kwargs: Any) -> None:
        self.vocab_size = vocab_size
        self.max_position_embeddings = 10**6
        self.num_hidden_layers = 1
        super().__init__(**kwargs)


def last_logits(logits: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """The logits that transformers' models would give for ``logits_to_keep``."""
    if isinstance(logits_to_keep, torch.Tensor):
        return logits[:, logits_to_keep]
    return logits[:, -logits_to_keep:]


class TableModel(PreTrainedModel):
    """A bigram model: the next token's law depends on the last token alone, and is known."""

    config_class = TableConfig

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__(TableConfig(vocab_size=table.shape[-1]))
        self.table = torch.nn.Parameter(table.log())
        self.generation_config = GenerationConfig()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: object = None,
        position_ids: object = None,
        cache: object = None,
        use_cache: bool = False,
        logits_to_keep: int | torch.Tensor = 0,
    ) -> CausalLMOutput:
        logits = self.table[input_ids]
        return CausalLMOutput(logits=last_logits(logits, logits_to_keep))

    def get_output_embeddings(self) -> None:
        return None


def random_table(vocab_size: int, seed: int, sharpness: float = 1.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(vocab_size, vocab_size, generator=generator)).softmax(-1)


@pytest.fixture(scope="session")
def llama_pair() -> ModelPair:
    return family_pair("llama")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 61 tokens that speaks lower-case words, made here."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = ["<pad>", "<bos>", "<unk>", "<a>", "<b>", "<eos>"]
    letters = [*"abcdefghijklmnopqrstuvwxyz", "Ġ", ".", ",", "Ċ", "Ã", "©", "ð", "Ł", "Ļ", "Ĥ"]
    merges = [
        ("Ġ", "a"),
        ("t", "h"),
        ("th", "e"),
        ("Ġ", "the"),
        ("i", "n"),
        ("a", "n"),
        ("an", "d"),
    ]
    merges += [("Ġ", "and"), ("e", "r"), ("o", "n"), ("r", "e"), ("s", "t"), ("o", "u"), ("e", "n")]
    merges += [("o", "r"), ("a", "t"), ("e", "d"), ("i", "s"), ("e", "s")]
    tokens = special + letters + ["".join(pair) for pair in merges]
    assert len(tokens) == VOCAB
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
