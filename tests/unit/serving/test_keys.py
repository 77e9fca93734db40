"""The door of the server: who comes in, and what the others are told."""

import logging
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx2
import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from lushan.database.connect import Database
from lushan.serving.errors import RequestError
from lushan.serving.key_store import KeyStore
from lushan.serving.keys import KeyGate, bearer, require_key
from tests.stores import forbid_writing, make_key, new_database
from tests.unit.serving.small_app import answering_errors


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with new_database(tmp_path) as opened:
        yield opened


@pytest.fixture
def store(database: Database) -> KeyStore:
    return KeyStore(database)


@pytest.fixture
def client(store: KeyStore) -> TestClient:
    app = answering_errors(FastAPI())
    app.state.keys = KeyGate(store)
    needs = [Depends(require_key("chat")), Depends(bearer)]
    app.get("/chat", dependencies=needs)(lambda: "hello")
    return TestClient(app)


def ask(client: TestClient, key: str | None) -> httpx2.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return client.get("/chat", headers=headers)


def told(response: httpx2.Response) -> tuple[int, str, str]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["type"], error["code"]


def test_key_with_the_scope_comes_in(client: TestClient, store: KeyStore) -> None:
    for scope in ("chat", "admin"):
        response = ask(client, make_key(store, scope, scope).text)
        assert (response.status_code, response.json()) == (200, "hello")


def test_request_without_a_key_is_told_the_header(client: TestClient) -> None:
    response = ask(client, None)
    assert told(response) == (401, "authentication_error", "missing_api_key")
    assert "`Authorization: Bearer lushan_...`" in response.json()["error"]["message"]


def test_wrong_key_is_refused_and_not_repeated(client: TestClient) -> None:
    response = ask(client, "lushan_000000000000_guess")
    assert told(response) == (401, "authentication_error", "invalid_api_key")
    assert "guess" not in response.text


@pytest.mark.parametrize("header", ["Bearer", "Bearer ", "lushan_a_b", "", "Bearer \xe9"])
def test_header_of_another_form_is_no_key(client: TestClient, header: str) -> None:
    response = client.get("/chat", headers=[(b"Authorization", header.encode("latin-1"))])
    assert told(response)[0] == 401


def test_word_before_the_key_may_be_written_as_one_likes(
    client: TestClient, store: KeyStore
) -> None:
    text = make_key(store, "web", "chat").text
    response = client.get("/chat", headers={"Authorization": f"bearer  {text}"})
    assert response.status_code == 200


def test_basic_authentication_is_no_key(client: TestClient, store: KeyStore) -> None:
    make_key(store, "web", "chat")
    response = client.get("/chat", auth=("web", "secret"))
    assert told(response)[0] == 401


def test_revoked_key_is_refused_at_once(client: TestClient, store: KeyStore) -> None:
    text = make_key(store, "web", "chat").text
    assert ask(client, text).status_code == 200
    store.revoke("web")
    assert told(ask(client, text)) == (401, "authentication_error", "revoked_api_key")


def test_expired_key_is_refused(client: TestClient, store: KeyStore) -> None:
    text = make_key(store, "web", "chat", lifetime=timedelta(microseconds=1)).text
    assert told(ask(client, text)) == (401, "authentication_error", "expired_api_key")


def test_key_for_something_else_is_refused(client: TestClient, store: KeyStore) -> None:
    response = ask(client, make_key(store, "web", "predict", "feedback").text)
    assert told(response) == (403, "permission_error", "missing_scope")
    message = "The API key `web` is for predict, feedback, and this needs `chat`."
    assert response.json()["error"]["message"] == message


def test_server_without_keys_asks_for_none(client: TestClient) -> None:
    assert isinstance(client.app, FastAPI)
    client.app.state.keys = None
    assert ask(client, None).status_code == 200


def test_server_that_was_never_told_about_keys_lets_nobody_in(client: TestClient) -> None:
    assert isinstance(client.app, FastAPI)
    del client.app.state.keys
    with pytest.raises(AttributeError, match="keys"):
        ask(client, None)


def test_key_that_asks_too_often_waits(client: TestClient, store: KeyStore) -> None:
    texts = [make_key(store, name, "chat", requests_per_minute=3).text for name in ("web", "app")]
    assert [ask(client, texts[0]).status_code for _ in range(4)] == [200, 200, 200, 429]
    response = ask(client, texts[0])
    assert told(response) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(response.headers["Retry-After"]) <= 21  # one in 20 seconds
    assert ask(client, texts[1]).status_code == 200


def test_visitor_of_the_page_is_recognised_and_not_counted(store: KeyStore) -> None:
    gate = KeyGate(store)
    text = make_key(store, "me", "admin", requests_per_minute=1).text
    assert {gate.recognise(text, "admin").name for _ in range(3)} == {"me"}
    assert gate.admit(text, "chat").name == "me"
    with pytest.raises(RequestError, match="More than 1 requests in a minute"):
        gate.admit(text, "chat")
    with pytest.raises(RequestError, match="needs `admin`"):
        gate.recognise(make_key(store, "web", "chat").text, "admin")


def test_use_is_noted(client: TestClient, store: KeyStore) -> None:
    made = make_key(store, "web", "chat")
    ask(client, made.text)
    (key,) = store.all()
    assert key.last_used_at is not None


def test_disk_that_cannot_be_written_shuts_nobody_out_and_is_logged(
    client: TestClient, store: KeyStore, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    text = make_key(store, "web", "chat").text
    forbid_writing(database)
    with caplog.at_level(logging.WARNING):
        assert ask(client, text).status_code == 200
    assert "may only be read" in caplog.text


def test_store_that_cannot_be_read_is_told_without_its_path(
    client: TestClient, store: KeyStore, database: Database, tmp_path: Path
) -> None:
    text = make_key(store, "web", "chat").text
    database.close()
    (tmp_path / "lushan.sqlite3").write_bytes(b"no database" * 1000)
    for beside in tmp_path.glob("*-*"):
        beside.unlink()
    response = ask(client, text)
    assert told(response) == (503, "server_error", "store_unavailable")
    assert str(tmp_path) not in response.text


def test_api_document_says_how_to_send_a_key(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert document["paths"]["/chat"]["get"]["security"] == [{"API key": []}]
    scheme = document["components"]["securitySchemes"]["API key"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
