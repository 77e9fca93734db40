"""Who may ask: hosts, origins, and how often."""

import asyncio

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from lushan.serving.errors import RequestError
from lushan.serving.guard import MOST_CLIENTS, Guard, RateLimit
from lushan.serving.serve_settings import MOST_UPLOAD_BYTES, ServeSettings
from tests.served import Served, serving


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil", "[", ""])
def test_request_under_another_name_of_this_machine_is_refused(host: str, served: Served) -> None:
    found = served.get("/v1/models", headers={"host": host})
    assert found.status_code == 403
    assert found.json()["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:1", "[::1]:8000"])
def test_names_of_this_machine_are_known(host: str, served: Served) -> None:
    assert served.get("/healthz", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1"])
def test_page_of_another_origin_is_refused(origin: str, served: Served) -> None:
    found = served.get("/v1/models", headers={"origin": origin})
    assert found.status_code == 403
    assert "access-control-allow-origin" not in found.headers


def test_page_of_the_server_itself_may_ask(served: Served) -> None:
    assert served.get("/v1/models", headers={"origin": served.url}).status_code == 200


@pytest.mark.parametrize("name", ["X-Forwarded-For", "X-Real-IP", "Forwarded"])
def test_request_that_a_proxy_passes_on_needs_keys(name: str, served: Served) -> None:
    found = served.get("/v1/models", headers={name: "for=203.0.113.9"})
    assert found.status_code == 403
    assert found.json()["error"]["code"] == "proxy_not_allowed"
    assert "`--require-keys`" in found.json()["error"]["message"]


def test_server_that_asks_for_keys_answers_behind_a_proxy_under_its_name() -> None:
    passed_on = {"host": "example.org", "x-forwarded-for": "203.0.113.9"}
    origins = ["https://example.org", "https://evil.example"]
    with serving(access_settings={"require_keys": True}) as served:
        found = [served.get("/v1/models", headers={**passed_on, "origin": x}) for x in origins]
    assert [each.status_code for each in found] == [200, 403]


def test_named_origin_may_ask_and_the_browser_is_told() -> None:
    page = "https://app.example"
    with serving(cors_origins=[page]) as served:
        found = served.get("/v1/models", headers={"origin": page})
        other = served.get("/v1/models", headers={"origin": "https://evil.example"})
    assert found.headers["access-control-allow-origin"] == page
    assert (found.status_code, other.status_code) == (200, 403)


def test_named_page_may_send_what_openais_client_does_and_read_why_it_is_refused() -> None:
    page = "https://app.example"
    asked = {
        "origin": page,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,x-stainless-os",
        "access-control-request-private-network": "true",
    }
    with serving(cors_origins=[page], requests_per_minute=1, max_body_bytes=1000) as served:
        before = [httpx.options(f"{served.url}/v1/models", headers=asked) for _ in range(3)]
        large = served.post("/v1/completions", "a" * 1001, headers={"origin": page})
        found = [served.get("/v1/models", headers={"origin": page}) for _ in range(2)]
    assert [each.status_code for each in (*before, large, *found)] == [200] * 3 + [413, 200, 429]
    told = before[0].headers
    assert "x-stainless-os" in told["access-control-allow-headers"]
    assert told["access-control-allow-private-network"] == "true"
    for each in (large, *found):
        assert each.headers["access-control-allow-origin"] == page
        assert each.headers["access-control-expose-headers"] == "retry-after, x-request-id"


@pytest.mark.parametrize(
    ("path", "num_bytes", "is_taken"),
    [
        ("/ui/zh/gradio_api/upload", 5_000_000, True),
        ("/ui/zh/gradio_api/upload", MOST_UPLOAD_BYTES + 2_000, False),
        ("/ui/zh/gradio_api/upload/x", 5_000_000, False),
        ("/v1/completions", 5_000_000, False),
    ],
)
def test_only_files_for_the_page_may_be_large(path: str, num_bytes: int, is_taken: bool) -> None:
    told: list[Message] = []
    taken: list[Scope] = []

    async def page(scope: Scope, _receive: Receive, _send: Send) -> None:
        taken.append(scope)

    async def receive() -> Message:
        return {}

    async def send(message: Message) -> None:
        told.append(message)

    headers = [(b"host", b"localhost"), (b"content-length", str(num_bytes).encode())]
    scope: Scope = {"type": "http", "path": path, "headers": headers}
    asyncio.run(Guard(page, settings=ServeSettings())(scope, receive, send))
    assert bool(taken) is is_taken
    assert [each["status"] for each in told[:1]] == [413] * (not is_taken)


def test_client_that_asks_too_often_is_told_when_to_come_again() -> None:
    with serving(requests_per_minute=2) as served:
        found = [served.get("/v1/models") for _ in range(3)]
        health = served.get("/healthz")
    assert [each.status_code for each in found] == [200, 200, 429]
    assert found[2].headers["retry-after"] == "30"
    assert health.status_code == 200


def test_requests_come_back_evenly_and_each_client_has_its_own() -> None:
    now = [0.0]
    limit = RateLimit(60, clock=lambda: now[0])
    for _ in range(60):
        limit.count("a")
    limit.count("b")
    now[0] = 0.9
    with pytest.raises(RequestError, match="More than 60 requests in a minute"):
        limit.count("a")
    now[0] = 1.0
    limit.count("a")


def test_clients_that_are_remembered_are_bounded() -> None:
    limit = RateLimit(1)
    for number in range(MOST_CLIENTS + 5):
        limit.count(str(number))
    assert len(limit._buckets) == MOST_CLIENTS
