"""`/v1/feedback` with a real store and a task that reads; the model itself is not asked."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from lushan.catalog import load_task
from lushan.database.connect import Database
from lushan.feedback.store import FeedbackStore
from lushan.serving.feedback_api import EXAMPLES, router
from lushan.serving.hosted import HostedModel
from lushan.serving.key_store import KeyStore
from lushan.serving.keys import KeyGate
from tests.served import serving
from tests.stores import fill, forbid_writing, given, make_key, new_database
from tests.unit.serving.small_app import answering_errors

BODY = {"model": "reviews", "input": "Not bad at all.", "rating": "bad", "correction": "positive"}


def hosted(task: str, *, multi_label: bool = False) -> SimpleNamespace:
    """Give what the routes look at of a `HostedModel`."""
    state = SimpleNamespace(multi_label=multi_label)
    predictor = SimpleNamespace(task=load_task(task), state=state, version="abc123")
    return SimpleNamespace(name=task, predictor=predictor)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with new_database(tmp_path) as opened:
        yield opened


@pytest.fixture
def client(database: Database) -> TestClient:
    app = answering_errors(FastAPI())
    app.include_router(router)
    app.state.models = {"reviews": hosted("classification"), "names": hosted("tagging")}
    app.state.feedback = FeedbackStore(database)
    app.state.keys = None
    return TestClient(app)


def send(client: TestClient, **values: Any) -> httpx2.Response:  # noqa: ANN401 - JSON
    return client.post("/v1/feedback", json={**BODY, **values})


def told(response: httpx2.Response) -> tuple[int, str | None, str | None]:
    error = response.json()["error"]
    return response.status_code, error["param"], error["code"]


def test_feedback_is_stored_with_task_and_version_of_the_model(
    client: TestClient, database: Database
) -> None:
    response = send(client, id="one")
    assert response.status_code == 201
    (stored,) = FeedbackStore(database).stream()
    assert response.json() == stored.model_dump(mode="json")
    expected = {**BODY, "id": "one", "task": "classification", "model_version": "abc123"}
    assert {name: getattr(stored, name) for name in expected} == expected


def test_version_that_answered_is_kept_when_another_is_served_by_now(client: TestClient) -> None:
    assert send(client, model_version="older").json()["model_version"] == "older"


def test_feedback_sent_again_is_stored_once(client: TestClient, database: Database) -> None:
    first, again = send(client, id="one"), send(client, id="one")
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert len(FeedbackStore(database).page()) == 1


def test_id_of_other_feedback_is_a_conflict(client: TestClient) -> None:
    send(client, id="one")
    assert told(send(client, id="one", correction="negative")) == (409, "id", "id_taken")


def test_unknown_model_is_told_with_the_known_ones(client: TestClient) -> None:
    response = send(client, model="other")
    assert told(response) == (404, "model", "model_not_found")
    assert "Served: reviews, names." in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "values",
    [
        {"correction": ["a", "b"]},
        {"input": {"txt": "A"}},
        {"model": "names", "input": "Ada", "correction": [[0, 9, "person"]]},
    ],
    ids=str,
)
def test_correction_that_could_not_be_learned_is_refused_and_not_stored(
    client: TestClient, database: Database, values: dict[str, Any]
) -> None:
    assert send(client, **values).status_code == 400
    assert FeedbackStore(database).page() == []


@pytest.mark.parametrize("values", [{"rating": "fine"}, {"rating": None, "correction": None}])
def test_body_that_is_no_feedback_is_refused(client: TestClient, values: dict[str, Any]) -> None:
    assert send(client, **values).status_code == 422  # the app of the server makes it a 400


def test_disk_that_cannot_be_written_is_told_without_its_path(
    client: TestClient, database: Database, tmp_path: Path
) -> None:
    forbid_writing(database)
    response = send(client)
    assert told(response) == (503, None, "store_unavailable")
    assert str(tmp_path) not in response.text


def test_pages_give_all_feedback_once(client: TestClient, database: Database) -> None:
    fill(database, num_rows=5)
    ids: list[str] = []
    page: dict[str, Any] = {"has_more": True}
    while page["has_more"]:
        after = {"after": ids[-1]} if ids else {}
        page = client.get("/v1/feedback", params={"limit": 2, **after}).json()
        assert page["object"] == "list"
        ids += [each["id"] for each in page["data"]]
    assert ids == [f"row-{number}" for number in range(5)]


def test_feedback_of_one_model_is_listed(client: TestClient, database: Database) -> None:
    for model in ("a", "b"):
        FeedbackStore(database).add(given(model=model), task="classification")
    listed = client.get("/v1/feedback", params={"model": "b"}).json()["data"]
    assert [each["model"] for each in listed] == ["b"]


def test_page_after_an_unknown_id_is_refused(client: TestClient) -> None:
    response = client.get("/v1/feedback", params={"after": "none"})
    assert told(response) == (404, "after", "id_unknown")
    assert "no feedback with the id `none`" in response.json()["error"]["message"]


def test_sending_and_reading_need_different_keys(client: TestClient, database: Database) -> None:
    keys = KeyStore(database)
    assert isinstance(client.app, FastAPI)
    client.app.state.keys = KeyGate(keys)
    assert send(client).status_code == 401
    client.headers["Authorization"] = f"Bearer {make_key(keys, 'page', 'feedback').text}"
    assert send(client).status_code == 201
    assert told(client.get("/v1/feedback")) == (403, None, "missing_scope")
    client.headers["Authorization"] = f"Bearer {make_key(keys, 'boss', 'admin').text}"
    assert len(client.get("/v1/feedback").json()["data"]) == 1


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_the_api_document_are_right(client: TestClient, name: str) -> None:
    response = client.post("/v1/feedback", json=EXAMPLES[name]["value"])
    assert response.status_code == 201


def test_server_keeps_feedback_and_asks_for_keys(
    classifier: HostedModel, database: Database
) -> None:
    keys = KeyStore(database)
    text = make_key(keys, "page", "feedback").text
    body = {**BODY, "model": classifier.name}
    store = FeedbackStore(database)
    with serving([classifier], feedback=store, keys=KeyGate(keys)) as served:
        assert served.post("/v1/feedback", body).status_code == 401
        headers = {"Authorization": f"Bearer {text}"}
        assert served.post("/v1/feedback", body, headers=headers).status_code == 201
        assert served.post("/v1/feedback", {}, headers=headers).status_code == 400
        asked = served.post(f"/v1/predict/{classifier.name}", {}, headers=headers)
        assert asked.json()["error"]["code"] == "missing_scope"
        document = served.get("/openapi.json").json()
    (stored,) = store.stream()
    assert stored.task == "classification"
    assert stored.model_version == classifier.predictor.version
    assert document["paths"]["/v1/feedback"]["post"]["security"] == [{"API key": []}]
    assert "security" not in document["paths"]["/healthz"]["get"]
