"""Predictions of a whole predictor: compared with plain transformers, one text at a time."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from lushan.backbones.encoding import LengthLimit, LengthPolicy
from lushan.backbones.load import Backbone, load_backbone
from lushan.backbones.tokenizer import Encoded, Tokenizer
from lushan.catalog import load_task
from lushan.data import chunks
from lushan.data.batching import pack
from lushan.errors import DataError
from lushan.inference import predict
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.predict import Predictor, head_outputs, mean_loss
from lushan.records import AnswerMode, Batch, Example, Features, Prediction, TaskState
from tests.unit.inference.conftest import MakeSharp

STATE = TaskState(labels=("bad", "fine", "good"))
TEXTS = (
    "a great film, and the food was warm",
    "soup",
    "the children ran home along the river, and again, and again, and never again",
    "the fox",
    "cold soup with fresh bread",
)
EXAMPLES = [Example(f"id{n}", text, None, f"a.csv, row {n}") for n, text in enumerate(TEXTS)]
WIDE = LengthLimit(128, "error")
SHOTS = (Example("s1", "slow service", "bad"), Example("s2", "a brave fox", "good"))


@pytest.fixture(scope="module")
def head_folder(sharp_folder: MakeSharp, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a llama whose class layer transformers made."""
    folder = tmp_path_factory.mktemp("head") / "model"
    shutil.copytree(sharp_folder("llama"), folder)
    config = AutoConfig.from_pretrained(folder, num_labels=3)
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_config(config)
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.4)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def head_backbone(head_folder: Path) -> Backbone:
    return load_backbone(head_folder, purpose="classify", labels=STATE.labels)


@pytest.fixture(scope="module")
def plain_model(head_folder: Path) -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_pretrained(head_folder).eval()


@pytest.fixture(scope="module")
def writer(sharp_folder: MakeSharp) -> Backbone:
    return load_backbone(sharp_folder("llama"), purpose="language")


def predictor(
    backbone: Backbone, answer: AnswerMode = "head", limit: LengthLimit = WIDE
) -> Predictor:
    return Predictor(backbone, load_task("classification"), STATE, answer, limit, "v7")


@torch.inference_mode()
def probabilities(model: PreTrainedModel, ids: Sequence[int]) -> np.ndarray:
    logits_C = model(input_ids=torch.tensor([list(ids)])).logits[0]
    return logits_C.double().softmax(-1).numpy()


def values(found: Sequence[Prediction]) -> np.ndarray:
    return np.array([[each.probabilities[label] for label in STATE.labels] for each in found])


def raw_ids(backbone: Backbone, text: str) -> list[int]:
    return backbone.tokenizer.encode([text])[0].ids


def test_probabilities_of_a_head_are_those_of_transformers_in_the_order_of_the_examples(
    head_backbone: Backbone, plain_model: PreTrainedModel
) -> None:
    found = predictor(head_backbone).predict(EXAMPLES)
    expected = [probabilities(plain_model, raw_ids(head_backbone, text)) for text in TEXTS]
    assert [each.id for each in found] == [each.id for each in EXAMPLES]
    np.testing.assert_allclose(values(found), expected, atol=1e-5)
    answers = [STATE.labels[int(row.argmax())] for row in expected]
    assert [each.answer for each in found] == answers
    assert len(set(answers)) > 1
    assert {each.model_version for each in found} == {"v7"}


@pytest.mark.parametrize("answer", ["head", "generate"])
def test_no_examples_give_no_predictions(
    answer: AnswerMode, head_backbone: Backbone, writer: Backbone
) -> None:
    backbone = head_backbone if answer == "head" else writer
    assert predictor(backbone, answer).predict([]) == []


@pytest.mark.parametrize("answer", ["head", "generate"])
def test_progress_counts_every_document_once(
    answer: AnswerMode,
    head_backbone: Backbone,
    writer: Backbone,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(predict, "MAX_BATCH_TOKENS", 20)  # several batches
    backbone = head_backbone if answer == "head" else writer
    told: list[int] = []
    predictor(backbone, answer).predict(EXAMPLES, advance=told.append)
    assert sum(told) == len(TEXTS)
    assert answer == "generate" or len(told) > 1


def test_size_of_a_batch_changes_no_output(
    head_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = predictor(head_backbone)
    whole = asked.predict(EXAMPLES)
    monkeypatch.setattr(predict, "MAX_BATCH_TOKENS", 20)
    np.testing.assert_allclose(values(asked.predict(EXAMPLES)), values(whole), atol=1e-6)


def test_text_that_is_too_long_is_refused_by_its_place_under_the_policy_error(
    head_backbone: Backbone,
) -> None:
    with pytest.raises(DataError, match=r"a\.csv, row 0: \d+ tokens, but at most 10 fit"):
        predictor(head_backbone, limit=LengthLimit(10, "error")).predict(EXAMPLES)


def test_text_that_is_too_long_is_read_from_its_start_under_the_policy_truncate(
    head_backbone: Backbone, plain_model: PreTrainedModel
) -> None:
    found = predictor(head_backbone, limit=LengthLimit(10, "truncate")).predict(EXAMPLES[2:3])
    expected = probabilities(plain_model, raw_ids(head_backbone, TEXTS[2])[:10])
    np.testing.assert_allclose(values(found)[0], expected, atol=1e-5)


@pytest.mark.parametrize("answer", ["head", "generate"])
def test_answer_tells_how_much_of_its_text_was_cut(
    answer: AnswerMode, head_backbone: Backbone, writer: Backbone
) -> None:
    backbone = head_backbone if answer == "head" else writer
    lengths = [len(each.token_ids) for each in predictor(backbone, answer).encode(EXAMPLES)]
    most = sorted(lengths)[-2]
    found = predictor(backbone, answer, LengthLimit(most, "truncate")).predict(EXAMPLES)
    assert [each.num_cut_tokens for each in found] == [max(0, each - most) for each in lengths]
    assert max(lengths) > most
    whole = predictor(backbone, answer).predict(EXAMPLES)
    assert {each.num_cut_tokens for each in whole} == {0}


def test_loss_of_documents_without_weight_is_none(head_backbone: Backbone) -> None:
    task = load_task("classification")
    told = [dataclasses.replace(each, target="good") for each in EXAMPLES]
    features = task.encode(
        told, STATE, head_backbone.tokenizer, answer="head", limit=WIDE, with_target=True
    )
    unlearned = [dataclasses.replace(each, weight=0.0) for each in features]
    assert mean_loss(task, head_backbone, features, STATE) > 0
    assert mean_loss(task, head_backbone, unlearned, STATE) == 0


def test_probabilities_of_a_texts_windows_are_averaged(
    head_backbone: Backbone, plain_model: PreTrainedModel
) -> None:
    ids = raw_ids(head_backbone, TEXTS[2])
    windows = [ids[start : start + 10] for start in range(0, len(ids), 10)]
    assert len(windows) > 2
    expected = np.mean([probabilities(plain_model, window) for window in windows], axis=0)
    found = predictor(head_backbone, limit=LengthLimit(10, "window")).predict(EXAMPLES)
    np.testing.assert_allclose(values(found)[2], expected, atol=1e-5)
    assert [each.id for each in found] == [each.id for each in EXAMPLES]


@pytest.mark.parametrize("policy", ["truncate", "window"])
def test_prompt_that_is_too_long_loses_only_of_its_text(
    policy: LengthPolicy, writer: Backbone
) -> None:
    whole = len(predictor(writer, "generate").encode(EXAMPLES[2:3])[0].token_ids)
    limit = LengthLimit(whole - 5, policy)
    found = predictor(writer, "generate", limit).encode(EXAMPLES[2:3])
    for each in found:
        text = writer.tokenizer.decode(each.token_ids)
        assert text.startswith("Classify the text as one of: bad, fine, good.\n\nText:")
        assert text.endswith("\nLabel:")
    assert len(found) == (2 if policy == "window" else 1)


@pytest.mark.parametrize("training", [True, False])
def test_model_is_asked_without_dropout_and_then_left_as_it_was(
    training: bool, head_backbone: Backbone
) -> None:
    seen: list[bool] = []
    handle = head_backbone.core.register_forward_pre_hook(
        lambda module, _: seen.append(module.training)
    )
    head_backbone.model.train(training)
    try:
        predictor(head_backbone).predict(EXAMPLES)
        assert head_backbone.model.training is training
        assert head_backbone.core.training is training
    finally:
        handle.remove()
        head_backbone.model.eval()
    assert set(seen) == {False}


def test_model_is_left_as_it_was_when_answering_fails(
    head_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr(predict, "head_outputs", fail)
    head_backbone.model.train()
    try:
        with pytest.raises(ValueError, match=r"^$"):
            predictor(head_backbone).predict(EXAMPLES)
        assert head_backbone.model.training
    finally:
        head_backbone.model.eval()


def test_worked_examples_stand_before_every_prompt_in_their_order(writer: Backbone) -> None:
    for each, example in zip(
        predictor(writer, "generate").encode(EXAMPLES, shots=SHOTS), EXAMPLES, strict=True
    ):
        assert writer.tokenizer.decode(each.token_ids) == (
            "Classify the text as one of: bad, fine, good.\n\n"
            "Text: slow service\nLabel: bad\n\nText: a brave fox\nLabel: good\n\n"
            f"Text: {example.text}\nLabel:"
        )


def test_targets_of_the_examples_are_not_looked_at(writer: Backbone) -> None:
    told = [dataclasses.replace(each, target="good") for each in EXAMPLES]
    asked = predictor(writer, "generate")
    assert asked.predict(told) == asked.predict(EXAMPLES)


def test_outputs_of_the_head_stand_in_the_order_of_the_documents(head_backbone: Backbone) -> None:
    asked = predictor(head_backbone)
    features = asked.encode(EXAMPLES)
    with torch.inference_mode():
        outputs_FC = head_outputs(asked.task, head_backbone, features)
        alone = [asked.task.outputs(head_backbone, pack([each]))[0] for each in features]
    np.testing.assert_allclose(outputs_FC, alone, atol=1e-5)


TALKS = [
    Example(
        f"t{number}",
        text,
        "soup",
        extra={
            "messages": [
                {"role": "system", "content": "You know the river and the home of the fox."},
                {"role": "user", "content": text},
                {"role": "assistant", "content": "soup, and again soup"},
            ]
        },
    )
    for number, text in enumerate(TEXTS)
]
TRANSLATED = [
    Example(each.id, each.text, "soup and bread", extra={"source": each.text}) for each in EXAMPLES
]


@pytest.mark.parametrize("task", ["translation", "dialogue"])
def test_truth_is_as_likely_where_what_all_start_with_is_read_once(
    task: str, writer: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples, shots = (TALKS, []) if task == "dialogue" else (TRANSLATED, TRANSLATED[:1])
    read: list[int] = []

    def counted(documents: Sequence[Features], **options: Any) -> Batch:  # noqa: ANN401
        read.extend(len(each.token_ids) for each in documents)
        return pack(documents, **options)

    monkeypatch.setattr(predict, "pack", counted)
    generation = GenerationSettings(max_new_tokens=2)
    limit = LengthLimit(400, "error")
    asked = Predictor(
        writer, load_task(task), TaskState(), "generate", limit, generation=generation
    )
    together = asked.examine(examples, shots=shots)
    num_together = sum(read)
    alone = [asked.examine([each], shots=shots)[0] for each in examples]
    assert num_together < 0.75 * (sum(read) - num_together)
    for one, other in zip(together, alone, strict=True):
        assert one.truth_log_likelihood == pytest.approx(other.truth_log_likelihood, rel=1e-4)
        assert one.num_truth_tokens == other.num_truth_tokens
    assert writer.start is None


def watch_tokenizer(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Give a list that gets how many texts become tokens at once."""
    seen: list[int] = []
    encode = Tokenizer.encode

    def counted(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Encoded]:
        seen.append(len(texts))
        return encode(tokenizer, texts)

    monkeypatch.setattr(Tokenizer, "encode", counted)
    return seen


@pytest.mark.parametrize("answer", ["head", "generate"])
def test_rows_become_tokens_some_at_a_time_and_are_answered_as_together(
    answer: AnswerMode, head_backbone: Backbone, writer: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = head_backbone if answer == "head" else writer
    limit = LengthLimit(10 if answer == "head" else 200, "truncate")
    asked, shots = predictor(backbone, answer, limit), SHOTS if answer == "generate" else ()
    whole = asked.predict(EXAMPLES, shots=shots)
    monkeypatch.setattr(chunks, "ROWS_PER_CHUNK", 2)
    told: list[int] = []
    seen = watch_tokenizer(monkeypatch)
    parts = asked.predict(EXAMPLES, shots=shots, advance=told.append)
    assert (max(seen), sum(told)) == (2 if answer == "head" else 3 + 1, len(EXAMPLES))
    np.testing.assert_allclose(values(parts), values(whole), atol=1e-5)
    assert [(each.id, each.num_cut_tokens) for each in parts] == [
        (each.id, each.num_cut_tokens) for each in whole
    ]


@pytest.mark.parametrize("is_encoded", [False, True])
def test_truths_become_tokens_some_at_a_time_and_are_as_likely_as_together(
    is_encoded: bool, writer: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = GenerationSettings(max_new_tokens=3)
    asked = Predictor(
        writer, load_task("translation"), TaskState(), "generate", WIDE, generation=generation
    )
    whole = asked.examine(TRANSLATED)
    features = asked.encode(TRANSLATED) if is_encoded else None
    monkeypatch.setattr(chunks, "ROWS_PER_CHUNK", 2)
    seen = watch_tokenizer(monkeypatch)
    parts = asked.examine(TRANSLATED, features=features)
    assert max(seen) == 2
    assert [(each.id, each.answer) for each in parts] == [(each.id, each.answer) for each in whole]
    for one, other in zip(parts, whole, strict=True):
        assert one.truth_log_likelihood == pytest.approx(other.truth_log_likelihood, rel=1e-4)
        assert one.num_truth_tokens == other.num_truth_tokens
