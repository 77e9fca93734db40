"""The classification task: rows, labels, prompts, what is supervised, losses, scores."""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight

from lushan.backbones.encoding import LengthLimit
from lushan.backbones.load import Backbone, load_backbone
from lushan.backbones.tokenizer import Tokenizer
from lushan.data.batching import pack
from lushan.errors import DataError
from lushan.records import AnswerMode, Example, Features, Prediction, Row, TaskState
from lushan.tasks import Preparation
from lushan.tasks.classification import Task
from tests.conftest import MakeTiny

TASK = Task()
USUAL = Preparation()
LIMIT = LengthLimit(512, "error")
TEXTS = ("a warm film", "cold soup", "never again", "fresh bread by the river", "so so", "10 of 10")
LABELS = ("good", "bad", "bad", "good", "fine", "good")
MANY = (("bad", "food"), ("food",), (), ("bad",), ("film", "food"), ("film",))


def example(text: str, target: str | tuple[str, ...] | None) -> Example:
    return TASK.read(Row({"text": text, "label": target}, "a.csv", 1), multi_label=True)


ONE_LABEL = [
    TASK.read(Row({"text": text, "label": label}, "a.csv", number))
    for number, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True), start=1)
]
SEVERAL = [example(text, labels) for text, labels in zip(TEXTS, MANY, strict=True)]


def prepare(
    examples: Sequence[Example], options: Preparation = USUAL, *, multi_label: bool = False
) -> TaskState:
    return TASK.prepare(examples, options, multi_label=multi_label)


def read(label: object, **options: bool) -> Example:
    return TASK.read(Row({"text": "soup", "label": label}, "a.csv", 7), **options)


def encode(
    examples: Sequence[Example],
    state: TaskState,
    tokenizer: Tokenizer,
    answer: AnswerMode,
    *,
    limit: LengthLimit = LIMIT,
) -> list[Features]:
    return TASK.encode(examples, state, tokenizer, answer=answer, limit=limit, with_target=True)


def prompt(state: TaskState, text: str = "cold soup", shots: Sequence[Example] = ()) -> list[str]:
    asked = Example("x", text, None)
    rendered = TASK.render(asked, state, answer="generate", with_target=False, shots=shots)
    return [each.text for each in rendered]


# Reading


@pytest.mark.parametrize(
    "label", ["food|bad|food", " bad ; food ", "bad\uff1bfood", ["food", "bad", ""]]
)
def test_several_labels_are_read_from_a_list_or_from_joined_text(label: object) -> None:
    assert read(label, multi_label=True).target == ("bad", "food")


def test_text_with_an_empty_list_has_no_label() -> None:
    assert read([], multi_label=True).target == ()


def test_list_where_one_label_is_expected_is_refused_with_what_to_do() -> None:
    with pytest.raises(DataError, match=r"a\.csv, row 7: .*holds a list.*multi_label=true"):
        read(["bad", "food"])


def test_order_of_a_texts_labels_is_no_matter_to_its_id() -> None:
    one, other = read("bad|food", multi_label=True), read("food|bad", multi_label=True)
    assert one.id == other.id != read("bad", multi_label=True).id


@pytest.mark.parametrize("text", [None, "", "  \n", 3])
def test_row_without_a_text_is_refused_by_its_place(text: object) -> None:
    with pytest.raises(DataError, match=r"a\.csv, row 7: column `text`"):
        TASK.read(Row({"text": text, "label": "bad"}, "a.csv", 7))


# What is learned before training


def test_labels_are_sorted_whatever_the_order_of_the_rows() -> None:
    assert prepare(ONE_LABEL).labels == prepare(ONE_LABEL[::-1]).labels == ("bad", "fine", "good")


def test_class_numbers_are_those_of_the_state_and_not_of_the_rows(plain: Tokenizer) -> None:
    state = TaskState(labels=("good", "unseen", "fine", "bad"))
    numbers = [each.target for each in encode(ONE_LABEL, state, plain, "head")]
    assert numbers == [0, 3, 3, 0, 2, 0]


def test_label_that_the_model_does_not_know_is_refused_by_its_place(plain: Tokenizer) -> None:
    state = TaskState(labels=("bad", "good"))
    with pytest.raises(DataError, match=r"a\.csv, row 5: label `fine` is not one of the 2"):
        encode(ONE_LABEL, state, plain, "head")


def test_one_label_is_nothing_to_learn() -> None:
    with pytest.raises(DataError, match=r"1 label\(s\) \(good\); at least two"):
        prepare([each for each in ONE_LABEL if each.target == "good"])


def test_balanced_weights_are_those_of_scikit_learn(plain: Tokenizer) -> None:
    state = prepare(ONE_LABEL, Preparation(class_weights="balanced"))
    classes = np.array(state.labels)
    expected = compute_class_weight("balanced", classes=classes, y=np.array(LABELS))
    assert state.class_weights == pytest.approx(expected)
    features = encode(ONE_LABEL, state, plain, "head")
    by_label = dict(zip(state.labels, expected, strict=True))
    assert [each.weight for each in features] == pytest.approx([by_label[each] for each in LABELS])


def test_worked_examples_are_the_same_every_time_and_others_with_another_seed() -> None:
    examples = [example(f"text {number}", (str(number % 3),)) for number in range(60)]
    one, again, other = (
        prepare(rows, Preparation(seed=seed), multi_label=True).shots
        for rows, seed in ((examples, 1), (examples[::-1], 1), (examples, 2))
    )
    assert one == again != other


def test_worked_examples_take_the_classes_in_turn() -> None:
    examples = [
        TASK.read(Row({"text": f"text {number}", "label": label}, "a", number))
        for number, label in enumerate(["common"] * 90 + ["rare"] * 2 + ["some"] * 8)
    ]
    shots = prepare(examples, Preparation(num_shots=8)).shots
    assert Counter(each.target for each in shots) == {"common": 3, "rare": 2, "some": 3}
    assert len({each.target for each in shots[:3]}) == 3
    assert prepare(examples, Preparation(num_shots=0)).shots == ()


# Prompts


def test_prompt_names_the_labels_and_shows_worked_examples() -> None:
    assert prompt(prepare(ONE_LABEL), shots=ONE_LABEL[:1]) == [
        "Classify the text as one of: bad, fine, good.\n\n"
        "Text: a warm film\nLabel: good\n\nText: cold soup\nLabel:"
    ]


def test_prompt_with_an_instruction_in_chinese_keeps_it_and_the_labels() -> None:
    rows = [("海浪拍打着礁石", "海"), ("山脊上落满了雪", "山")]
    examples = [
        TASK.read(Row({"text": text, "label": label}, "a", number))
        for number, (text, label) in enumerate(rows)
    ]
    state = prepare(examples, Preparation(instruction="这句话写的是什么。"))
    assert prompt(state, "港口停满了渔船", examples[:1]) == [
        "这句话写的是什么。\n\nText: 海浪拍打着礁石\nLabel: 海\n\nText: 港口停满了渔船\nLabel:"
    ]
    assert TASK.candidates(state) == [" 山", " 海"] == sorted([" 海", " 山"])


def test_prompt_of_150_labels_does_not_list_them_but_all_can_be_answered() -> None:
    labels = tuple(f"intent_{number:03}" for number in range(150))
    state = TaskState(labels=labels)
    assert prompt(state) == ["Classify the text.\n\nText: cold soup\nLabel:"]
    assert TASK.candidates(state) == [f" {label}" for label in labels]


def test_text_with_several_labels_is_asked_about_each() -> None:
    state = prepare(SEVERAL, multi_label=True)
    assert prompt(state, shots=SEVERAL[1:2])[1] == (
        "Classify the text.\n\nText: cold soup\nDoes the label film apply? no\n\n"
        "Text: cold soup\nDoes the label film apply?"
    )
    assert len(prompt(state)) == len(state.labels) == 3
    assert TASK.candidates(state) == [" yes", " no"]


def test_head_reads_the_text_alone() -> None:
    state = prepare(ONE_LABEL)
    (rendered,) = TASK.render(ONE_LABEL[0], state, answer="head", with_target=True)
    assert (rendered.text, rendered.supervised) == ("a warm film", ())


# What is supervised


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def tokenizer(request: pytest.FixtureRequest, tiny_folder: MakeTiny) -> Tokenizer:
    return Tokenizer.load(tiny_folder(request.param))


@pytest.fixture(scope="module")
def plain(tiny_folder: MakeTiny) -> Tokenizer:
    return Tokenizer.load(tiny_folder("llama"))


@pytest.mark.parametrize("text", ["cold soup", "ends in a space ", "海浪", "Label: bad\n\nLabel:"])
def test_answer_and_stop_token_are_supervised_and_nothing_of_the_prompt(
    text: str, tokenizer: Tokenizer
) -> None:
    state = prepare(ONE_LABEL)
    asked = Example("x", text, "good", "a.csv, row 1")
    (features,) = encode([asked], state, tokenizer, "generate")
    supervised = features.token_ids[features.targets_from :]
    assert supervised[-1] == tokenizer.stop_id
    assert tokenizer.decode(supervised[:-1]) == " good"
    before = tokenizer.decode(features.token_ids[: features.targets_from])
    assert [before] == prompt(state, text)


def test_answers_about_each_label_are_supervised_with_their_label_number(
    tokenizer: Tokenizer,
) -> None:
    state = prepare(SEVERAL, multi_label=True)
    features = encode(SEVERAL[:2], state, tokenizer, "generate")
    answers = [tokenizer.decode(each.token_ids[each.targets_from : -1]) for each in features]
    assert answers == [" yes", " no", " yes", " no", " no", " yes"]
    assert [each.candidate for each in features] == [0, 1, 2, 0, 1, 2]
    assert [each.example_index for each in features] == [0, 0, 0, 1, 1, 1]


def test_windows_of_a_text_share_its_weight(plain: Tokenizer) -> None:
    state = TaskState(labels=("bad", "good"), class_weights=(3.0, 0.5))
    asked = Example("x", "soup " * 40, "bad", "a.csv, row 1")
    features = encode([asked], state, plain, "head", limit=LengthLimit(16, "window"))
    assert len(features) > 2
    assert sum(each.weight for each in features) == pytest.approx(3.0)
    assert {each.target for each in features} == {0}


# Losses, against torch on logits of plain transformers


def loaded(folder: Path, state: TaskState, answer: AnswerMode) -> Backbone:
    return load_backbone(
        folder,
        purpose="classify" if answer == "head" else "language",
        labels=state.labels,
        multi_label=state.multi_label,
    )


@torch.no_grad()
def mean_loss(backbone: Backbone, features: list[Features], state: TaskState) -> float:
    found = TASK.loss(backbone, pack(features), state, dropout=0.0)
    return float(found.total) / found.count


@torch.no_grad()
def plain_logits(backbone: Backbone, features: Features) -> torch.Tensor:
    """Logits of transformers' own forward pass, with its own attention, for one document."""
    config = backbone.core.config
    ours, config._attn_implementation = config._attn_implementation, "eager"
    try:
        return backbone.plain_model(torch.tensor([features.token_ids])).logits[0]
    finally:
        config._attn_implementation = ours


def test_loss_of_a_head_is_weighted_cross_entropy(tiny_folder: MakeTiny) -> None:
    state = prepare(ONE_LABEL, Preparation(class_weights="balanced"))
    backbone = loaded(tiny_folder("llama"), state, "head")
    features = encode(ONE_LABEL, state, backbone.tokenizer, "head")
    logits_NC = torch.stack([plain_logits(backbone, each) for each in features])
    targets_N = torch.tensor([state.labels.index(label) for label in LABELS])
    weights_C = torch.tensor(state.class_weights)
    expected = torch.nn.functional.cross_entropy(logits_NC, targets_N, weight=weights_C)
    assert mean_loss(backbone, features, state) == pytest.approx(float(expected), rel=1e-5)


def test_loss_of_a_head_for_several_labels_is_binary_cross_entropy(tiny_folder: MakeTiny) -> None:
    state = prepare(SEVERAL, multi_label=True)
    backbone = loaded(tiny_folder("llama"), state, "head")
    features = encode(SEVERAL, state, backbone.tokenizer, "head")
    assert [each.target for each in features[:3]] == [(1, 0, 1), (0, 0, 1), (0, 0, 0)]
    logits_NC = torch.stack([plain_logits(backbone, each) for each in features])
    targets_NC = torch.tensor([[float(name in each) for name in state.labels] for each in MANY])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits_NC, targets_NC)
    assert mean_loss(backbone, features, state) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("examples", [ONE_LABEL, SEVERAL], ids=["one label", "several"])
def test_loss_of_generation_is_cross_entropy_of_the_answers_tokens(
    examples: list[Example], tiny_folder: MakeTiny
) -> None:
    state = prepare(examples, multi_label=examples is SEVERAL)
    backbone = loaded(tiny_folder("llama"), state, "generate")
    features = encode(examples, state, backbone.tokenizer, "generate")
    total, count = 0.0, 0
    for each in features:
        labels_T = torch.tensor(each.token_ids)
        labels_T[: each.targets_from] = -100
        logits_TV = plain_logits(backbone, each)
        total += float(
            torch.nn.functional.cross_entropy(logits_TV[:-1], labels_T[1:], reduction="sum")
        )
        count += int((labels_T >= 0).sum())
    assert mean_loss(backbone, features, state) == pytest.approx(total / count, rel=1e-5)


# Decoding and scores


def decode(outputs: list[list[float]], state: TaskState, answer: AnswerMode) -> list[Prediction]:
    candidates = state.multi_label and answer == "generate"
    size = len(state.labels) if candidates else 1
    features = [
        Features((1,), "x", number // size, candidate=number % size if candidates else -1)
        for number in range(len(outputs))
    ]
    asked = SEVERAL[: len(outputs) // size]
    return TASK.decode(list(np.array(outputs)), features, asked, state, answer=answer)


def test_labels_of_a_head_are_those_above_one_half() -> None:
    state = TaskState(labels=("bad", "film", "food"), multi_label=True)
    (found,) = decode([[math.log(3), -math.log(4), 0.0]], state, "head")
    assert found.answer == ("bad", "food")
    assert list(found.probabilities.values()) == pytest.approx([0.75, 0.2, 0.5])
    assert found.log_likelihood == pytest.approx(math.log(0.75 * 0.8 * 0.5))


def test_labels_of_generation_are_those_with_a_yes() -> None:
    state = TaskState(labels=("bad", "film", "food"), multi_label=True)
    yes, no = [math.log(0.9), math.log(0.1)], [math.log(0.3), math.log(0.7)]
    one, other = decode([yes, no, no, no, no, yes], state, "generate")
    assert (one.answer, other.answer) == (("bad",), ("food",))
    assert list(other.probabilities.values()) == pytest.approx([0.3, 0.3, 0.9])


def test_details_of_scores_hold_labels_confusion_and_the_log_loss_of_scikit_learn() -> None:
    state = TaskState(labels=("bad", "fine", "good"))
    rng = np.random.default_rng(0)
    table = rng.dirichlet((1, 1, 1), size=len(ONE_LABEL))
    predictions = [
        Prediction(each.id, state.labels[row.argmax()], dict(zip(state.labels, row, strict=True)))
        for each, row in zip(ONE_LABEL, table, strict=True)
    ]
    details = TASK.score(predictions, ONE_LABEL, state).details
    assert details["log_loss"] == pytest.approx(log_loss(LABELS, table, labels=state.labels))
    assert details["labels"] == list(state.labels)
    assert [each["support"] for each in details["per_class"]] == [2, 1, 3]
    assert [sum(row) for row in details["confusion"]] == [2, 1, 3]


def test_details_say_of_which_of_two_labels_f1_is() -> None:
    rows = [each for each in ONE_LABEL if each.target != "fine"]
    answered = [Prediction(each.id, "good", {"good": 0.9, "bad": 0.1}) for each in rows]
    usual = TASK.score(answered, rows, prepare(rows))
    named = TASK.score(answered, rows, prepare(rows, Preparation(positive_label="bad")))
    assert (usual.details["positive_label"], named.details["positive_label"]) == ("good", "bad")
    assert usual.metrics["recall"].value == 1.0
    assert named.metrics["recall"].value == 0.0
    three = TASK.score(answered, rows, TaskState(labels=("bad", "fine", "good")))
    assert three.details["positive_label"] is None


def test_score_of_several_labels_is_micro_f1_and_a_log_loss_per_decision() -> None:
    state = TaskState(labels=("bad", "food"), multi_label=True)
    asked = [dataclasses.replace(SEVERAL[0], target=("bad",))]
    answered = [Prediction(asked[0].id, ("bad", "food"), {"bad": 0.8, "food": 0.6})]
    scores = TASK.score(answered, asked, state)
    assert scores.main_metric == "micro_f1"
    assert scores.metrics["micro_f1"].value == pytest.approx(2 / 3)
    assert list(scores.correct) == [False]
    assert scores.details["log_loss"] == pytest.approx(-(math.log(0.8) + math.log(0.4)) / 2)
