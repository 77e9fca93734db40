"""What the log and a client are told."""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from lushan.backbones.encoding import LengthLimit
from lushan.serving.hosted import HostedModel
from lushan.serving.observation import JsonLines
from lushan.serving.worker import Worker
from tests.served import Served, serving, wait_until

SAID = "the soup was cold"


class Lines(logging.Handler):
    """Keeps the log as the server writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonLines())
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))

    def of(self, request_id: str) -> list[dict[str, Any]]:
        wait_until(lambda: any("status" in x and x["request"] == request_id for x in self.lines))
        return [each for each in self.lines if each.get("request") == request_id]


@pytest.fixture
def log() -> Iterator[Lines]:
    logger, lines = logging.getLogger("lushan.serving"), Lines()
    level = logger.level
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(lines)
    logger.setLevel(level)


def test_each_request_is_one_line_without_texts(served: Served, log: Lines) -> None:
    body = {"model": "chatter", "messages": [{"role": "user", "content": SAID}], "max_tokens": 3}
    found = served.post("/v1/chat/completions", body)
    (line,) = log.of(found.headers["x-request-id"])
    assert (line["route"], line["status"], line["model"]) == (
        "/v1/chat/completions",
        200,
        "chatter",
    )
    assert line["num_completion_tokens"] == 3
    assert SAID not in json.dumps(log.lines)


def test_texts_are_logged_where_that_was_asked_for(chatter: HostedModel, log: Lines) -> None:
    with serving([chatter], log_texts=True) as served:
        found = served.post(
            "/v1/completions", {"model": "chatter", "prompt": SAID, "max_tokens": 2}
        )
        (line,) = log.of(found.headers["x-request-id"])
    assert line["asked"]["prompt"] == SAID
    assert line["answered"] == [found.json()["choices"][0]["text"]]


def test_rows_vectors_and_explanations_tell_their_model_and_size(
    classifier: HostedModel, log: Lines
) -> None:
    asked: dict[str, Any] = {
        "/v1/predict/run": [SAID],
        "/v1/embeddings": {"model": "run", "input": SAID},
        "/v1/explain": {"model": "run", "texts": [SAID]},
    }
    num_tokens = len(classifier.predictor.backbone.tokenizer.encode([SAID])[0].ids)
    for log_texts in (False, True):
        with serving([classifier], log_texts=log_texts) as served:
            found = [served.post(path, body) for path, body in asked.items()]
            lines = [log.of(each.headers["x-request-id"])[-1] for each in found]
        assert [each["model"] for each in lines] == ["run"] * 3
        assert lines[0]["rows"] == 1
        assert [each["num_prompt_tokens"] for each in lines[1:]] == [num_tokens] * 2
        assert [SAID in json.dumps(each) for each in lines] == [log_texts] * 3
    assert lines[2]["answered"] == [each["answer"] for each in found[2].json()["explanations"]]


def test_chat_about_a_text_that_was_cut_tells_how_much(classifier: HostedModel, log: Lines) -> None:
    limit = LengthLimit(16, "truncate")
    short = replace(classifier, predictor=replace(classifier.predictor, limit=limit))
    with serving([short]) as served:
        asked = {"model": "run", "messages": [{"role": "user", "content": SAID * 9}]}
        found = served.post("/v1/chat/completions", asked)
        (line,) = log.of(found.headers["x-request-id"])
    assert line["num_cut_tokens"] == found.json()["num_cut_tokens"] > 0


def test_failure_of_ours_has_an_id_that_the_log_has_too_and_no_traceback(
    served: Served, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("hidden detail")

    monkeypatch.setattr(Worker, "predict", fail)
    found = served.post("/v1/predict/run", "a")
    error = found.json()["error"]
    assert (found.status_code, error["code"]) == (500, "internal_error")
    request_id = found.headers["x-request-id"]
    assert request_id in error["message"]
    assert "hidden detail" not in found.text
    failure, answered = log.of(request_id)
    assert "hidden detail" in failure["traceback"]
    assert answered["status"] == 500


def test_failure_in_the_middle_of_a_stream_is_its_last_event(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate_all = Worker.generate_all

    async def fail_later(self: Worker, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        async for event in generate_all(self, *args, **options):
            yield event
            raise RuntimeError("hidden detail")

    monkeypatch.setattr(Worker, "generate_all", fail_later)
    body = {"model": "chatter", "prompt": "a", "stream": True}
    found = served.post("/v1/completions", body)
    *_, error, done = found.text.strip().split("\n\n")
    assert done == "data: [DONE]"
    message = json.loads(error.removeprefix("data: "))["error"]["message"]
    assert found.headers["x-request-id"] in message
    assert "hidden detail" not in found.text


def test_route_that_is_not_there_is_counted_as_other(served: Served, log: Lines) -> None:
    found = served.get("/nothing/here")
    assert found.status_code == 404
    assert found.json()["error"]["type"] == "not_found_error"
    (line,) = log.of(found.headers["x-request-id"])
    assert line["route"] == "other"
