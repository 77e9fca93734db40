"""`/v1/predict`: rows of any task."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import lushan
from lushan.backbones.encoding import LengthLimit
from lushan.inference.generation_settings import GenerationSettings
from lushan.records import Row, plain_prediction
from lushan.serving.hosted import HostedModel
from tests.served import Served, serving, wait_until

TEXTS = ["The gull sleeps under a pale moon.", "The ridge remembers the long winter."]


def test_rows_are_answered_as_by_lushan_predict(served: Served, tiny_run: Path) -> None:
    found = served.post("/v1/predict/run", [{"text": TEXTS[0]}, TEXTS[1]]).json()
    expected = [plain_prediction(each) for each in lushan.load(tiny_run).predict(TEXTS)]
    for answer, wanted in zip(found, expected, strict=True):
        assert answer["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-5)
    assert [each["row"] for each in found] == [1, 2]
    assert [each["answer"] for each in found] == [each["answer"] for each in expected]
    assert [each["id"] for each in found] == [each["id"] for each in expected]
    assert found[0].keys() == {"row", *expected[0]}


def test_one_row_gives_one_answer(served: Served) -> None:
    whole = served.post("/v1/predict/run", TEXTS).json()
    assert served.post("/v1/predict/run", {"text": TEXTS[0]}).json()["answer"] == whole[0]["answer"]


def test_row_that_was_cut_tells_it_and_others_do_not(classifier: HostedModel) -> None:
    limit = LengthLimit(16, "truncate")
    short = replace(classifier, predictor=replace(classifier.predictor, limit=limit))
    with serving([short]) as served:
        whole, cut = served.post("/v1/predict/run", ["The gull.", TEXTS[0]]).json()
    assert "num_cut_tokens" not in whole
    assert cut["num_cut_tokens"] > 0


def test_model_that_writes_answers_rows_as_it_chats(chatter: HostedModel) -> None:
    generation = GenerationSettings(max_new_tokens=20)
    brief = replace(chatter, predictor=replace(chatter.predictor, generation=generation))
    row = {"messages": [{"role": "user", "content": "the fox"}]}
    with serving([brief]) as served:
        found = served.post("/v1/predict/chatter", [row] * 3).json()
        chat = served.post("/v1/chat/completions", {"model": "chatter", **row}).json()
    assert [each["answer"] for each in found] == [chat["choices"][0]["message"]["content"]] * 3
    assert found[0]["model_version"] == chatter.predictor.version


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"words": "a"}, "Row 1 has the column `words`, which `run` does not read. Known: text"),
        ([{"text": "a"}, {"text": 3}], "request, row 2"),
        ([{"text": "a"}, {}], "request, row 2"),
        ([], "at least 1 item"),
        (["a"] * 1025, "at most 1024 items"),
        (7, "valid"),
    ],
)
def test_row_that_does_not_fit_is_refused(rows: Any, message: str, served: Served) -> None:  # noqa: ANN401
    refused = served.post("/v1/predict/run", rows)
    assert refused.status_code == 400
    assert message in refused.json()["error"]["message"]


def test_unknown_model_is_not_found(served: Served) -> None:
    refused = served.post("/v1/predict/other", "a")
    assert refused.status_code == 404
    assert "Served: chatter, run." in refused.json()["error"]["message"]


def test_tokens_of_rows_are_counted(classifier: HostedModel) -> None:
    predictor = classifier.predictor
    examples = [
        predictor.task.read(Row({"text": each}, "", 1), needs_target=False) for each in TEXTS
    ]
    expected = sum(len(each.token_ids) for each in predictor.encode(examples))
    with serving([classifier]) as served:
        served.post("/v1/predict/run", TEXTS)
        counted = f'lushan_tokens_total{{kind="prompt",model="run"}} {expected}.0'
        wait_until(lambda: counted in served.get("/metrics").text)  # behind the answer
