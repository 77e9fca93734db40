"""Weights that are packed for answering, by our own products and by those of torch."""

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lushan.backbones import native
from lushan.backbones.heads import vocabulary_logits
from lushan.backbones.load import Backbone, WeightForm, load_backbone
from lushan.backbones.packed import (
    choose_weights,
    describe_weights,
    pack_weights,
    weight_bytes,
)
from lushan.backbones.packed_linear import PackedEmbedding, PackedLinear
from lushan.data.batching import pack
from lushan.errors import SettingError
from lushan.records import Features
from tests.conftest import MakeTiny
from tests.unit.backbones.packed_numbers import LARGEST_ERROR, error_of


def hidden_and_logits(backbone: Backbone) -> tuple[Tensor, Tensor]:
    documents = [Features(tuple(range(3, 3 + size)), "", size) for size in (4, 9)]
    with torch.inference_mode():
        hidden_TD = backbone.hidden_states(pack(documents))
        return hidden_TD, vocabulary_logits(backbone.plain_model, hidden_TD)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text", "gpt_neox"])
@pytest.mark.parametrize("form", ["bf16", "int8"])
@pytest.mark.usefixtures("maker")
def test_a_packed_model_answers_nearly_as_before(
    tiny_folder: MakeTiny, model_type: str, form: WeightForm
) -> None:
    backbone = load_backbone(tiny_folder(model_type), purpose="language", precision="bf16")
    before_TD, before_TV = hidden_and_logits(backbone)
    pack_weights(backbone, form)
    after_TD, after_TV = hidden_and_logits(backbone)
    assert error_of(after_TD, before_TD.double()) < 3 * LARGEST_ERROR[form]
    assert error_of(after_TV, before_TV.double()) < 3 * LARGEST_ERROR[form]
    left = {type(each) for each in backbone.core.modules()} & {nn.Linear, Conv1D}
    assert not left
    some_V = torch.tensor([7, 2, 30])
    with torch.inference_mode():
        some = vocabulary_logits(backbone.plain_model, after_TD, some_V)
    assert error_of(some, after_TV[:, some_V].double()) < 0.02


def test_what_is_held_is_told_and_the_unpacked_weights_are_gone(tiny_folder: MakeTiny) -> None:
    backbone = load_backbone(tiny_folder("llama"), purpose="language", precision="bf16")
    largest = max(each.numel() for each in backbone.model.parameters())
    pack_weights(backbone, "int8")
    assert describe_weights(backbone).startswith("Weights are held in int8: ")
    assert max(each.numel() for each in backbone.model.parameters()) < largest
    assert not [n for n, each in backbone.model.named_parameters() if each.dim() > 1]
    products = {
        id(x.product): x.product.num_bytes
        for x in backbone.model.modules()
        if hasattr(x, "product")
    }
    norms = sum(each.nbytes for each in backbone.model.parameters())
    assert weight_bytes(backbone.model) == sum(products.values()) + norms


@pytest.mark.parametrize(
    ("model_type", "tied"), [("llama", False), ("gpt2", True), ("gemma3_text", True)]
)
def test_tied_layers_share_one_matrix(model_type: str, tied: bool, tiny_folder: MakeTiny) -> None:
    backbone = load_backbone(tiny_folder(model_type), purpose="language", precision="bf16")
    model = backbone.plain_model
    is_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert is_tied is tied
    pack_weights(backbone, "int8")
    output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert isinstance(output, PackedLinear)
    assert isinstance(embedding, PackedEmbedding)
    assert (output.product is embedding.product) is is_tied


def test_auto_keeps_what_was_measured() -> None:
    assert choose_weights("auto", "bf16") == "bf16"
    assert choose_weights("auto", "fp32") == "fp32"
    assert choose_weights("int8", "fp32") == "int8"


def test_unknown_weights_are_refused_with_the_known_ones() -> None:
    with pytest.raises(SettingError, match="one of auto, fp32, bf16, int8, int4, got `int3`"):
        choose_weights("int3", "bf16")


def test_4_bits_are_refused_where_nothing_computes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "why_missing", lambda: "there is no C++ compiler here")
    with pytest.raises(SettingError, match=r"int4.*no C\+\+ compiler here\. Use `int8`"):
        choose_weights("int4", "bf16")
