"""The loss over a vocabulary and its gradients are torch's, however the positions are cut up."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from lushan.backbones import vocabulary_loss as module
from lushan.backbones.heads import vocabulary_logits
from lushan.backbones.load import load_backbone
from lushan.backbones.vocabulary_loss import vocabulary_loss
from tests.conftest import MakeTiny
from tests.tiny import TINY_VOCABULARY

assert_close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)


def loss_and_gradients(
    model: PreTrainedModel, loss: Callable[[Tensor], Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    hidden_KD = model.base_model(input_ids=torch.tensor([range(5, 25)])).last_hidden_state[0]
    found = loss(hidden_KD)
    (3 * found).backward()
    named = model.named_parameters()
    return found.detach(), {name: w.grad.clone() for name, w in named if w.grad is not None}


@pytest.mark.parametrize("frozen", ["nothing", "vocabulary", "all but the vocabulary"])
@pytest.mark.parametrize("most_rows", [1, 7, 100])
def test_vocabulary_loss_and_its_gradients_are_torchs_however_it_is_cut_up(
    frozen: str, most_rows: int, language_model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_BYTES", most_rows * 4 * TINY_VOCABULARY)
    monkeypatch.setattr(module, "_NUMBERS_IN_CACHE", 3 * TINY_VOCABULARY)
    layer: Any = language_model.get_output_embeddings()
    vocabulary = layer.weight
    for weight in language_model.parameters():
        weight.requires_grad_(
            frozen == "nothing" or (weight is vocabulary) == (frozen == "all but the vocabulary")
        )
    targets_K, weights_K = torch.arange(20), torch.linspace(0.5, 2, 20)
    expected = loss_and_gradients(
        language_model,
        lambda hidden_KD: (
            functional.cross_entropy(
                vocabulary_logits(language_model, hidden_KD), targets_K, reduction="none"
            )
            @ weights_K
        ),
    )
    found = loss_and_gradients(
        language_model,
        lambda hidden_KD: vocabulary_loss(language_model, hidden_KD, targets_K, weights_K),
    )
    assert found[1].keys() == expected[1].keys()
    assert_close(found, expected)


def test_table_of_logits_is_never_larger_than_allowed(
    tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_backbone(tiny_folder("llama"), purpose="language").plain_model
    monkeypatch.setattr(module, "_MOST_BYTES", 7 * 4 * TINY_VOCABULARY)
    sizes: list[int] = []
    linear = functional.linear

    def watched(hidden_KD: Tensor, *weights: Tensor) -> Tensor:
        sizes.append(len(hidden_KD))
        return linear(hidden_KD, *weights)

    monkeypatch.setattr(module.functional, "linear", watched)
    hidden_KD = torch.ones(20, 16, requires_grad=True)
    vocabulary_loss(model, hidden_KD, torch.arange(20), torch.ones(20)).backward()
    assert sizes == [7, 7, 6]


def test_nothing_is_kept_where_no_gradient_is_asked_for(
    language_model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    into_gradients = module._into_gradients

    def watched(table_PV: Tensor, form: Any, *, trains: bool) -> Tensor:  # noqa: ANN401
        asked.append(trains)
        return into_gradients(table_PV, form, trains=trains)

    monkeypatch.setattr(module, "_into_gradients", watched)
    hidden_KD, targets_K = torch.randn(20, 16), torch.arange(20)
    trained = vocabulary_loss(language_model, hidden_KD, targets_K, torch.ones(20))
    with torch.inference_mode():
        plain = vocabulary_loss(language_model, hidden_KD, targets_K, torch.ones(20))
    assert asked == [True, False]
    torch.testing.assert_close(plain, trained.detach(), rtol=0, atol=0)


def test_loss_of_a_bf16_model_is_that_of_its_logits(tiny_folder: MakeTiny) -> None:
    model = load_backbone(tiny_folder("llama"), purpose="language", precision="bf16").plain_model
    hidden_KD = torch.randn(20, 16, dtype=torch.bfloat16, requires_grad=True)
    targets_K, weights_K = torch.arange(20), torch.linspace(0.5, 2, 20)
    losses_K = functional.cross_entropy(
        vocabulary_logits(model, hidden_KD), targets_K, reduction="none"
    )
    expected, found = losses_K @ weights_K, vocabulary_loss(model, hidden_KD, targets_K, weights_K)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(each, hidden_KD) for each in (found, expected)), rtol=0.02, atol=1e-3
    )
