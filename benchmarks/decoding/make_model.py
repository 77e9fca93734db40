"""Write a model folder with random weights: the shape of SmolLM2-360M, the tokenizer of another folder."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
SEED = 0


def main() -> None:
    """Draw the weights, and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--like", type=Path, required=True, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args()
    torch.manual_seed(SEED)
    config = LlamaConfig.from_pretrained(
        options.like,
        hidden_size=960,
        intermediate_size=2560,
        num_hidden_layers=32,
        num_attention_heads=15,
        num_key_value_heads=5,
        head_dim=64,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(options.out)
    for name in TOKENIZER_FILES:
        shutil.copyfile(options.like / name, options.out / name)


if __name__ == "__main__":
    main()
