"""Settings that save memory change no gradient, in any architecture."""

import pytest
import torch
from torch import Tensor

from lushan.backbones.adapters import Method, attach
from lushan.backbones.heads import class_logits
from lushan.backbones.load import Backbone, load_backbone
from lushan.backbones.trained_layers import compute_layers_twice
from lushan.data.batching import pack
from lushan.records import Batch, Features
from tests.conftest import MakeTiny
from tests.tiny import ENCODER_TYPES, TINY_TYPES

DOCUMENTS = ((5, 9, 9, 31), (7,), (9, 8, 7, 6, 5, 5), (31, 200))
READ = [5, 6, 7, 8, 9, 31, 200]


def batch_of_documents() -> Batch:
    return pack([Features(ids, place="", example_index=n) for n, ids in enumerate(DOCUMENTS)])


def gradients(backbone: Backbone, batch: Batch) -> dict[str, Tensor]:
    """What a loss on the class logits gives every trained weight."""
    backbone.model.zero_grad()
    backbone.model.train()
    torch.manual_seed(0)  # dropout
    hidden_TD = backbone.hidden_states(batch)
    class_logits(backbone.plain_model, hidden_TD, batch).square().sum().backward()
    named = backbone.model.named_parameters()
    return {name: w.grad.to_dense().clone() for name, w in named if w.grad is not None}


@pytest.mark.parametrize("method", ["full", "lora", "top"])
@pytest.mark.parametrize("model_type", TINY_TYPES)
def test_layers_that_are_computed_twice_give_the_same_gradients(
    model_type: str, method: Method, tiny_folder: MakeTiny
) -> None:
    backbone = load_backbone(tiny_folder(model_type), purpose="classify", labels=("no", "yes"))
    attach(backbone, method=method, layers=1)
    batch = batch_of_documents()
    once = gradients(backbone, batch)
    compute_layers_twice(backbone)
    twice = gradients(backbone, batch)
    assert twice.keys() == once.keys()
    for name, each in twice.items():
        torch.testing.assert_close(each, once[name])


def test_backward_pass_still_ends_at_the_first_layer_that_is_trained(tiny_folder: MakeTiny) -> None:
    backbone = load_backbone(tiny_folder("llama"), purpose="classify", labels=("no", "yes"))
    attach(backbone, method="top", layers=1)
    compute_layers_twice(backbone)
    entering: list[bool] = []
    for layer in backbone.layers:
        layer.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0].requires_grad))
    gradients(backbone, batch_of_documents())
    assert entering[:2] == [False, False]


def test_layers_that_are_computed_twice_keep_little(tiny_folder: MakeTiny) -> None:
    backbone = load_backbone(tiny_folder("llama"), purpose="classify", labels=("no", "yes"))
    num_kept = [0, 0]
    for place in range(2):
        if place:
            compute_layers_twice(backbone)
        backbone.model.train()

        def note(tensor: Tensor, place: int = place) -> Tensor:
            num_kept[place] += 1
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            backbone.hidden_states(batch_of_documents())
    assert num_kept[1] < num_kept[0] / 3


@pytest.mark.parametrize("model_type", TINY_TYPES)
def test_gradient_of_an_embedding_is_that_of_the_rows_which_are_read(
    model_type: str, tiny_folder: MakeTiny
) -> None:
    backbone = load_backbone(tiny_folder(model_type), purpose="classify", labels=("no", "yes"))
    batch = batch_of_documents()
    whole = gradients(backbone, batch)
    ((name, rows_U),) = backbone.read_rows(READ).items()
    assert rows_U.tolist() == READ
    sparse = gradients(backbone, batch)
    weight = backbone.model.get_parameter(name)
    assert weight.grad is not None
    assert weight.grad.is_sparse
    torch.testing.assert_close(sparse[name], whole[name])
    others = torch.ones(len(weight), dtype=torch.bool)
    others[rows_U] = False
    assert not whole[name][others].any()


@pytest.mark.parametrize("model_type", [each for each in TINY_TYPES if each not in ENCODER_TYPES])
def test_embedding_that_writes_too_is_read_as_a_whole(
    model_type: str, tiny_folder: MakeTiny
) -> None:
    backbone = load_backbone(tiny_folder(model_type), purpose="language")
    is_tied = backbone.plain_model.get_output_embeddings().weight is (
        backbone.plain_model.get_input_embeddings().weight
    )
    assert bool(backbone.read_rows(READ)) != is_tied


def test_nothing_is_said_of_a_frozen_embedding(tiny_folder: MakeTiny) -> None:
    backbone = load_backbone(tiny_folder("llama"), purpose="classify", labels=("no", "yes"))
    attach(backbone, method="lora")
    assert backbone.read_rows(READ) == {}
