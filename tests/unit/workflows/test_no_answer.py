"""What a trained model learns from the validation rows: from which probability on it gives no answer."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lushan.inference.predict import Predictor
from lushan.metrics.answering import Question, score_answer
from lushan.model_store.certificate import certify, read_certificate, replay
from lushan.model_store.tuned_model import load_predictor, save_model
from lushan.records import AnswerMode, Example, Prediction, Span
from lushan.workflows.meaning import meaning_of
from lushan.workflows.no_answer import with_threshold
from lushan.workflows.setup import Setup
from lushan.workflows.tune import untrained
from tests.generation import plain_model
from tests.runs import answers_of_this_process
from tests.unit.workflows.conftest import BuildSetup

Tuned = tuple[Setup, Predictor]


def rows(*, all_answered: bool = False) -> Iterator[dict[str, object]]:
    """Give questions about short texts, each third without an answer."""
    for number, name in enumerate(("Ada", "Bob", "Cleo", "Dora", "Emil", "Finn", "Gus", "Hal") * 3):
        context = f"{name} left the house {number} in May, and the soup was cold."
        answers = [{"text": name, "answer_start": 0}] if number % 3 or all_answered else []
        yield {"context": context, "question": "Who left?", "answers": answers}


@pytest.fixture(params=["head", "generate"])
def tuned(request: pytest.FixtureRequest, build_setup: BuildSetup) -> Tuned:
    return answering(build_setup, request.param, list(rows()))


def answering(
    build_setup: BuildSetup, answer: AnswerMode, data: Sequence[dict[str, object]]
) -> Tuned:
    generation = {"max_new_tokens": 3}
    setup = build_setup(rows=data, task="answering", answer=answer, generation=generation)
    predictor = untrained(setup, tell=lambda _: None)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in predictor.backbone.model.parameters():
            weight.add_(torch.randn(weight.shape, generator=draw) * 0.05)
    return setup, predictor


def f1_at(examples: Sequence[Example], answered: Sequence[Prediction], threshold: float) -> float:
    total = 0.0
    for example, prediction in zip(examples, answered, strict=True):
        assert prediction.no_answer_probability is not None
        given = text_of(prediction) if prediction.no_answer_probability <= threshold else ""
        truths = example.target or ()
        right = [each.text if isinstance(each, Span) else str(each) for each in truths]
        total += score_answer(Question(tuple(right)), given).f1
    return total / len(examples)


def text_of(prediction: Prediction) -> str:
    if isinstance(prediction.answer, str):
        return prediction.answer
    return "".join(each.text for each in prediction.answer if isinstance(each, Span))


def with_truth_of_the_surer_half(
    predictor: Predictor, examples: Sequence[Example]
) -> list[Example]:
    """Have the answers be right that are the likelier half, and nothing be right of the others."""
    always = replace(predictor, state=replace(predictor.state, no_answer_threshold=1.0))
    answered = always.predict(examples)
    absences = [each.no_answer_probability or 0.0 for each in answered]
    middle = sorted(absences)[len(absences) // 2]
    return [
        replace(example, target=(text_of(each),) if absence < middle else ())
        for example, each, absence in zip(examples, answered, absences, strict=True)
    ]


def test_threshold_is_the_best_on_the_validation_rows_and_is_used(tuned: Tuned) -> None:
    setup, predictor = tuned
    examples = [*setup.parts.validation, *setup.parts.test, *setup.parts.train]
    examples = with_truth_of_the_surer_half(predictor, examples)
    settled, points = with_threshold(predictor, examples, tell=lambda _: None)
    threshold = settled.state.no_answer_threshold
    assert threshold is not None
    always = replace(settled, state=replace(settled.state, no_answer_threshold=1.0))
    answered = always.predict(examples)
    tried = {0.0, *(each.no_answer_probability or 0.0 for each in answered)}
    best = max(f1_at(examples, answered, each) for each in tried)
    assert f1_at(examples, answered, threshold) == pytest.approx(best)
    assert best > max(f1_at(examples, answered, each) for each in (0.0, 1.0))
    used = settled.predict(examples)
    withheld = [(each.no_answer_probability or 0.0) > threshold for each in answered]
    assert [not each.answer for each in used] == [
        hidden or not each.answer for hidden, each in zip(withheld, answered, strict=True)
    ]
    scores = settled.task.score(used, examples, settled.state).metrics
    (point,) = (each for each in points if each["is_best"])
    assert scores["f1"].value == pytest.approx(point["f1"]) == pytest.approx(best)
    for name in ("has_answer_f1", "has_answer_exact_match", "no_answer_accuracy"):
        assert scores[name].value == pytest.approx(point[name])


def test_threshold_is_saved_certified_and_read_back(
    tuned: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "lushan.model_store.certificate._answers_of_fresh_process", answers_of_this_process
    )
    setup, predictor = tuned
    settled = replace(predictor, state=replace(predictor.state, no_answer_threshold=0.125))
    save_model(
        tmp_path / "model", settled.backbone, meaning_of(setup, settled, base_digest="unused")
    )
    certify(tmp_path, settled, setup.parts.test)
    loaded = load_predictor(tmp_path)
    assert loaded.state.no_answer_threshold == 0.125
    assert read_certificate(tmp_path)["answers"]["threshold"] == 0.125
    assert replay(tmp_path, loaded) == 0
    found, expected = (each.predict(setup.parts.test) for each in (loaded, settled))
    assert [each.answer for each in found] == [each.answer for each in expected]
    assert all(each.no_answer_probability is not None for each in found)


def test_written_no_answer_is_as_likely_as_transformers_finds_it(build_setup: BuildSetup) -> None:
    setup, predictor = answering(build_setup, "generate", list(rows()))
    asking = replace(predictor, state=replace(predictor.state, no_answer_threshold=0.5))
    (found,) = asking.absences(setup.parts.test[:1])
    blank = replace(setup.parts.test[0], target=())
    (told,) = predictor.task.encode(
        [blank],
        predictor.state,
        predictor.backbone.tokenizer,
        answer="generate",
        limit=setup.limit,
        with_target=True,
    )
    plain = deepcopy(plain_model(setup.base))  # other tests share it
    plain.load_state_dict(predictor.backbone.plain_model.state_dict())
    ids = torch.tensor([told.token_ids])
    logs = plain(ids).logits.log_softmax(-1)[0, told.targets_from - 1 : -1]
    expected = logs.gather(1, ids[0, told.targets_from :, None]).sum()
    assert found == pytest.approx(float(expected.detach()), rel=1e-4)


def test_rows_of_one_kind_decide_nothing(build_setup: BuildSetup) -> None:
    setup, predictor = answering(build_setup, "head", list(rows()))
    told: list[str] = []
    answered = [each for each in setup.parts.train if each.target]
    assert with_threshold(predictor, answered, tell=told.append) == (predictor, [])
    assert "It stays at 0.5" in told[0]
    setup, predictor = answering(build_setup, "head", list(rows(all_answered=True)))
    assert with_threshold(predictor, setup.parts.validation, tell=told.append) == (predictor, [])
    assert len(told) == 1


def test_rows_of_one_kind_withhold_nothing_that_a_model_writes(build_setup: BuildSetup) -> None:
    setup, predictor = answering(build_setup, "generate", list(rows()))
    told: list[str] = []
    answered = [each for each in setup.parts.train if each.target]
    assert with_threshold(predictor, answered, tell=told.append) == (predictor, [])
    assert told[0].endswith("No answer that it writes is withheld.")
