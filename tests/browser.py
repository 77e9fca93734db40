"""Chromium without a window, driven over its debugging pipe: no package and no port is needed."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS_TO_WAIT = 60.0
OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # which refuses to start as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--remote-debugging-pipe",
)


LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for end, number in zip(ends, (3, 4)):
    os.dup2(end, number)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Starts Chromium with its pipe where it looks for it."""


class BrowserError(Exception):
    """A command or a script failed."""


class Page:
    """One tab, and everything that it asked for and complained about."""

    def __init__(self, commands: int, events: BinaryIO) -> None:
        self._commands = commands
        self._events = events
        self._number = 0
        self._session: str | None = None
        self._tab: str | None = None
        self.urls: list[str] = []
        """What was asked for since the last page was opened."""
        self.complaints: list[str] = []
        """Errors of the console and of scripts since then."""

    def send(self, method: str, **parameters: object) -> dict[str, Any]:
        """Send a command and wait for its result."""
        self._number += 1
        message: dict[str, object] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (told := self._read()).get("id") != self._number:
            self._notice(told)
        if "error" in told:
            raise BrowserError(told["error"])
        return told["result"]

    def _read(self) -> dict[str, Any]:
        content = bytearray()
        while (byte := self._events.read(1)) != b"\0":
            if not byte:
                raise EOFError("Chromium has gone.")
            content += byte
        return json.loads(content)

    def _notice(self, told: dict[str, Any]) -> None:
        if told.get("sessionId") != self._session:
            return
        values = told.get("params", {})
        match told.get("method"):
            case "Network.requestWillBeSent":
                self.urls.append(values["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(values["exceptionDetails"]["text"])
            case "Runtime.consoleAPICalled" if values["type"] == "error":
                self.complaints.append(str(values["args"]))
            case "Log.entryAdded" if values["entry"]["level"] == "error":
                self.complaints.append(f"{values['entry']['text']} {values['entry'].get('url')}")

    def open(self, url: str, *, language: str = "en", width: int = 1280) -> None:
        """Open a page in a tab of its own, as a browser of this language and width."""
        self._session = None
        if (
            self._tab is not None
        ):  # which may hold connections, of which a browser has six for each server
            self.send("Target.closeTarget", targetId=self._tab)
        self._tab = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=self._tab, flatten=True)
        self._session = attached["sessionId"]
        self.urls, self.complaints = [], []
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **metrics)
        self.send("Network.setExtraHTTPHeaders", headers={"Accept-Language": language})
        self.send("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:  # noqa: ANN401 - any JSON value
        """Give the value of an expression of JavaScript."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in found:
            raise BrowserError(found["exceptionDetails"])
        return found["result"].get("value")

    def wait_for(self, script: str) -> Any:  # noqa: ANN401 - any JSON value
        """Wait until an expression is true, and give its value."""
        deadline = time.monotonic() + SECONDS_TO_WAIT
        value = None
        while not value:
            assert time.monotonic() < deadline, f"Never true: {script}\n{self.complaints}"
            time.sleep(0.05)
            with suppress(BrowserError):  # the page is still being built
                value = self.evaluate(script)
        return value


@contextmanager
def opened_browser(folder: Path) -> Iterator[Page]:
    """Start Chromium with a profile of its own, or skip the test where there is none."""
    program = next((path for name in NAMES if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"needs a browser: {', '.join(NAMES)}")
    for_it, commands = os.pipe()
    events, from_it = os.pipe()
    command = [program, *OPTIONS, f"--user-data-dir={folder}"]
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(for_it), str(from_it), *command],
        pass_fds=(for_it, from_it),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    os.close(for_it)
    os.close(from_it)
    try:
        with os.fdopen(events, "rb") as told:
            yield Page(commands, told)
    finally:
        os.close(commands)  # without its pipe Chromium ends by itself
        process.wait(timeout=SECONDS_TO_WAIT)
