"""`lushan serve`: answer requests over HTTP."""

from importlib.util import find_spec
from typing import Annotated, cast

import typer

from lushan.cli.console import (
    JsonOption,
    SeedOption,
    StoreOption,
    WeightsOption,
    emit_json,
    open_store,
    quick_imports,
    tell,
)
from lushan.errors import SettingError, need

PURPOSE = "`lushan serve`"


def command(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL|RUN...]",
            help="Runs, models of the cache, or model folders; without any, the page alone.",
        ),
    ] = None,
    *,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port; 0 takes a free one.")] = 8000,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--cors-origin",
            metavar="ORIGIN",
            help="Pages that a browser may let ask, such as https://example.org; may be repeated.",
        ),
    ] = None,
    weights: WeightsOption = "auto",
    backend: Annotated[
        str,
        typer.Option(
            "--backend",
            help="What writes answers: lushan, or vllm, which holds weights of its own.",
        ),
    ] = "lushan",
    max_rows: Annotated[
        int, typer.Option("--max-rows", help="Answers that a model writes at once.")
    ] = 32,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            help="Tokens that a model remembers, at most, of them and of earlier texts; else 65536, or what fits.",
        ),
    ] = None,
    max_model_gigabytes: Annotated[
        float | None,
        typer.Option(
            "--max-model-gigabytes", help="Memory that weights of models may take; else no limit."
        ),
    ] = None,
    max_waiting: Annotated[
        int, typer.Option("--max-waiting", help="Requests that may wait; one more gets 503.")
    ] = 256,
    max_body_bytes: Annotated[
        int, typer.Option("--max-body-bytes", help="Largest body of a request.")
    ] = 4_000_000,
    deadline_seconds: Annotated[
        float, typer.Option("--deadline-seconds", help="Longest time that a request may take.")
    ] = 300.0,
    grace_seconds: Annotated[
        float,
        typer.Option("--grace-seconds", help="How long running requests may finish at the end."),
    ] = 30.0,
    requests_per_minute: Annotated[
        int | None,
        typer.Option("--requests-per-minute", help="Most requests of one client; else no limit."),
    ] = None,
    require_keys: Annotated[
        bool,
        typer.Option(
            "--require-keys", help="Ask this machine for API keys too, as behind a proxy."
        ),
    ] = False,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(
            "--trusted-proxy",
            metavar="ADDRESS",
            help="Proxy that is believed whose requests it passes on; may be repeated.",
        ),
    ] = None,
    log_texts: Annotated[
        bool, typer.Option("--log-texts", help="Put what is asked and answered into the log.")
    ] = False,
    page: Annotated[
        bool | None,
        typer.Option(
            "--page/--no-page",
            help="A page for people at `/`; without either, if the extra `studio` is installed.",
        ),
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    seed: SeedOption = 0,
) -> None:
    """Answer requests over HTTP, as OpenAI's clients send them; every run must first answer as its certificate says."""
    del seed  # every command takes it; each request brings its own
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        need(package, extra="serve", purpose=PURPOSE)
    from lushan.serving.serve_settings import ServeSettings
    from lushan.settings import build

    with quick_imports():
        from lushan.backbones.packed import WeightsSetting, choose_weights
        from lushan.serving.backends import choose_backend
        from lushan.serving.hosted import names_of
        from lushan.serving.server import serve

    values = {
        "host": host,
        "port": port,
        "cors_origins": tuple(cors_origin or ()),
        "max_rows": max_rows,
        "max_tokens": max_tokens,
        "max_model_gigabytes": max_model_gigabytes,
        "max_waiting": max_waiting,
        "max_body_bytes": max_body_bytes,
        "deadline_seconds": deadline_seconds,
        "grace_seconds": grace_seconds,
        "requests_per_minute": requests_per_minute,
        "log_texts": log_texts,
        "access_settings": {
            "require_keys": require_keys,
            "trusted_proxies": tuple(trusted_proxy or ()),
        },
    }
    with_page = find_spec("gradio") is not None if page is None else page
    choose_weights(weights, "bf16")  # what cannot be is refused before the port is opened
    chosen = choose_backend(backend)
    targets = targets or []
    names = names_of(targets)
    if not (targets or with_page):
        raise SettingError(
            "Without a page and without a model there is nothing to serve. Name a run or a model, or install the page in the "
            "folder of Lushan's source: `pip install -c constraints.txt '.[studio]'`."
        )

    def listening(address: str) -> None:
        tell(
            f"Listening on {address} for {', '.join(names) or 'the page alone'}; `{address}/readyz` tells when all is loaded."
        )
        if as_json:
            emit_json({"address": address, "models": names})

    with open_store(store, purpose=PURPOSE, create=True) as database:
        settings = build(ServeSettings, values, source="lushan serve")
        serve(
            targets,
            settings,
            weights=cast("WeightsSetting", weights),
            backend=chosen,
            database=database,
            with_page=with_page,
            listening=listening,
        )
    tell("Stopped.")
