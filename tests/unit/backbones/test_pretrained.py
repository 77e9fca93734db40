"""Weights that are missing, cut, of another shape or not finite are refused by name."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lushan.backbones.load import Purpose, load_backbone
from lushan.errors import ModelError
from tests.tiny import TINY_VOCABULARY

LABELS = ("bad", "fine", "good")


def test_missing_file_of_weights_is_told(own_llama: Path) -> None:
    (own_llama / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"spoilt.*(safetensors|weights)"):
        load_backbone(own_llama, purpose="language")


def test_cut_file_of_weights_is_told(own_llama: Path) -> None:
    file = own_llama / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="spoilt"):
        load_backbone(own_llama, purpose="language")


def test_missing_weight_is_named(own_llama: Path) -> None:
    file = own_llama / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    message = r"Missing or of another shape: (model\.)?layers\.1\.mlp\.up_proj\.weight"
    with pytest.raises(ModelError, match=message):
        load_backbone(own_llama, purpose="classify", labels=LABELS)


def test_weight_of_another_shape_is_named_with_both_shapes(own_llama: Path) -> None:
    file = own_llama / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"] = torch.ones(12)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.norm\.weight \[12\] \(expected \[16\]\)"):
        load_backbone(own_llama, purpose="language")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("purpose", ["classify", "language", "embed"])
def test_weight_that_holds_a_value_that_is_not_finite_is_named(
    purpose: Purpose, value: float, own_llama: Path
) -> None:
    file = own_llama / "model.safetensors"
    weights = load_file(file)
    weights["model.embed_tokens.weight"][TINY_VOCABULARY - 1, 3] = value
    save_file(weights, file, metadata={"format": "pt"})
    message = r"spoilt`: weights are broken: `(model\.)?embed_tokens\.weight` holds values that are"
    with pytest.raises(ModelError, match=message):
        load_backbone(own_llama, purpose=purpose, labels=LABELS)
