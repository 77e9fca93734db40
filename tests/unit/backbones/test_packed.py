"""Weights that are packed for answering, by our own products and by those of torch."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lushan.backbones import native, packed
from lushan.backbones.heads import vocabulary_logits
from lushan.backbones.load import Backbone, WeightForm, load_backbone
from lushan.backbones.packed import (
    PackedEmbedding,
    PackedLinear,
    choose_weights,
    describe_weights,
    pack_weights,
    weight_bytes,
)
from lushan.data.batching import pack
from lushan.errors import SettingError
from lushan.records import Features
from tests.conftest import MakeTiny

LARGEST_ERROR: dict[WeightForm, float] = {"bf16": 0.004, "int8": 0.01, "int4": 0.12}
"""Of a product with normal numbers, as a share of its norm."""


@pytest.fixture(params=["native", "torch"])
def maker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who multiplies."""
    if request.param == "torch":
        monkeypatch.setattr(native, "why_missing", lambda: "it is a test")
    elif reason := native.why_missing():
        pytest.skip(reason)
    return request.param


def matrix(num_outputs: int, num_inputs: int) -> Tensor:
    generator = torch.Generator().manual_seed(num_outputs + num_inputs)
    return torch.randn(num_outputs, num_inputs, generator=generator).mul_(0.05).bfloat16()


def error_of(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("num_rows", [1, 4, 6, 8, 9, 33])
@pytest.mark.parametrize("form", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("shape", [(96, 64), (37, 70)])
def test_products_are_near_those_of_the_exact_weights(
    form: WeightForm, shape: tuple[int, int], num_rows: int, maker: str
) -> None:
    if (form, maker) == ("int4", "torch"):
        pytest.skip("refused by `choose_weights`")
    weight_OI, bias_O = matrix(*shape), matrix(shape[0], 1)[:, 0]
    product = packed._pack(weight_OI, form)
    inputs_MI = torch.randn(num_rows, shape[1], generator=torch.Generator().manual_seed(1))
    inputs_MI = inputs_MI.bfloat16()
    exact_MO = inputs_MI.double() @ weight_OI.double().T + bias_O.double()
    assert error_of(product.forward(inputs_MI, bias_O), exact_MO) < LARGEST_ERROR[form]
    assert error_of(product.logits(inputs_MI, bias_O), exact_MO) < LARGEST_ERROR[form]
    rounded_OI = product.rows(torch.arange(shape[0])).double()
    same_MO = inputs_MI.double() @ rounded_OI.T + bias_O.double()
    assert error_of(product.logits(inputs_MI, bias_O), same_MO) < 0.005
    back_MI = product.backward(exact_MO.bfloat16())
    assert error_of(back_MI, exact_MO @ weight_OI.double()) < 1.5 * LARGEST_ERROR[form]


@pytest.mark.parametrize("form", ["bf16", "int8", "int4"])
def test_no_rows_give_none(form: WeightForm, maker: str) -> None:
    if (maker, form) == ("torch", "int4"):
        pytest.skip("refused by `choose_weights`")
    product = packed._pack(matrix(96, 64), form)
    assert product.forward(torch.empty(0, 64, dtype=torch.bfloat16), None).shape == (0, 96)


@pytest.mark.usefixtures("maker")
def test_8_bits_round_to_the_nearest_of_255_numbers() -> None:
    weight_OI = matrix(32, 64)
    rows_OI = packed._pack(weight_OI, "int8").rows(torch.arange(32)).double()
    step_O = weight_OI.abs().amax(dim=1).double() / 127
    largest_O = (rows_OI - weight_OI.double()).abs().amax(dim=1)
    assert (largest_O <= step_O * (0.5 + 127 / 256)).all()  # the rows are told in bfloat16


def test_a_row_of_zeros_stays_so(maker: str) -> None:
    weight_OI = matrix(16, 32)
    weight_OI[3] = 0
    forms: list[WeightForm] = ["int8"] if maker == "torch" else ["int8", "int4"]
    for form in forms:
        found_MO = packed._pack(weight_OI, form).forward(matrix(1, 32), None)
        assert found_MO[0, 3] == 0
        assert found_MO.isfinite().all()


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


@pytest.mark.skipif(bool(native.why_missing()), reason="torch holds bfloat16 twice")
@pytest.mark.parametrize(
    ("form", "num_bytes"),
    [("bf16", 96 * 64 * 2), ("int8", 96 * (64 + 2 * 2)), ("int4", 96 * (32 + 2 * 2))],
)
def test_memory_is_what_the_bits_say(form: WeightForm, num_bytes: int) -> None:
    assert packed._pack(matrix(96, 64), form).num_bytes == num_bytes


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


@pytest.mark.skipif(bool(native.why_missing()), reason="norms are those of torch")
@pytest.mark.parametrize(("model_type", "adds_one"), [("llama", False), ("gemma3_text", True)])
def test_norms_are_those_of_transformers(
    tiny_folder: MakeTiny, model_type: str, adds_one: bool
) -> None:
    backbone = load_backbone(tiny_folder(model_type), purpose="language", precision="bf16")
    norm = type(backbone.core.norm)(64, 1e-5).to(torch.bfloat16)
    norm.weight.data = matrix(64, 1)[:, 0] * 20 + 1
    fused = packed._fused_norm(norm)
    assert fused is not None
    assert fused._adds_one is adds_one
    inputs = matrix(5, 64)[None] * torch.tensor([1e-3, 1, 5, 50, 3e4])[:, None]
    with torch.inference_mode():
        found, expected = fused(inputs.bfloat16()), norm(inputs.bfloat16())
    torch.testing.assert_close(found, expected, rtol=0.008, atol=0)


def test_a_norm_that_does_something_else_is_left() -> None:
    class OtherRMSNorm(nn.Module):
        eps = 1e-6

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(32, dtype=torch.bfloat16))

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs / inputs.abs().amax(dim=-1, keepdim=True)

    assert packed._fused_norm(OtherRMSNorm()) is None
    assert packed._fused_norm(nn.LayerNorm(32)) is None


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


def test_gradients_pass_through_packed_layers() -> None:
    layer = nn.Linear(64, 32).to(torch.bfloat16)
    packed_layer = packed._packed_layer(deepcopy(layer), "bf16")
    inputs = matrix(3, 64)
    found, expected = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    packed_layer(found).float().square().sum().backward()
    layer(expected).float().square().sum().backward()
    torch.testing.assert_close(found.grad, expected.grad, rtol=0.02, atol=0.002)


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
