"""The class layer of a pretrained model is known by its labels, told of, and drawn anew where it is for others."""

import json
from pathlib import Path

import pytest
import torch

from lushan.backbones.class_layer import (
    draw_class_layer,
    has_other_layer,
    notes_on_layer,
    own_labels,
)
from lushan.backbones.load import AnswerLayer, load_backbone
from tests.conftest import MakeTiny
from tests.tiny import write_class_model

LABELS = ("bad", "fine", "good")
LAYER = AnswerLayer("classify", LABELS)


@pytest.fixture
def reviewed(tiny_folder: MakeTiny, tmp_path: Path) -> Path:
    """A llama with a class layer for these labels."""
    return write_class_model(tiny_folder("llama"), tmp_path / "reviewed", LABELS)


def test_labels_are_told_in_the_order_of_their_numbers(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    labels = tuple(f"label of {number}" for number in range(11))
    folder = write_class_model(tiny_folder("llama"), tmp_path / "many", labels)
    assert own_labels(folder) == labels
    assert own_labels(tiny_folder("llama")) is None


def test_labels_without_names_are_no_names_of_ours(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    folder = write_class_model(tiny_folder("llama"), tmp_path / "bare", ("no", "yes"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["id2label"], config["label2id"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert own_labels(folder) == ("LABEL_0", "LABEL_1")
    assert has_other_layer(folder, AnswerLayer("classify", ("no", "yes")))


@pytest.mark.parametrize(
    ("labels", "is_other"),
    [(LABELS, False), (("bill", "refund", "ship"), True), (LABELS[:2], True), (LABELS[::-1], True)],
)
def test_layer_is_another_where_a_label_differs_in_name_number_or_place(
    labels: tuple[str, ...], reviewed: Path, *, is_other: bool
) -> None:
    layer = AnswerLayer("classify", labels)
    assert has_other_layer(reviewed, layer) is is_other
    (note,) = notes_on_layer(reviewed, layer)
    assert ("3 labels (`bad`, `fine`, `good`), which are not" in note) is is_other
    assert ("goes on from it" in note) is not is_other


def test_nothing_is_told_where_no_layer_is_or_is_asked_for(
    reviewed: Path, tiny_folder: MakeTiny
) -> None:
    language = AnswerLayer("language")
    assert notes_on_layer(tiny_folder("llama"), LAYER) == notes_on_layer(reviewed, language) == []
    assert not has_other_layer(tiny_folder("llama"), LAYER)
    assert not has_other_layer(reviewed, language)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bert"])
def test_layer_is_drawn_as_for_a_model_that_has_none(
    model_type: str, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    source = tiny_folder(model_type)
    folder = write_class_model(source, tmp_path / "other", ("x", "y", "z"))
    found, bare = (
        load_backbone(each, purpose="classify", labels=LABELS, seed=4) for each in (folder, source)
    )
    assert found.fresh_weights == ()
    draw_class_layer(found, seed=4)
    assert found.fresh_weights == bare.fresh_weights
    expected = dict(bare.model.named_parameters())
    for name, weight in found.model.named_parameters():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize(
    ("model_type", "name"), [("llama", "score.weight"), ("modernbert", "classifier.weight")]
)
def test_nothing_but_the_layer_is_drawn(
    model_type: str, name: str, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    folder = write_class_model(tiny_folder(model_type), tmp_path / "other", LABELS)
    backbone = load_backbone(folder, purpose="classify", labels=LABELS, precision="bf16")
    before = {each: weight.clone() for each, weight in backbone.model.named_parameters()}
    draw_class_layer(backbone, seed=4)
    weights = dict(backbone.model.named_parameters())
    assert {each for each in weights if not torch.equal(weights[each], before[each])} == {name}
    assert weights[name].dtype == torch.float32
    assert 0 < weights[name].abs().max() < 1
