"""What tasks with labels share; their own tests compare losses, weights and probabilities with others."""

import numpy as np
import pytest

from lushan.backbones.encoding import LengthLimit
from lushan.backbones.tokenizer import Tokenizer
from lushan.errors import DataError, SettingError
from lushan.label_answers import (
    answer_layer,
    decode_labels,
    encode_labels,
    learn_labels,
    log_loss,
)
from lushan.records import Example, Features, Rendered, TaskState
from lushan.tasks import Preparation
from tests.conftest import MakeTiny

ONE = Example("1", "a b", ("x",), "a.csv, row 1")
LIMIT = LengthLimit(100)


def test_layer_has_an_output_for_every_label_or_is_the_vocabulary() -> None:
    state = TaskState(labels=("x", "y"))
    assert answer_layer(state, "head") == ("classify", ("x", "y"), False, False)
    assert answer_layer(state, "generate").purpose == "language"


def test_only_label_of_several_is_asked_about_by_itself(tiny_folder: MakeTiny) -> None:
    state = TaskState(labels=("x",), multi_label=True)
    tokenizer = Tokenizer.load(tiny_folder("llama"))
    found = [
        encode_labels([[Rendered("a b")]], [ONE], state, tokenizer, answer=answer, limit=LIMIT, with_target=False)[0]
        for answer in ("head", "generate")
    ]  # fmt: skip
    assert [each.candidate for each in found] == [-1, 0]
    (prediction,) = decode_labels([np.array([2.0, 0.0])], found[1:], [ONE], state, answer="generate")  # fmt: skip
    assert prediction.probabilities["x"] == pytest.approx(np.exp(2) / (np.exp(2) + 1))


def test_probabilities_of_windows_are_averaged() -> None:
    state = TaskState(labels=("x", "y"))
    windows = [Features((1,), "", 0), Features((2,), "", 0)]
    outputs = [np.log([0.9, 0.1]), np.log([0.3, 0.7])]
    (found,) = decode_labels(outputs, windows, [ONE], state, answer="head")
    assert found.answer == "x"
    assert found.probabilities == pytest.approx({"x": 0.6, "y": 0.4})
    assert log_loss([found], [ONE], state) == pytest.approx(-np.log(0.6))


def test_one_label_alone_is_refused_unless_a_text_can_have_none() -> None:
    with pytest.raises(DataError, match=r"1 label\(s\) \(x\); at least two"):
        learn_labels([ONE], Preparation(), multi_label=False)
    assert learn_labels([ONE], Preparation(), multi_label=True).labels == ("x",)


def labelled(*labels: str) -> list[Example]:
    return [Example(label, label, label, f"a.csv, row {n}") for n, label in enumerate(labels)]


def test_positive_label_that_is_named_is_learned_with_the_labels() -> None:
    asked = Preparation(positive_label="bad")
    assert learn_labels(labelled("good", "bad"), asked, multi_label=False).positive_label == "bad"
    assert learn_labels(labelled("good", "bad"), Preparation(), multi_label=False).positive_label is None  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "multi_label", "message"),
    [
        (("good", "bad", "fine"), False, "has no effect here: .* but there are 3. Remove it"),
        (("good", "bad"), True, "has no effect here: .* but a text can have several. Remove it"),
        (("good", "bd"), False, "is `bad`, but the training rows have the labels `bd` and `good`"),
    ],
)
def test_positive_label_that_is_none_of_two_is_refused(
    labels: tuple[str, ...], message: str, *, multi_label: bool
) -> None:
    asked = Preparation(positive_label="bad")
    with pytest.raises(SettingError, match=f"`task_settings.positive_label` {message}"):
        learn_labels(labelled(*labels), asked, multi_label=multi_label)
