"""Where the server asks for keys, the page lets in who has one, also by a browser's question for a password."""

import base64
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from lushan.errors import SettingError
from lushan.serving.errors import RequestError
from lushan.serving.key_store import KeyStore
from lushan.serving.keys import KeyGate
from lushan.serving.page.access import Gate, check_is_guarded
from tests.stores import make_key, new_database


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


class Keys:
    """Knows one key."""

    def recognise(self, text: str | None, scope: str) -> object:
        if text != "right:key":
            raise RequestError("Give a key.", status=401)
        if scope != "admin":
            raise RequestError("This key is not for that.", status=403)
        return text


@pytest.fixture
def app() -> FastAPI:
    """Give a server with a page behind the gate."""
    made, page = FastAPI(), FastAPI()

    @page.post("/queue")
    def queue() -> str:
        return "inside"

    made.state.keys = Keys()
    made.mount("/ui", Gate(page, server=made))
    return made


@pytest.mark.parametrize("given", ["Bearer right:key", basic("anyone:right:key")])
def test_visitor_with_a_key_is_let_in(given: str, app: FastAPI) -> None:
    answer = TestClient(app).post("/ui/queue", headers={"Authorization": given})
    assert (answer.status_code, answer.json()) == (200, "inside")


@pytest.mark.parametrize("given", ["", "Bearer wrong", basic("right:key"), "Basic ?", "right:key"])
def test_visitor_without_a_key_is_asked_for_one(given: str, app: FastAPI) -> None:
    answer = TestClient(app).post("/ui/queue", headers={"Authorization": given})
    assert (answer.status_code, answer.text) == (401, "Give a key.")
    assert answer.headers["WWW-Authenticate"].startswith("Basic ")


def test_rate_of_a_key_leaves_room_for_all_that_a_browser_asks_for(
    app: FastAPI, tmp_path: Path
) -> None:
    with new_database(tmp_path) as database:
        store = KeyStore(database)
        key = make_key(store, "me", "admin", requests_per_minute=1).text
        app.state.keys = KeyGate(store)
        headers = {"Authorization": basic(f"me:{key}")}
        with TestClient(app) as visitor:
            found = [visitor.post("/ui/queue", headers=headers).status_code for _ in range(5)]
        (used,) = store.all()
    assert found == [200] * 5
    assert used.last_used_at is not None


def test_visitor_of_a_server_without_keys_is_let_in(app: FastAPI) -> None:
    app.state.keys = None
    assert TestClient(app).post("/ui/queue").status_code == 200


def test_page_of_a_server_for_everybody_needs_keys(app: FastAPI) -> None:
    app.state.settings = SimpleNamespace(host="0.0.0.0", is_on_loopback=False)  # noqa: S104
    check_is_guarded(app)
    app.state.keys = None
    with pytest.raises(SettingError, match=r"open to everybody who reaches `0\.0\.0\.0`"):
        check_is_guarded(app)
