"""The server as an application: its parts, its state, and what it says of itself. Read this file first.

`app.state` holds what every route needs: `models` by name, `resident` (those loaded here, which share their bases), `settings`, `worker`,
`metrics`, `feedback`, `store` (the folder in which the page keeps runs and uploads, or None) and `keys`, which is None where no keys are asked for.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse

import lushan
from lushan.backbones import native
from lushan.backbones.packed import WeightsSetting
from lushan.errors import UserError
from lushan.feedback.store import FeedbackStore
from lushan.model_store.resident import Resident
from lushan.serving import embeddings_api, explain_api, feedback_api, openai_api, task_api
from lushan.serving.api_key import Scope
from lushan.serving.backends import START_SHARE, BackendName
from lushan.serving.errors import ErrorAnswer, RequestError, error_response
from lushan.serving.guard import Guard
from lushan.serving.hosted import HostedModel, host
from lushan.serving.keys import KeyGate, bearer, require_key
from lushan.serving.metrics import Metrics
from lushan.serving.observation import Observation
from lushan.serving.proof import prove
from lushan.serving.serve_settings import ServeSettings
from lushan.serving.worker import Worker

logger = logging.getLogger("lushan.serving")

ROUTERS: tuple[tuple[APIRouter, Scope], ...] = (
    (openai_api.router, "chat"),
    (embeddings_api.router, "predict"),
    (task_api.router, "predict"),
    (explain_api.router, "predict"),
)
"""What can be asked, and what a key must be for."""

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer},
    "5XX": {"model": ErrorAnswer},
}


def make_app(
    models: Sequence[HostedModel],
    settings: ServeSettings,
    *,
    targets: Sequence[str] = (),
    weights: WeightsSetting = "auto",
    backend: BackendName = "lushan",
    feedback: FeedbackStore | None = None,
    keys: KeyGate | None = None,
) -> FastAPI:
    """Put the server together.

    Args:
        models: Models that are loaded already.
        settings: Where it listens, and what bounds it.
        targets: Runs and models to load once it listens; it is ready when all answer as their certificates say.
        weights: How those of all these are held.
        backend: What writes answers.
        feedback: Where feedback is kept; None takes none.
        keys: Asked before every request to a model; None where only this machine can ask.
    """
    app = FastAPI(
        title="Lushan",
        version=lushan.__version__,
        summary="Tuned models, and the OpenAI API for those that write.",
        lifespan=_lifespan,
        # Their pages load scripts from the internet.
        docs_url=None,
        redoc_url=None,
    )
    state = app.state
    state.settings = settings
    state.models = {each.name: each for each in models}
    state.targets = targets
    most = settings.max_model_gigabytes
    state.resident = Resident(limit_bytes=math.inf if most is None else most * 1e9, weights=weights)
    state.store = None
    state.is_ready = False
    state.failure = None
    state.stop = lambda: None
    state.on_stop = []
    state.keys = keys
    state.feedback = feedback
    state.metrics = Metrics(
        num_waiting=lambda: state.worker.num_waiting,
        num_running=lambda: state.worker.num_running,
        weight_bytes=lambda: state.resident.num_bytes,
    )
    state.worker = Worker(state.models, settings, backend, count_tokens=state.metrics.count_tokens)
    _add_layers(app, settings, state.metrics)
    _add_error_handlers(app)
    all_need = [Depends(_is_ready), *([] if keys is None else [Depends(bearer)])]
    for router, scope in ROUTERS:
        needs = [Depends(require_key(scope)), *all_need]
        app.include_router(router, dependencies=needs, responses=ERRORS)
    if feedback is not None:  # its routes differ in what a key must be for
        app.include_router(feedback_api.router, dependencies=all_need, responses=ERRORS)
    _add_state_routes(app)
    return app


def _add_layers(app: FastAPI, settings: ServeSettings, metrics: Metrics) -> None:
    """Put what sees every request around the routes, the innermost first."""
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(Observation, settings=settings, metrics=metrics)
    if settings.cors_origins:  # around all, or a page could not read why it is refused
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=["retry-after", "x-request-id"],
        )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.worker.start()
    loading = asyncio.create_task(_load(app))
    try:
        yield
    finally:
        loading.cancel()
        await asyncio.to_thread(app.state.worker.stop)


async def _load(app: FastAPI) -> None:
    """Load what was named; a model that cannot be served stops the server."""
    try:
        for target in app.state.targets:
            loading = partial(host, target, app.state.resident)
            model = await app.state.worker.run(loading, has_deadline=False)
            app.state.models[model.name] = model
            await prove(model, app.state.worker)
            form = model.predictor.backbone.weight_form
            fields = {
                "model": model.name,
                "tuned": model.is_tuned,
                "certified": model.certified,
                "backend": app.state.worker.backend if model.predictor.writes else "lushan",
                "weights": form or "fp32",
                # To ask compiles them, here where requests are answered: in fp32 nobody needs them.
                "products": (native.why_missing() or "own") if form else "torch",
            }
            logger.info("Loaded.", extra={"fields": fields})
        await _share_memory(app)
    except Exception as error:  # noqa: BLE001 - whatever it is, the server would never be ready
        app.state.failure = error
        app.state.stop()
    else:
        app.state.is_ready = True
        logger.info("Ready.")


async def _share_memory(app: FastAPI) -> None:
    """Say how much each model that writes may remember, now that all weights are there and what they leave is known."""
    writing = [
        each
        for each in app.state.models.values()
        if each.predictor.writes and not each.predictor.backbone.facts.why_silent
    ]
    num_bases = len({id(each.writes_with[0]) for each in writing})
    for each in writing:
        room = await app.state.worker.prepare(each, share=START_SHARE / num_bases)
        fields = {"model": each.name, "tokens": room.num_tokens, "bytes": room.num_bytes}
        logger.info("Remembers.", extra={"fields": fields})


async def _is_ready(request: Request) -> None:
    if not request.app.state.is_ready:
        raise RequestError(
            "The models are still being loaded. `/readyz` tells when they are there.",
            status=503,
            code="not_ready",
            retry_after_seconds=2,
        )


def _add_state_routes(app: FastAPI) -> None:
    @app.get("/healthz", summary="Whether the server runs")
    async def healthz() -> dict[str, str]:
        return {"status": "running"}

    @app.get(
        "/readyz", summary="Whether all models are loaded and answer as their certificates say"
    )
    async def readyz(response: Response) -> dict[str, str | list[str]]:
        response.status_code = 200 if app.state.is_ready else 503
        status = "ready" if app.state.is_ready else "loading"
        return {"status": status, "models": list(app.state.models)}

    @app.get("/metrics", summary="Counts, in the form of Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(app.state.metrics.page(), media_type=CONTENT_TYPE_LATEST)


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(UserError)
    async def refuse(_: Request, error: UserError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def refuse_route(_: Request, error: HTTPException) -> JSONResponse:
        answer = error_response(RequestError(f"{error.detail}.", status=error.status_code))
        answer.headers.update(error.headers or {})  # such as what other methods a route has
        return answer

    @app.exception_handler(RequestValidationError)
    async def refuse_body(_: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(_explain(error))


def _explain(error: RequestValidationError) -> RequestError:
    """Say which field is wrong, and in what."""
    errors = error.errors()
    # Where a value may be of several types, what is wrong beside its type comes nearest to what was meant.
    first = next((each for each in errors if not each["type"].endswith("_type")), errors[0])
    name = ".".join(str(part) for part in first["loc"][1:] if not _is_type(part))
    reason = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] in ("value_error", "json_invalid"):
        detail = first.get("ctx", {}).get("error", "")
        message = f"The body is no JSON: {detail}." if first["type"] == "json_invalid" else reason
    else:
        message = f"`{name or 'body'}`: {reason}. Got {first.get('input')!r:.200}."
    return RequestError(message, param=name or None)


def _is_type(part: str | int) -> bool:
    """Whether a part of a place is a type that was tried, not a field."""
    name = str(part).removeprefix("constrained-")
    return "[" in name or name in ("str", "int", "float")
