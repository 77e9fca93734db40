"""A pass cut in two at a layer gives what a whole pass gives, forward and backward, in every architecture."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lushan.backbones.adapters import Method, attach
from lushan.backbones.frozen import FrozenStates, run_until
from lushan.backbones.heads import class_logits, read_position
from lushan.backbones.load import Backbone, load_backbone
from lushan.data.batching import pack
from lushan.records import Batch, Features
from tests.conftest import MakeTiny
from tests.tiny import TINY_TYPES

LENGTHS = (3, 12, 7, 12)
NUM_LAYERS = 2


def load(folder: Path, method: Method) -> Backbone:
    backbone = load_backbone(folder, purpose="classify", labels=("no", "yes"))
    attach(backbone, method=method, layers=1)
    return backbone


def batch_of(lengths: Sequence[int]) -> Batch:
    documents = [range(5 + place, 5 + place + length) for place, length in enumerate(lengths)]
    return pack([Features(tuple(ids), str(ids), place) for place, ids in enumerate(documents)])


def keep(backbone: Backbone, batch: Batch, *, depth: int) -> FrozenStates:
    """Keep every token's state, the documents in another order than that of the batch."""
    with torch.no_grad():
        states_TD = backbone.states_at(depth, batch)
    spans = zip(batch.features, batch.first_N.tolist(), batch.last_N.tolist(), strict=True)
    first_rows: dict[tuple[int, ...], int] = {}
    pieces: list[Tensor] = []
    for each, first, last in reversed(list(spans)):
        first_rows[each.token_ids] = sum(len(piece) for piece in pieces)
        pieces.append(states_TD[first : last + 1])
    return FrozenStates(depth, "all", first_rows, torch.cat(pieces))


def gradients(backbone: Backbone, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of a batch, and what a loss on them gives every trained weight."""
    backbone.model.zero_grad()
    logits_NC = class_logits(backbone.plain_model, backbone.hidden_states(batch), batch)
    logits_NC.square().sum().backward()
    named = backbone.model.named_parameters()
    return logits_NC.detach(), {n: w.grad.clone() for n, w in named if w.grad is not None}


@pytest.mark.parametrize("model_type", TINY_TYPES)
def test_the_rest_of_a_pass_gives_the_same_answers_and_gradients(
    model_type: str, tiny_folder: MakeTiny
) -> None:
    backbone, batch = load(tiny_folder(model_type), "top"), batch_of(LENGTHS)
    whole_NC, whole = gradients(backbone, batch)
    backbone.frozen = keep(backbone, batch, depth=1)
    part_NC, part = gradients(backbone, batch)
    torch.testing.assert_close(part_NC, whole_NC)
    torch.testing.assert_close(part, whole)
    assert len(whole) > 1


@pytest.mark.parametrize("model_type", TINY_TYPES)
def test_skipped_layers_are_not_computed_and_come_back(
    model_type: str, tiny_folder: MakeTiny
) -> None:
    backbone, batch = load(tiny_folder(model_type), "top"), batch_of(LENGTHS)
    with torch.no_grad():
        expected_TD = backbone.hidden_states(batch)
        backbone.frozen = keep(backbone, batch, depth=1)
        weight = next(iter(backbone.layers[0].parameters()))
        intact = weight.clone()
        weight.fill_(torch.nan)
        torch.testing.assert_close(backbone.hidden_states(batch), expected_TD)
        weight.copy_(intact)
        backbone.frozen = None
        assert torch.equal(backbone.hidden_states(batch), expected_TD)


@pytest.mark.parametrize("model_type", [*TINY_TYPES, "albert", "roberta", "distilbert"])
def test_one_state_per_document_is_all_that_a_class_layer_reads(
    model_type: str, tiny_folder: MakeTiny
) -> None:
    backbone, batch = load(tiny_folder(model_type), "head"), batch_of(LENGTHS)
    whole_NC, whole = gradients(backbone, batch)
    kept = keep(backbone, batch, depth=NUM_LAYERS)
    position = read_position(backbone.plain_model)
    if position != "all":
        token = {"first": 0, "last": -1}[position]
        documents = list(kept.first_rows)
        firsts = {ids: number for number, ids in enumerate(documents)}
        rows = [kept.first_rows[ids] + range(len(ids))[token] for ids in documents]
        kept = FrozenStates(NUM_LAYERS, position, firsts, kept.states_RD[rows])
    backbone.frozen = kept
    part_NC, part = gradients(backbone, batch)
    torch.testing.assert_close(part_NC, whole_NC)
    torch.testing.assert_close(part, whole)


@pytest.mark.parametrize("position", ["first", "last"])
def test_a_row_that_was_not_kept_is_no_number(position: str) -> None:
    batch = batch_of((2, 3))
    firsts = {each.token_ids: row for row, each in enumerate(batch.features)}
    frozen = FrozenStates(1, "first" if position == "first" else "last", firsts, torch.ones(2, 4))
    states_TD = frozen.of(batch)
    assert states_TD is not None
    read = {"first": [0, 2], "last": [1, 4]}[position]
    is_kept_T = states_TD.isfinite().all(dim=1)
    assert is_kept_T.nonzero().flatten().tolist() == read


def test_a_batch_with_an_unknown_document_is_computed(tiny_folder: MakeTiny) -> None:
    backbone, batch = load(tiny_folder("llama"), "top"), batch_of(LENGTHS)
    backbone.frozen = keep(backbone, batch_of(LENGTHS[:3]), depth=1)
    assert backbone.frozen.of(batch) is None
    found_TD = backbone.hidden_states(batch)
    backbone.frozen = None
    assert torch.equal(found_TD, backbone.hidden_states(batch))


@pytest.mark.parametrize("model_type", ["gpt2", "bert"])
def test_frozen_layers_run_without_dropout_while_others_are_trained(
    model_type: str, tiny_folder: MakeTiny
) -> None:
    backbone, batch = load(tiny_folder(model_type), "top"), batch_of(LENGTHS)
    backbone.model.train()
    assert torch.equal(backbone.states_at(1, batch), backbone.states_at(1, batch))
    assert not torch.equal(backbone.hidden_states(batch), backbone.hidden_states(batch))


def test_a_layer_that_is_never_called_is_a_mistake() -> None:
    with pytest.raises(RuntimeError, match="never called"):
        run_until(lambda: None, nn.Linear(1, 1))
