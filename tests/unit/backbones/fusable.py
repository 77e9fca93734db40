"""Small models of the architectures whose layers can be fused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lushan.backbones import native
from tests.tiny import write_tiny

needs_library = pytest.mark.skipif(
    bool(native.why_missing()), reason="no library of our own on this machine"
)
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "head_dim": 32,
}
OWN_SIZES: dict[str, dict[str, Any]] = {
    "qwen2": {"num_attention_heads": 2, "num_key_value_heads": 1},
    "mistral": {"sliding_window": 4},
    "gemma3_text": {
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}
FUSED = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text")


def sharp(model_type: str, folder: Path, **sizes: object) -> Path:
    """Write a model whose layers add much to each other."""
    write_tiny(model_type, folder, **(SIZES | OWN_SIZES.get(model_type, {}) | sizes))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for each in model.parameters():
            spread = 0.15 if each.dim() > 1 else 0.3
            each.add_(spread * torch.randn(each.shape, generator=generator))
    model.save_pretrained(folder)
    return folder
