"""`POST /v1/explain`, in an app with a worker that computes at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from lushan.serving.explain_api import MOST_TEXTS, router
from lushan.serving.metrics import Metrics
from lushan.serving.serve_settings import ServeSettings
from lushan.workflows.predict import Opened, open_run
from tests.unit.serving.small_app import answering_errors

TEXTS = ["The harbour sleeps.", "The ridge waits."]


class WorkerAtOnce:
    """Does what it is asked for where it stands, and counts."""

    num_runs = 0
    num_admitted = 0

    @contextmanager
    def admit(self) -> Iterator[object]:
        self.num_admitted += 1
        yield self

    async def run(self, function: Callable[[], Any], *, within: object) -> Any:  # noqa: ANN401
        assert within is self
        self.num_runs += 1
        return function()


@pytest.fixture
def opened(tiny_run: Path) -> Opened:
    return open_run(tiny_run)


@pytest.fixture
def worker() -> WorkerAtOnce:
    return WorkerAtOnce()


@pytest.fixture
def client(opened: Opened, worker: WorkerAtOnce) -> TestClient:
    app = answering_errors(FastAPI())
    app.include_router(router)
    app.state.settings = ServeSettings()
    app.state.worker = worker
    app.state.metrics = Metrics(
        num_waiting=lambda: 0, num_running=lambda: 0, weight_bytes=lambda: 0
    )
    app.state.models = {"reviews": SimpleNamespace(predictor=opened.predictor)}
    return TestClient(app)


def ask(client: TestClient, **body: Any) -> Any:  # noqa: ANN401
    return client.post("/v1/explain", json={"model": "reviews", "texts": TEXTS, **body})


def test_answers_are_explained_as_in_memory(client: TestClient, opened: Opened) -> None:
    found = ask(client, label="sea", baseline="mean").json()
    expected = opened.explain(TEXTS, label="sea", baseline="mean")
    assert found["model"] == "reviews"
    for mine, theirs in zip(found["explanations"], expected, strict=True):
        assert (mine["text"], mine["answer"]) == (theirs.text, theirs.answer)
        (part,) = mine["parts"]
        weights = [each.weight for each in theirs.parts[0].words]
        assert [each["weight"] for each in part["words"]] == pytest.approx(
            weights, rel=1e-3, abs=1e-6
        )


def test_texts_go_to_the_worker_one_by_one_as_one_request(
    client: TestClient, worker: WorkerAtOnce
) -> None:
    assert ask(client).status_code == 200
    assert (worker.num_runs, worker.num_admitted) == (2, 1)


def test_tokens_of_texts_are_counted(client: TestClient, opened: Opened) -> None:
    assert ask(client).status_code == 200
    encoded = opened.predictor.backbone.tokenizer.encode(TEXTS)
    assert isinstance(client.app, FastAPI)
    page = client.app.state.metrics.page().decode()
    num_tokens = sum(len(each.ids) for each in encoded)
    assert f'lushan_tokens_total{{kind="prompt",model="reviews"}} {num_tokens}.0' in page


def test_unknown_model_is_not_found(client: TestClient) -> None:
    answer = ask(client, model="other")
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "`other`" in error["message"]
    assert "reviews" in error["message"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"label": "green"}, "'hill', 'sea'"),
        ({"texts": ["a", " "]}, "text, row 2: column `text` must hold a text"),
        ({"texts": ["long " * 200]}, "at most 128 fit"),
    ],
)
def test_what_the_user_can_mend_is_told(
    body: dict[str, Any], says: str, client: TestClient
) -> None:
    answer = ask(client, **body)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [{"texts": []}, {"texts": ["a"] * (MOST_TEXTS + 1)}, {"baseline": "black"}, {"steps": 3}],
)
def test_malformed_body_is_refused_before_the_model_is_asked(
    body: dict[str, Any], client: TestClient, worker: WorkerAtOnce
) -> None:
    assert ask(client, **body).status_code == 422
    assert worker.num_runs == 0


def test_schema_describes_the_explanation(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert {"ExplainRequest", "ExplainResponse", "Explanation", "Attribution"} <= schemas.keys()
