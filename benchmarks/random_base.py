"""Bases of a published shape with random weights, made where they are used: for machines without the real ones.

python benchmarks/random_base.py FOLDER --shape llama-1b --tokenizer FOLDER   # saved, to be given as model.source
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

SHAPES: dict[str, dict[str, int]] = {
    "llama-7b": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "llama-1b": {
        "vocab_size": 49152,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "llama-tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def random_base(shape: str, dtype: str, *, pad_id: int = 0, quantization: str | None = None) -> Any:
    """A model of ``shape`` in evaluation mode, the same numbers on every call on one kind of device.

    Args:
        dtype: of the weights; of the products, if they are quantised.
        quantization: a kind of ``llm_adapters.load_model``.
    """
    kind = getattr(torch, dtype)
    config = LlamaConfig(**SHAPES[shape], pad_token_id=pad_id, dtype=dtype)
    torch.manual_seed(0)
    with DEVICE:
        model: Any = LlamaForCausalLM._from_config(config, dtype=kind)
    if quantization is not None:
        from llm_adapters.model.quantised_linears import keep_layout
        from llm_adapters.model.quantization import quantization_config

        weights = model.state_dict()
        del model
        model = LlamaForCausalLM.from_pretrained(
            None, config=config, state_dict=weights, dtype=kind, device_map={"": DEVICE},
            quantization_config=quantization_config(quantization, kind, DEVICE),
        )  # fmt: skip
        for module in model.modules():
            keep_layout(module)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--shape", choices=list(SHAPES), required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tokenizer", required=True)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    random_base(options.shape, options.dtype, pad_id=tokenizer.pad_token_id).save_pretrained(options.folder)
    tokenizer.save_pretrained(options.folder)


if __name__ == "__main__":
    main()
