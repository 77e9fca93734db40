"""Adapters computed in one piece give what PEFT's own layers give, forward and backward."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from lushan.backbones.adapters import attach
from lushan.backbones.heads import class_logits
from lushan.backbones.load import Backbone, load_backbone
from lushan.backbones.lora import FrozenProduct, lays_out
from lushan.data.batching import pack
from lushan.records import Batch, Features
from tests.conftest import MakeTiny
from tests.tiny import TINY_TYPES

DOCUMENTS = ((5, 9, 9, 31), (7,), (9, 8, 7, 6, 5, 5))


def with_adapters(folder: Any, *, dropout: float = 0.0) -> Backbone:  # noqa: ANN401
    backbone = load_backbone(folder, purpose="classify", labels=("no", "yes"))
    attach(backbone, method="lora", rank=3, dropout=dropout)
    generator = torch.Generator().manual_seed(1)
    for name, weight in backbone.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1, generator=generator)
    return backbone


def as_peft_computes(backbone: Backbone) -> Backbone:
    plain = deepcopy(backbone)
    for layer in plain.model.modules():
        vars(layer).pop("forward", None)
    return plain


def batch() -> Batch:
    return pack([Features(ids, place="", example_index=n) for n, ids in enumerate(DOCUMENTS)])


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Sums are taken in another order, and norms enlarge what that changes."""
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def run(backbone: Backbone, *, training: bool) -> tuple[Tensor, dict[str, Tensor]]:
    backbone.model.train(training)
    backbone.model.zero_grad()
    documents = batch()
    torch.manual_seed(5)
    logits_NC = class_logits(backbone.plain_model, backbone.hidden_states(documents), documents)
    logits_NC.square().sum().backward()
    named = backbone.model.named_parameters()
    return logits_NC.detach(), {name: w.grad for name, w in named if w.grad is not None}


@pytest.mark.parametrize("model_type", TINY_TYPES)
@pytest.mark.parametrize("training", [False, True])
def test_answers_and_gradients_are_those_of_peft(
    model_type: str, training: bool, tiny_folder: MakeTiny
) -> None:
    backbone = with_adapters(tiny_folder(model_type))
    plain = as_peft_computes(backbone)
    num_replaced = sum("forward" in vars(layer) for layer in backbone.model.modules())
    assert num_replaced >= 4 * 2
    (ours, our_gradients), (theirs, gradients) = (
        run(backbone, training=training),
        run(plain, training=training),
    )
    assert_close(ours, theirs)
    assert our_gradients.keys() == gradients.keys()
    assert len(gradients) >= 2 * num_replaced
    for name, each in gradients.items():
        assert_close(our_gradients[name], each)


def test_dropout_stands_in_front_of_the_adapter_alone_and_only_in_training(
    tiny_folder: MakeTiny,
) -> None:
    backbone = with_adapters(tiny_folder("llama"), dropout=0.5)
    plain = as_peft_computes(backbone)
    for training in (True, False):
        (ours, our_gradients), (theirs, gradients) = (
            run(backbone, training=training),
            run(plain, training=training),
        )
        assert_close(ours, theirs)
        for name, each in gradients.items():
            assert_close(our_gradients[name], each)


def test_model_that_was_moved_multiplies_where_it_is(tiny_folder: MakeTiny) -> None:
    backbone = with_adapters(tiny_folder("llama"))
    run(backbone, training=False)
    layer = next(each for each in backbone.model.modules() if "forward" in vars(each))
    layer.to("meta")
    rows_TI = torch.empty(3, layer.in_features, device="meta")
    assert layer(rows_TI).device.type == "meta"


def test_adapters_can_still_be_left_out_and_merged(tiny_folder: MakeTiny) -> None:
    backbone = with_adapters(tiny_folder("llama"))
    with_them, _ = run(backbone, training=False)
    backbone.model.merge_adapter()
    merged, _ = run(backbone, training=False)
    assert_close(merged, with_them)
    backbone.model.unmerge_adapter()
    base = load_backbone(tiny_folder("llama"), purpose="classify", labels=("no", "yes"))
    with backbone.model.disable_adapter(), torch.no_grad():
        without_TD = backbone.hidden_states(batch())
        assert_close(without_TD, base.hidden_states(batch()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
def test_frozen_product_is_the_product_in_both_directions(
    dtype: torch.dtype, transposed: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(24, 40, generator=generator).to(dtype)
    weight_OI = weight_OI.T if transposed else weight_OI
    product = FrozenProduct(weight_OI)
    for num_tokens in (1, 7, 500):
        inputs = torch.randn(num_tokens, weight_OI.shape[1], generator=generator).to(dtype)
        gradient = torch.randn(weight_OI.shape[0], num_tokens, generator=generator).to(dtype).T
        bias = torch.ones(weight_OI.shape[0], dtype=dtype)
        torch.testing.assert_close(
            product.forward(inputs, bias), torch.nn.functional.linear(inputs, weight_OI, bias)
        )
        torch.testing.assert_close(product.backward(gradient), gradient @ weight_OI)


def test_weights_are_laid_out_in_bf16_on_a_processor_that_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight_OI = torch.ones(16, 16, dtype=torch.bfloat16)
    packs = lays_out("cpu", torch.bfloat16)
    assert FrozenProduct(weight_OI).num_bytes == packs * weight_OI.nbytes
    assert FrozenProduct(weight_OI.float()).num_bytes == 0
    assert not lays_out("cuda", torch.bfloat16)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not lays_out("cpu", torch.bfloat16)
