"""The application: readiness, what it says of itself, keys, and clients that go away."""

import asyncio
import logging
import threading
from pathlib import Path

import httpx
import openai
import pytest

from lushan.errors import ModelError, RunError
from lushan.model_store.resident import Resident
from lushan.serving import app as app_module
from lushan.serving import backends
from lushan.serving.backends import room_for
from lushan.serving.errors import RequestError
from lushan.serving.hosted import HostedModel, host
from lushan.serving.worker import Worker
from tests.served import Served, serving, wait_until

LONG = {"model": "chatter", "prompt": "the fox", "max_tokens": 4000, "stream": True}


def test_server_is_not_ready_until_its_models_are(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_load, threads = threading.Event(), list[str]()

    def load(target: str, resident: Resident) -> HostedModel:
        threads.append(threading.current_thread().name)
        may_load.wait()
        return host(target, resident)

    monkeypatch.setattr(app_module, "host", load)
    monkeypatch.setattr("tests.served.wait_until", lambda _: None)
    with serving(targets=[str(tiny_run)]) as served:
        wait_until(lambda: served.server.started)
        early = [served.get(path) for path in ("/healthz", "/readyz", "/v1/models")]
        may_load.set()
        wait_until(lambda: served.app.state.is_ready)
        late = [served.get(path) for path in ("/healthz", "/readyz", "/v1/models")]
    assert [each.status_code for each in early] == [200, 503, 503]
    assert early[2].headers["retry-after"] == "2"
    assert [each.status_code for each in late] == [200, 200, 200]
    assert late[1].json() == {"status": "ready", "models": ["run"]}
    assert threads == ["lushan-compute"]  # models share layers, which one thread alone may use


def test_model_that_cannot_be_served_stops_the_server(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    stopped = threading.Event()
    with serving(targets=[str(tmp_path)]) as served:
        served.app.state.stop = stopped.set
        wait_until(lambda: served.app.state.failure is not None)
        assert isinstance(served.app.state.failure, RunError)
        assert served.get("/readyz").status_code == 503


def test_model_that_takes_more_memory_than_models_may_is_refused(tiny_run: Path) -> None:
    with serving(targets=[str(tiny_run)], max_model_gigabytes=1e-6) as served:
        assert isinstance(served.app.state.failure, ModelError)
        assert "Unload one, or allow more" in str(served.app.state.failure)


def test_metrics_tell_the_memory_of_what_was_loaded(tiny_run: Path) -> None:
    with serving(targets=[str(tiny_run)]) as served:
        page = served.get("/metrics").text
        expected = served.app.state.resident.num_bytes
    (line,) = (each for each in page.splitlines() if each.startswith("lushan_weight_bytes "))
    assert float(line.split()[1]) == expected > 0


def test_models_that_write_share_what_memory_their_weights_leave(
    chatter: HostedModel,
    writer: HostedModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    of_token = room_for(chatter, 1, share=1.0).num_bytes
    monkeypatch.setattr(backends, "free_memory_bytes", lambda: 40_000 * of_token)
    monkeypatch.setattr(logging.getLogger("lushan.serving"), "propagate", True)
    with caplog.at_level(logging.INFO), serving([chatter, writer]) as served:
        room = asyncio.run(served.app.state.worker.prepare(chatter))
    records = [vars(each) for each in caplog.records if each.message == "Remembers."]
    told = {each["fields"]["model"]: each["fields"] for each in records}
    assert list(told) == ["chatter", "writer"]
    assert {each["tokens"] for each in told.values()} == {room.num_tokens} == {10_000}
    assert told["chatter"]["bytes"] == 10_000 * of_token


def test_fault_while_loading_stops_the_server_too(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = ZeroDivisionError("ours")

    def fail(*_: object) -> HostedModel:
        raise fault

    monkeypatch.setattr(app_module, "host", fail)
    with serving(targets=["any"]) as served:
        assert served.app.state.failure is fault


def test_client_that_goes_away_frees_its_rows(served: Served) -> None:
    worker = served.app.state.worker
    with httpx.stream("POST", f"{served.url}/v1/completions", json=LONG) as answer:
        lines = answer.iter_lines()  # to forget it closes the connection
        next(lines)
        assert worker.num_running == 1
    wait_until(lambda: worker.num_running == 0, seconds=2)


def test_client_that_does_not_wait_for_a_whole_answer_frees_its_rows(served: Served) -> None:
    worker = served.app.state.worker
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{served.url}/v1/completions", json=LONG | {"stream": False}, timeout=0.2)
    wait_until(lambda: worker.num_running == 0, seconds=2)


def test_request_past_its_deadline_gets_504_or_an_event(chatter: HostedModel) -> None:
    with serving([chatter], deadline_seconds=0.3) as served:
        whole = served.post("/v1/completions", LONG | {"stream": False})
        stream = served.post("/v1/completions", LONG)
    assert whole.status_code == 504
    assert whole.json()["error"]["code"] == "deadline_exceeded"
    assert '"code": "deadline_exceeded"' in stream.text.splitlines()[-4]


def test_full_queue_is_told_with_the_time_to_come_again(chatter: HostedModel) -> None:
    with serving([chatter], max_rows=1, max_waiting=1) as served:
        worker = served.app.state.worker
        url = f"{served.url}/v1/completions"
        with httpx.stream("POST", url, json=LONG) as running:
            lines = running.iter_lines()
            next(lines)
            waiting = threading.Thread(
                target=served.post, args=("/v1/completions", LONG | {"max_tokens": 1})
            )
            waiting.start()
            wait_until(lambda: worker.num_waiting == 1)
            refused = served.post("/v1/completions", LONG)
        waiting.join()
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")


def test_page_of_a_named_origin_can_read_that_something_failed_here(
    classifier: HostedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("hidden detail")

    monkeypatch.setattr(Worker, "predict", fail)
    page = "https://app.example"
    with serving([classifier], cors_origins=[page]) as served:
        found = served.post("/v1/predict/run", "a", headers={"origin": page})
    assert found.status_code == 500
    assert found.headers["access-control-allow-origin"] == page
    assert "x-request-id" in found.headers["access-control-expose-headers"]


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"{", 400, "The body is no JSON"),
        (b"[]", 400, "valid"),
        (b"\xff\xfe", 400, ""),
        (b'{"model": "\\ud800"}', 400, ""),
        (b"[" * 100_000, 400, ""),
        (b" " * 4_000_001, 413, "4,000,000 bytes at most"),
        (b'{"model": "chatter", "prompt": "a", "temperature": NaN}', 400, "temperature"),
    ],
)
def test_malformed_body_is_refused(
    content: bytes, status: int, message: str, served: Served
) -> None:
    headers = {"content-type": "application/json"}
    found = httpx.post(f"{served.url}/v1/completions", content=content, headers=headers)
    assert found.status_code == status
    assert message in found.json()["error"]["message"]


def test_body_of_unknown_length_that_is_too_large_is_refused(served: Served) -> None:
    headers = {"content-type": "application/json"}
    parts = (b" " * 100_000 for _ in range(50))
    found = httpx.post(f"{served.url}/v1/completions", content=parts, headers=headers)
    assert found.status_code == 413


def test_metrics_count_requests_tokens_and_time(served: Served, client: openai.OpenAI) -> None:
    client.completions.create(model="chatter", prompt="the fox", max_tokens=3)
    page = served.get("/metrics").text
    assert 'lushan_requests_total{route="/v1/completions",status="200"}' in page
    assert 'lushan_tokens_total{kind="completion",model="chatter"}' in page
    assert 'lushan_request_seconds_bucket{le="0.1",route="/v1/completions"}' in page
    assert "lushan_waiting 0.0" in page
    assert "lushan_running 0.0" in page


class Gate:
    """Knows one key."""

    def admit(self, text: str | None, scope: str) -> None:
        if (text, scope) != ("right", "chat"):
            raise RequestError("No.", status=401, code="invalid_api_key")


def test_keys_are_asked_for_where_there_are_any(chatter: HostedModel) -> None:
    with serving([chatter]) as served:
        served.app.state.keys = Gate()
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError, match=r"No\."):
            client.models.list()
        assert [x.id for x in client.with_options(api_key="right").models.list()] == ["chatter"]
        assert served.get("/readyz").status_code == 200
        client.close()


def test_no_page_loads_anything_from_elsewhere(served: Served) -> None:
    assert [served.get(path).status_code for path in ("/docs", "/redoc")] == [404, 404]
    assert served.get("/openapi.json").json()["info"]["title"] == "Lushan"
