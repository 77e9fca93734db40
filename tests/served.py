"""Servers for tests: the real one, in a thread, on a free port of this machine."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from lushan.feedback.store import FeedbackStore
from lushan.serving.app import make_app
from lushan.serving.hosted import HostedModel
from lushan.serving.keys import KeyGate
from lushan.serving.serve_settings import ServeSettings
from lushan.serving.server import address_of, open_port

CHAT_TEMPLATE = """\
{{ bos_token }}{% for message in messages %}[{{ message.role }}] {{ message.content | trim }}
{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""
TOOL_TEMPLATE = """\
{{ bos_token }}{% if tools %}[tools]{% for tool in tools %} {{ tool | tojson }}{% endfor %}

{% endif %}{% for message in messages %}[{{ message.role }}] {{ message.content | trim }}
{%- for call in message.tool_calls or [] %}
<call>
{"name": {{ call.function.name | tojson }}, "arguments": {{ call.function.arguments | tojson }}}
</call>
{%- endfor %}{{ eos_token if message.role == 'assistant' }}
{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"""
"""Writes tools and calls much as Qwen's and Hermes' do."""
CONTEXT_TOKENS = 4096
PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Served:
    """A server that runs."""

    url: str
    app: FastAPI
    server: uvicorn.Server

    def get(self, path: str, **options: Any) -> httpx.Response:  # noqa: ANN401
        """Ask for something."""
        return httpx.get(self.url + path, timeout=PATIENCE_SECONDS, **options)

    def post(self, path: str, body: object, **options: Any) -> httpx.Response:  # noqa: ANN401
        """Send JSON."""
        return httpx.post(self.url + path, json=body, timeout=PATIENCE_SECONDS, **options)


@contextmanager
def serving(
    models: Sequence[HostedModel] = (),
    *,
    targets: Sequence[str] = (),
    feedback: FeedbackStore | None = None,
    keys: KeyGate | None = None,
    **settings: object,
) -> Iterator[Served]:
    """Run a server with models that are loaded, or are to be."""
    told = ServeSettings.model_validate({"port": 0, "grace_seconds": 0.0, **settings})
    app = make_app(models, told, targets=targets, feedback=feedback, keys=keys)
    opened = open_port(told)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, timeout_graceful_shutdown=int(told.grace_seconds)
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
    thread.start()
    try:
        wait_until(lambda: app.state.is_ready or app.state.failure or not thread.is_alive())
        yield Served(address_of(opened), app, server)
    finally:
        server.should_exit = True
        thread.join()
        opened.close()


def wait_until(is_so: Callable[[], object], *, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "It did not happen."
        time.sleep(0.005)


def write_chat_model(source: Path, folder: Path, template: str = CHAT_TEMPLATE) -> Path:
    """Copy a tiny model; give it a chat template, and room for long answers."""
    shutil.copytree(source, folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = CONTEXT_TOKENS
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
