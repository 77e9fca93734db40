"""A server that is killed loses no feedback that it has acknowledged, and starts again on the same store."""

import socket
import sqlite3
import subprocess
import time
from pathlib import Path

import httpx

from tests.stores import start_python

SERVE = """
import sys
from types import SimpleNamespace
import uvicorn
from fastapi import FastAPI
from lushan.data.columns import Columns
from lushan.feedback.store import FeedbackStore
from lushan.serving.feedback_api import router
from tests.stores import new_database
app = FastAPI()
app.include_router(router)
state = SimpleNamespace(multi_label=False)
class Task:  # reads everything; a real one would import torch, which is slow
    columns = Columns(required=("text", "label"))
    def read(self, row, **_):
        return row
predictor = SimpleNamespace(task=Task(), state=state, version="1")
app.state.models = {"reviews": SimpleNamespace(predictor=predictor)}
app.state.feedback = FeedbackStore(new_database(sys.argv[1]))
app.state.keys = None
uvicorn.run(app, port=int(sys.argv[2]), log_level="error")
"""


def start_server(store: Path, port: int) -> subprocess.Popen[str]:
    process = start_python(SERVE, [str(store), str(port)])
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.1)
    process.kill()
    raise AssertionError("the server does not listen")


def send_until_it_dies(process: subprocess.Popen[str], url: str, *, first: int) -> list[str]:
    """Send feedback, kill the server behind the 20th answer, and give the ids that were acknowledged."""
    acknowledged: list[str] = []
    with httpx.Client() as client:
        for number in range(first, first + 1000):
            body = {"id": f"row-{number}", "model": "reviews", "input": "A", "correction": "good"}
            try:
                client.post(url, json=body).raise_for_status()
            except httpx.TransportError:
                break
            acknowledged.append(body["id"])
            if len(acknowledged) == 20:
                process.kill()
    process.communicate()
    return acknowledged


def test_killed_server_has_every_feedback_that_it_acknowledged(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    acknowledged: list[str] = []
    for first in (0, 1000):
        process = start_server(tmp_path, port)
        url = f"http://127.0.0.1:{port}/v1/feedback"
        acknowledged += send_until_it_dies(process, url, first=first)
    connection = sqlite3.connect(tmp_path / "lushan.sqlite3")
    stored = [row[0] for row in connection.execute("SELECT id FROM feedback ORDER BY number")]
    connection.close()
    assert len(acknowledged) == 40
    assert stored[:20] == acknowledged[:20]
    assert set(acknowledged) <= set(stored)
