"""Write a draft's weights as 8-bit integers, as vLLM reads them on CPUs and GPUs (W8A8).

Usage: python experiments/vllm_speed/quantize_draft.py DRAFT OUT

Weights have a scale for each row, activations one for each token while it runs, so no data is
needed. The output matrix is quantized too. It needs `pip install llmcompressor`, in an environment
of its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Quantize a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("draft", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.draft, dtype=torch.bfloat16)
    if model.config.tie_word_embeddings:  # embeddings stay as they are
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    # vLLM does not take its output matrix for a linear layer unless it is named.
    oneshot(model, recipe=QuantizationModifier(targets=["Linear", "re:.*lm_head"], scheme="W8A8"))
    model.save_pretrained(args.out, save_compressed=True)
    AutoTokenizer.from_pretrained(args.draft).save_pretrained(args.out)


if __name__ == "__main__":
    main()
