"""Several models asked in one pass: compared with each asked alone, on a backbone of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lushan.backbones.load import Backbone
from lushan.inference import mixed
from lushan.inference.mixed import predict_mixed
from lushan.inference.predict import Predictor
from lushan.model_store.resident import Resident
from lushan.model_store.tuned_model import load_predictor
from lushan.records import Batch, Example
from tests.many_runs import KINDS, assert_same, examples_of

Question = tuple[Predictor, Sequence[Example]]


def asked(resident: Resident, runs: Path, names: Sequence[str]) -> list[Question]:
    for name in names:
        resident.load(runs / name)
    return [(resident.model(name).predictor, examples_of(KINDS[name].task)) for name in names]


def answer(resident: Resident, questions: Sequence[Question], name: str) -> list[Any]:
    base = resident.model(name).base
    assert base is not None
    return predict_mixed(base.layers, questions)


@pytest.mark.parametrize("most_tokens", [16, 4096])
def test_every_task_answers_among_others_as_alone(
    most_tokens: int, many_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixed, "MAX_BATCH_TOKENS", most_tokens)
    resident, names = Resident(), list(KINDS)
    questions = asked(resident, many_runs, names)
    found = answer(resident, questions, names[0])
    for name, ours in zip(names, found, strict=True):
        theirs = load_predictor(many_runs / name).predict(examples_of(KINDS[name].task))
        assert_same(ours, theirs)


def test_models_that_read_take_one_pass(many_runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["topics", "names", "answers", "stars", "links", "quiz"]
    resident = Resident()
    questions = asked(resident, many_runs, names)
    passes: list[int] = []
    run = Backbone._run

    def counted(backbone: Backbone, call: Any) -> Any:  # noqa: ANN401
        passes.append(call.token_ids_1T.shape[1])
        return run(backbone, call)

    monkeypatch.setattr(Backbone, "_run", counted)
    answer(resident, questions, names[0])
    features = [predictor.encode(examples) for predictor, examples in questions]
    assert passes == [sum(len(each.token_ids) for own in features for each in own)]


def test_head_is_asked_about_nothing_but_its_own_documents(
    many_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = Resident()
    questions = asked(resident, many_runs, ["topics", "stars"])
    seen: list[list[int]] = []
    outputs = type(questions[0][0].task).outputs

    def watched(task: Any, backbone: Backbone, batch: Batch) -> Any:  # noqa: ANN401
        seen.append([each.example_index for each in batch.features])
        return outputs(task, backbone, batch)

    monkeypatch.setattr(type(questions[0][0].task), "outputs", watched)
    answer(resident, [(questions[0][0], questions[0][1][:2]), questions[1]], "topics")
    assert [sorted(each) for each in seen] == [[0, 1], list(range(len(questions[1][1])))]
    assert all(predictor.backbone.frozen is None for predictor, _ in questions)
