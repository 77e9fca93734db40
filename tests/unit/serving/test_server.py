"""The process: the port, the signals, and no word to any other machine."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from lushan.errors import SettingError
from lushan.serving.page.texts import LANGUAGES
from lushan.serving.serve_settings import AccessSettings, ServeSettings
from lushan.serving.server import address_of, config_of, open_port, serve
from tests.invariants.test_offline import GUARD
from tests.served import wait_until
from tests.stores import new_database


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Give an environment in which no Python process can open a connection."""
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD, encoding="utf-8")
    paths = [str(tmp_path / "guard"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "SOCKETS_OPENED": str(tmp_path / "sockets_opened"),
        "LUSHAN_CACHE": str(tmp_path / "cache"),
        "LUSHAN_STORE": str(tmp_path / "store"),
        "OMP_NUM_THREADS": "1",
    }


@contextmanager
def started(*targets: str, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run `lushan serve` as a process of its own."""
    words = ["serve", *targets, "--port", "0", "--json", "--grace-seconds", "20"]
    command = [sys.executable, "-m", "lushan", *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as found:
        yield found
        found.kill()


@pytest.fixture
def process(environment: dict[str, str], chat_folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Give a server with a model."""
    with started(str(chat_folder), environment=environment) as found:
        yield found


@pytest.fixture
def page_process(environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Give a server with the page alone."""
    with started(environment=environment) as found:
        yield found


def is_ready(url: str) -> bool:
    return httpx.get(f"{url}/readyz").status_code == 200


def test_sigterm_finishes_what_runs_and_takes_nothing_new(
    process: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert process.stdout is not None
    url = json.loads(process.stdout.readline())["address"]
    wait_until(lambda: is_ready(url), seconds=60)
    body = {"model": "chatter", "prompt": "the fox", "max_tokens": 500, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: is_refused(url))
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert process.wait(timeout=20) == 0
    assert not (tmp_path / "sockets_opened").exists()


def is_refused(url: str) -> bool:
    try:
        httpx.get(f"{url}/healthz")
    except (httpx.NetworkError, httpx.RemoteProtocolError):  # refused, or taken and closed at once
        return True
    return False


def test_tab_that_is_open_does_not_keep_the_server_from_stopping(
    page_process: subprocess.Popen[str],
) -> None:
    assert page_process.stdout is not None
    assert page_process.stderr is not None
    url = json.loads(page_process.stdout.readline())["address"]
    wait_until(lambda: is_ready(url), seconds=60)
    places = [f"{url}/ui/{language}/gradio_api/heartbeat/tab" for language in LANGUAGES]
    with ExitStack() as stack:
        opened = [stack.enter_context(httpx.stream("GET", each, timeout=60)) for each in places]
        tabs = [each.iter_lines() for each in opened]
        assert [next(each) for each in tabs] == ["data: ALIVE"] * len(LANGUAGES)
        page_process.send_signal(signal.SIGTERM)
        assert page_process.wait(timeout=15) == 0  # less than the grace for what runs
    assert "Cancel" not in page_process.stderr.read()


def test_host_that_others_can_reach_is_refused_without_keys(tmp_path: Path) -> None:
    settings = ServeSettings(host="0.0.0.0")  # noqa: S104
    message = r"`--host 0\.0\.0\.0` lets other machines ask.* Make one with `lushan keys create`"
    with new_database(tmp_path) as database, pytest.raises(SettingError, match=message):
        serve(["any"], settings, database=database, with_page=False, listening=print)


def test_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingError, match=f"port {port}: .*Choose another with `--port`"):
            open_port(ServeSettings(port=port))


def test_address_that_is_not_of_this_machine_is_told() -> None:
    with pytest.raises(SettingError, match=r"Cannot listen on `203\.0\.113\.1`"):
        open_port(ServeSettings(host="203.0.113.1", port=0))


def test_address_names_the_port_that_was_found() -> None:
    with open_port(ServeSettings(port=0)) as opened:
        assert address_of(opened) == f"http://127.0.0.1:{opened.getsockname()[1]}"


def test_this_machine_is_refused_without_keys_where_it_is_to_bring_them(tmp_path: Path) -> None:
    settings = ServeSettings(access_settings=AccessSettings(require_keys=True))
    message = (
        r"`--require-keys` asks everybody for API keys, .* Make one with `lushan keys create`\.$"
    )
    with new_database(tmp_path) as database, pytest.raises(SettingError, match=message):
        serve(["any"], settings, database=database, with_page=False, listening=print)


def test_proxy_that_is_trusted_where_none_may_ask_is_refused(tmp_path: Path) -> None:
    access = AccessSettings(trusted_proxies=("127.0.0.1",))
    message = r"`--trusted-proxy` has no effect without API keys.* Add `--require-keys`"
    with new_database(tmp_path) as database, pytest.raises(SettingError, match=message):
        serve(
            ["any"],
            ServeSettings(access_settings=access),
            database=database,
            with_page=False,
            listening=print,
        )


@pytest.mark.parametrize(
    ("trusted", "client"),
    [((), "127.0.0.1"), (("10.0.0.0/8",), "127.0.0.1"), (("127.0.0.1",), "203.0.113.9")],
)
def test_proxy_is_believed_whose_requests_it_passes_on_where_it_is_trusted(
    trusted: tuple[str, ...], client: str
) -> None:
    seen: list[str] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope["client"][0])

    access = AccessSettings(require_keys=True, trusted_proxies=trusted)
    config = config_of(cast("FastAPI", app), ServeSettings(access_settings=access))
    config.load()
    scope = {
        "type": "http",
        "client": ("127.0.0.1", 1),
        "headers": [(b"x-forwarded-for", b"198.51.100.1, 203.0.113.9")],
    }
    loaded: Any = config.loaded_app
    asyncio.run(loaded(scope, None, None))
    assert seen == [client]
