"""The class layer of a pretrained model is known by its labels, told of, put into their order, and drawn anew for others."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lushan.backbones.class_layer import (
    draw_class_layer,
    fit_class_layer,
    notes_on_layer,
    own_labels,
)
from lushan.backbones.heads import class_logits
from lushan.backbones.inspect import is_head
from lushan.backbones.load import AnswerLayer, load_backbone
from lushan.data.batching import pack
from lushan.records import Features
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
    (note,) = notes_on_layer(folder, AnswerLayer("classify", ("no", "yes")))
    assert "2 labels (`LABEL_0`, `LABEL_1`), which are not" in note


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (LABELS, "class layer for these labels: the training goes on from it."),
        (LABELS[::-1], "in another order: its rows are put into the order of these, and the training goes on"),
        (("bill", "refund", "ship"), "3 labels (`bad`, `fine`, `good`), which are not those of these rows: a new one"),
        (LABELS[:2], "3 labels (`bad`, `fine`, `good`), which are not those of these rows: a new one"),
    ],
)  # fmt: skip
def test_what_becomes_of_the_layer_is_told(
    labels: tuple[str, ...], told: str, reviewed: Path
) -> None:
    (note,) = notes_on_layer(reviewed, AnswerLayer("classify", labels))
    assert told in note


def test_nothing_is_told_where_no_layer_is_or_is_asked_for(
    reviewed: Path, tiny_folder: MakeTiny
) -> None:
    language = AnswerLayer("language")
    assert notes_on_layer(tiny_folder("llama"), LAYER) == notes_on_layer(reviewed, language) == []


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bert", "roberta"])
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


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bert", "modernbert", "roberta"])
def test_layer_whose_labels_come_in_another_order_answers_as_before(
    model_type: str, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    folder = write_class_model(tiny_folder(model_type), tmp_path / "own", LABELS)
    original = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for weight in (each for name, each in original.named_parameters() if is_head(name)):
        torch.nn.init.normal_(weight)
    original.save_pretrained(folder)
    layer = AnswerLayer("classify", ("good", "bad", "fine"))
    backbone = load_backbone(folder, **layer._asdict())
    fit_class_layer(backbone, folder, layer, seed=4)
    batch = pack([Features((5, 6, 7, 8), "row 1", 0)])
    with torch.inference_mode():
        (found,) = class_logits(backbone.plain_model, backbone.hidden_states(batch), batch)
        (expected,) = original(input_ids=batch.token_ids_1T).logits
    by_label: dict[str, float] = dict(zip(LABELS, expected.tolist(), strict=True))
    assert found.tolist() == pytest.approx([by_label[each] for each in layer.labels], abs=1e-4)
    assert backbone.fresh_weights == ()
    assert list(backbone.plain_model.config.id2label.values()) == list(layer.labels)


@pytest.mark.parametrize("labels", [LABELS, ("bill", "refund", "ship"), LABELS[:2]])
def test_layer_is_left_alone_for_its_own_labels_and_drawn_for_others(
    labels: tuple[str, ...], reviewed: Path
) -> None:
    layer = AnswerLayer("classify", labels)
    fitted, drawn = (load_backbone(reviewed, **layer._asdict(), seed=1) for _ in range(2))
    if labels != LABELS:
        draw_class_layer(drawn, seed=4)
    fit_class_layer(fitted, reviewed, layer, seed=4)
    assert fitted.fresh_weights == drawn.fresh_weights
    assert torch.equal(fitted.plain_model.score.weight, drawn.plain_model.score.weight)


def test_rows_of_the_last_layer_alone_change_places(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    # As many as the layer before is wide.
    labels = tuple(f"label of {number}" for number in range(16))
    folder = write_class_model(tiny_folder("roberta"), tmp_path / "own", labels)
    layer = AnswerLayer("classify", labels[::-1])
    fitted, own = (load_backbone(folder, **layer._asdict()) for _ in range(2))
    fit_class_layer(fitted, folder, layer, seed=4)
    dense, last = fitted.plain_model.classifier.dense, fitted.plain_model.classifier.out_proj
    assert torch.equal(dense.weight, own.plain_model.classifier.dense.weight)
    assert torch.equal(last.weight, own.plain_model.classifier.out_proj.weight.flip(0))
