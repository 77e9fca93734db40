"""The process: opens the port, runs the application until it is told to stop, and lets running requests finish."""

import logging
import math
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from lushan.backbones.packed import WeightsSetting
from lushan.database.connect import Database
from lushan.errors import SettingError
from lushan.feedback.store import FeedbackStore
from lushan.serving.app import make_app
from lushan.serving.backends import BackendName
from lushan.serving.key_store import KeyStore
from lushan.serving.keys import KeyGate
from lushan.serving.observation import JsonLines
from lushan.serving.page import mount_page
from lushan.serving.serve_settings import ServeSettings

_BACKLOG = 512


def serve(
    targets: Sequence[str],
    settings: ServeSettings,
    *,
    weights: WeightsSetting = "auto",
    backend: BackendName = "lushan",
    database: Database,
    with_page: bool,
    listening: Callable[[str], None],
) -> None:
    """Serve models until SIGTERM or Ctrl-C.

    Args:
        targets: Runs and models, as on the command line.
        settings: Where to listen, and what bounds the server.
        weights: How weights are held while models answer.
        backend: What writes answers.
        database: The store of feedback and API keys; what the page keeps lies beside it.
        with_page: Whether there is a page for people.
        listening: Called once with the address, before the models are loaded.

    Raises:
        MissingExtraError: If the page is wanted and `gradio` is not installed.
        SettingError: If the port cannot be opened, keys are needed and there are none, or a proxy is trusted where none may ask.
        UserError: If a model cannot be loaded, or does not answer as its certificate says.
    """
    keys = _gate(database, settings) if settings.asks_for_keys else None
    if keys is None and settings.access_settings.trusted_proxies:
        raise SettingError(
            "`--trusted-proxy` has no effect without API keys: what a proxy passes on is refused then. Add `--require-keys`."
        )
    feedback = FeedbackStore(database)
    app = make_app(
        (),
        settings,
        targets=targets,
        weights=weights,
        backend=backend,
        feedback=feedback,
        keys=keys,
    )
    if with_page:
        app.state.store = Path(database.name).parent
        mount_page(app)
    opened = open_port(settings)
    server = _Server(config_of(app, settings), on_stop=app.state.on_stop)

    def stop() -> None:
        server.should_exit = True

    app.state.stop = stop
    _log_to_stderr()
    listening(address_of(opened))
    # uvicorn raises the signal again once all is finished; to have been told to stop is no failure.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        server.run(sockets=[opened])
    finally:
        signal.signal(signal.SIGTERM, before)
        opened.close()
        _log_to(())
    if app.state.failure is not None:
        raise app.state.failure


def config_of(app: FastAPI, settings: ServeSettings) -> uvicorn.Config:
    """Say how uvicorn runs an application."""
    proxies = list(settings.access_settings.trusted_proxies)
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(settings.grace_seconds),
        # Whoever is not trusted could tell another client's address.
        proxy_headers=bool(proxies),
        forwarded_allow_ips=proxies,
    )


class _Server(uvicorn.Server):
    """Ends what would never end by itself before it waits for running requests; uvicorn has no place to say so."""

    def __init__(self, config: uvicorn.Config, *, on_stop: Sequence[Callable[[], None]]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop, whoever asked for it."""
        for end in self._on_stop:
            end()
        await super().shutdown(sockets)


def _gate(database: Database, settings: ServeSettings) -> KeyGate:
    """Ask for keys.

    Raises:
        SettingError: If there are none, so that nobody could come in.
    """
    store = KeyStore(database)
    if not any(key.state == "active" for key in store.all()):
        why = f"`--host {settings.host}` lets other machines ask, which needs API keys"
        otherwise = ", or listen on 127.0.0.1"
        if settings.is_on_loopback:
            why, otherwise = "`--require-keys` asks everybody for API keys", ""
        raise SettingError(
            f"{why}, and there are none in `{database.name}`. Make one with `lushan keys create`{otherwise}."
        )
    return KeyGate(store)


def open_port(settings: ServeSettings) -> socket.socket:
    """Listen, so that clients are told that models are being loaded.

    Raises:
        SettingError: If the address is not of this machine, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        opened = socket.create_server(
            (settings.host, settings.port), family=family, backlog=_BACKLOG
        )
    except (OSError, UnicodeError) as error:  # of names that no host can have
        reason = getattr(error, "strerror", None) or error
        raise SettingError(
            f"Cannot listen on `{settings.host}`, port {settings.port}: {reason}. "
            "Choose another with `--port`, or 0 for a free one."
        ) from None
    return opened


def address_of(opened: socket.socket) -> str:
    """Give the address under which a port can be asked."""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    _log_to((handler,))


def _log_to(handlers: Sequence[logging.Handler]) -> None:
    for name in ("lushan.serving", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = list(handlers)
        logger.propagate = False
        logger.setLevel(logging.INFO if name == "lushan.serving" else logging.WARNING)
