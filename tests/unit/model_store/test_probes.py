"""What is asked for a certificate, and what of the answers must be equal."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lushan.backbones.chat import PLAIN_CHAT
from lushan.backbones.encoding import LengthLimit
from lushan.backbones.load import load_backbone
from lushan.catalog import load_task
from lushan.errors import CertificateError
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.predict import Predictor
from lushan.model_store.probes import (
    NUM_WRITTEN_PROBES,
    NUM_WRITTEN_TOKENS,
    SAME_ARITHMETIC,
    Tolerance,
    compare,
    describe_answers,
    ties_of,
)
from lushan.records import Example, Prediction, Span, TaskState
from tests.conftest import MakeTiny
from tests.saved import EXAMPLES, LABELS, save_tuned

TOLERANCE = SAME_ARITHMETIC.probability


def within(probability: float, log_likelihood: float = 0.0) -> Tolerance:
    return Tolerance(probability, log_likelihood, "a test")


@pytest.fixture(scope="module")
def chooser(tiny_folder: MakeTiny, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return save_tuned(tmp_path_factory.mktemp("chooser"), tiny_folder("llama"))


@pytest.fixture(scope="module")
def writer(tiny_folder: MakeTiny) -> Predictor:
    backbone = load_backbone(tiny_folder("llama"), purpose="language")
    settings = GenerationSettings(max_new_tokens=64, temperature=1.0, stop_strings=("###",))
    state = TaskState(stop_strings=("\n",))
    task = load_task("translation")
    return Predictor(backbone, task, state, "generate", LengthLimit(60), generation=settings)


def test_answers_are_described_by_ids_labels_answers_and_probabilities(chooser: Predictor) -> None:
    found = describe_answers(chooser, EXAMPLES)
    predictions = chooser.predict(EXAMPLES)
    assert found["labels"] == list(LABELS)
    assert found["answers"] == [each.answer for each in predictions]
    by_label = [dict(zip(LABELS, row, strict=True)) for row in found["probabilities"]]
    assert by_label == [each.probabilities for each in predictions]
    assert found["log_likelihoods"] == [[each.log_likelihood] for each in predictions]
    assert json.loads(json.dumps(found)) == found


def test_what_stands_around_texts_and_answers_is_described(writer: Predictor) -> None:
    found = describe_answers(writer, EXAMPLES[:1])
    assert (found["stop_tokens"], found["stop_strings"]) == ([2], ["###", "\n"])
    assert (found["threshold"], found["length_limit"]) == (None, [60, "error"])
    assert found["tokenizer"] == writer.backbone.tokenizer.fingerprint
    assert writer.backbone.tokenizer.chat.text == PLAIN_CHAT


def test_several_labels_of_a_text_are_described_as_a_list_with_their_threshold(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    state = TaskState(labels=LABELS, multi_label=True)
    found = describe_answers(save_tuned(tmp_path, tiny_folder("llama"), state=state), EXAMPLES)
    assert json.loads(json.dumps(found)) == found
    assert any(len(each) > 1 for each in found["answers"])
    assert found["threshold"] == 0.5


@torch.inference_mode()
def test_tokens_that_a_model_writes_are_the_greedy_ones_of_transformers(
    writer: Predictor, tiny_folder: MakeTiny
) -> None:
    found = describe_answers(writer, EXAMPLES)
    theirs: Any = AutoModelForCausalLM.from_pretrained(tiny_folder("llama")).eval()
    for prompt, ours in zip(found["token_ids"], found["written_ids"], strict=True):
        (whole,) = theirs.generate(
            input_ids=torch.tensor([prompt]), do_sample=False, max_new_tokens=NUM_WRITTEN_TOKENS
        )
        assert ours == whole[len(prompt) :].tolist()[: len(ours)]
    assert len(found["written_ids"]) == len(EXAMPLES)
    assert max(map(len, found["written_ids"])) == NUM_WRITTEN_TOKENS


def test_two_tokens_are_a_tie_where_the_model_of_transformers_finds_them_as_likely(
    writer: Predictor, tiny_folder: MakeTiny
) -> None:
    found = describe_answers(writer, EXAMPLES[:1])
    (prompt,), (written,) = found["token_ids"], found["written_ids"]
    theirs = AutoModelForCausalLM.from_pretrained(tiny_folder("llama")).eval()
    with torch.inference_mode():
        logits_V = theirs(input_ids=torch.tensor([[*prompt, *written[:3]]])).logits[0, -1]
    best, second = logits_V.topk(2).indices.tolist()
    gap = float(logits_V[best] - logits_V[second])
    asked = (0, written[:3], second, best)
    assert ties_of(writer, [prompt], tolerance=within(0, gap + 1e-3))(*asked)
    assert not ties_of(writer, [prompt], tolerance=within(0, gap - 1e-3))(*asked)


def test_parts_of_an_answer_are_compared_as_text_and_their_probabilities_as_numbers(
    chooser: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = (Span(0, 1, "x", "a", 0.25), Span(2, 5, "y", "fox", 0.5))
    answered = [Prediction("1", spans), Prediction("2", ())]
    monkeypatch.setattr(type(chooser), "predict", lambda *_, **__: answered)
    found = describe_answers(chooser, EXAMPLES[:2])
    assert found["probabilities"] == [[0.25, 0.5], []]
    assert found["answers"][0][0] == {"start": 0, "end": 1, "label": "x", "text": "a", "probability": None}  # fmt: skip
    other = {**found, "probabilities": [[0.25, 0.5 + 1e-3], []]}
    with pytest.raises(CertificateError, match=r"Probe 1, probabilities: differ by up to 0\.001"):
        compare(found, other)


# What must be equal

ANSWERS: dict[str, Any] = {
    "labels": ["a", "b"],
    "threshold": 0.5,
    "stop_tokens": [2],
    "stop_strings": ["\n"],
    "chat_template": "12ab",
    "tokenizer": "34cd",
    "length_limit": [128, "window"],
    "token_ids": [[1, 2], [3]],
    "answers": ["a", "b"],
    "probabilities": [[0.75, 0.25], [0.4, 0.6]],
    "log_likelihoods": [[-0.28], [-2.0]],
}
WRITTEN: dict[str, Any] = {
    **{name: ANSWERS[name] for name in ANSWERS if name not in ("answers", "probabilities")},
    "written_ids": [[5, 6, 7], [8]],
    "log_likelihoods": [[-0.1, -0.2, -0.3], [-0.4]],
}


def changed(change: Callable[[dict[str, Any]], object], base: Any = ANSWERS) -> dict[str, Any]:  # noqa: ANN401
    found = copy.deepcopy(base)
    change(found)
    return found


@pytest.mark.parametrize(
    ("name", "other", "told"),
    [
        ("labels", ["b", "a"], r"Labels: expected \['a', 'b'\], got \['b', 'a'\]"),
        ("threshold", 0.9, r"Threshold: expected 0\.5, got 0\.9"),
        ("stop_tokens", [2, 7], r"Stop tokens: expected \[2\], got \[2, 7\]"),
        ("stop_strings", [], r"Stop strings: expected \['\\n'\], got \[\]"),
        ("chat_template", "99", "Chat template: expected '12ab', got '99'"),
        ("tokenizer", "99", "Tokenizer: expected '34cd', got '99'"),
        ("length_limit", [9, "error"], r"Length limit: expected \[128, 'window'\], got \[9"),
        ("token_ids", [[1, 2], [1, 3]], r"Probe 2, token ids: expected \[3\], got \[1, 3\]"),
        ("token_ids", [[1, 2]], "Number of probes: expected 2, got 1"),
        ("answers", ["a", "a"], "Probe 2, answer, from the same numbers: expected 'b', got 'a'"),
        ("probabilities", [[0.75], [0.4, 0.6]], "Probe 1, number of prob.*expected 2, got 1"),
        ("log_likelihoods", [[-0.28], [-2.1]], r"Probe 2, log lik.*0\.05.*expected -2, got -2\.1"),
    ],
)
def test_whatever_differs_is_named_with_what_was_expected_and_what_came(
    name: str, other: object, told: str
) -> None:
    with pytest.raises(CertificateError, match=told):
        compare(ANSWERS, changed(lambda found: found.update({name: other})))


@pytest.mark.parametrize("sign", [1, -1])
def test_probabilities_may_differ_by_the_tolerance_and_the_largest_difference_is_told(
    sign: int,
) -> None:
    def change(found: dict[str, Any]) -> None:
        found["probabilities"][1][0] += sign * 0.9 * TOLERANCE

    assert compare(ANSWERS, changed(change)) == pytest.approx(9e-6)


@pytest.mark.parametrize("value", [0.4 + 1.1e-5, 0.4 - 1.1e-5, math.nan])
def test_probabilities_that_differ_by_more_are_refused(value: float) -> None:
    def change(found: dict[str, Any]) -> None:
        found["probabilities"][1][0] = value

    with pytest.raises(CertificateError, match="Probe 2, probabilities: differ by up to"):
        compare(ANSWERS, changed(change))
    if not math.isnan(value):
        assert compare(ANSWERS, changed(change), tolerance=within(1e-3)) == pytest.approx(1.1e-5)


def test_probabilities_that_are_no_numbers_on_both_sides_are_refused() -> None:
    def change(found: dict[str, Any]) -> None:
        found["probabilities"][1] = [math.nan, math.nan]

    with pytest.raises(CertificateError, match="probabilities: differ by up to nan"):
        compare(changed(change), changed(change))


def test_answer_may_be_another_where_numbers_moved_within_the_tolerance() -> None:
    def change(found: dict[str, Any]) -> None:
        found |= {"answers": ["a", "a"], "probabilities": [[0.75, 0.25], [0.45, 0.55]]}

    assert compare(ANSWERS, changed(change), tolerance=within(0.1)) == pytest.approx(0.05)
    with pytest.raises(CertificateError, match=r"Probe 2, probabilities.*at most 0\.01 is allowed"):
        compare(ANSWERS, changed(change), tolerance=within(0.01))


def test_log_likelihoods_have_a_tolerance_of_their_own_and_beyond_1_it_is_a_share() -> None:
    other = changed(lambda found: found["log_likelihoods"][1].__setitem__(0, -2.1))
    assert compare(ANSWERS, other, tolerance=within(0, 0.06)) == pytest.approx(0.05)
    with pytest.raises(CertificateError, match=r"Probe 2, log lik.*at most 0\.04 is allowed"):
        compare(ANSWERS, other, tolerance=within(0.06, 0.04))


def test_other_written_tokens_are_refused() -> None:
    other = changed(lambda found: found["written_ids"][0].__setitem__(1, 9), WRITTEN)
    told = r"Probe 1, written tokens: expected \[5, 6, 7\], got \[5, 9, 7\]"
    with pytest.raises(CertificateError, match=told):
        compare(WRITTEN, other)
    shorter = changed(lambda found: found["written_ids"][0].pop(), WRITTEN)
    with pytest.raises(CertificateError, match=r"expected \[5, 6, 7\], got \[5, 6\]"):
        compare(WRITTEN, shorter, is_tie=lambda *_: True)


def test_what_was_written_behind_two_equally_likely_tokens_is_not_compared() -> None:
    def change(found: dict[str, Any]) -> None:
        found["written_ids"][0] = [5, 9]
        found["log_likelihoods"][0] = [-0.1, -7.0]

    asked: list[tuple[object, ...]] = []

    def is_tie(*question: object) -> bool:
        asked.append(question)
        return True

    assert compare(WRITTEN, changed(change, WRITTEN), is_tie=is_tie) == 0.0
    assert asked == [(0, [5], 9, 6)]


def test_numbers_of_written_tokens_are_compared_one_by_one() -> None:
    other = changed(lambda found: found["log_likelihoods"][0].__setitem__(2, -0.4), WRITTEN)
    with pytest.raises(CertificateError, match=r"Probe 1, log likelihoods: differ by up to 0\.1"):
        compare(WRITTEN, other)


def test_only_some_probes_are_answered_by_a_model_that_writes(writer: Predictor) -> None:
    many = [Example(str(number), f"text {number}", None) for number in range(12)]
    found = describe_answers(writer, many)
    assert (len(found["token_ids"]), len(found["written_ids"])) == (12, NUM_WRITTEN_PROBES)
    assert compare(found, found) == 0.0
    lacking = {**found, "written_ids": found["written_ids"][:-1]}
    with pytest.raises(CertificateError, match=r"Probe 8, written tokens: expected .*, got \[\]"):
        compare(found, lacking)


def test_form_that_a_probe_asks_for_does_not_hide_what_the_model_prefers(writer: Predictor) -> None:
    text = EXAMPLES[0].text
    asked = [Example("1", text, None), Example("2", text, None, extra={"form": {"regex": "no"}})]
    free, formed = describe_answers(writer, asked)["written_ids"]
    assert free == formed
