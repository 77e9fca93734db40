"""`/v1/feedback`: people say what was right or wrong; who holds an admin key reads it.

`app.state.feedback` is the `FeedbackStore` of the server.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Query, Request, Response
from pydantic import BaseModel

from lushan.errors import ConflictError, DataError, StoreError
from lushan.feedback.given import Feedback, GivenFeedback
from lushan.feedback.store import FeedbackStore
from lushan.feedback.training_rows import check_against_task
from lushan.serving.errors import RequestError, UnknownModelError
from lushan.serving.keys import require_key

logger = logging.getLogger(__name__)
router = APIRouter(tags=["feedback"])

EXAMPLES: dict[str, Any] = {
    "correction": {
        "summary": "The right label",
        "value": {
            "id": "form-7-row-12",
            "model": "reviews",
            "input": "Not bad at all.",
            "prediction": "negative",
            "rating": "bad",
            "correction": "positive",
        },
    },
    "rating": {
        "summary": "Only whether it was good",
        "value": {
            "model": "reviews",
            "input": {"text": "A film to see twice."},
            "rating": "good",
        },
    },
}


class FeedbackPage(BaseModel):
    """Some of the feedback, the oldest first."""

    object: Literal["list"] = "list"
    data: list[Feedback]
    has_more: bool
    """Whether more follows: ask again with `after` set to the last id."""


@router.post(
    "/v1/feedback",
    status_code=201,
    dependencies=[Depends(require_key("feedback"))],
    responses={200: {"model": Feedback, "description": "It was there already, under its id."}},
)
def add_feedback(
    given: Annotated[GivenFeedback, Body(openapi_examples=EXAMPLES)],
    request: Request,
    response: Response,
) -> Feedback:
    """Store what a person says of an answer. It is on the disk when this answers; sent again with its id, it is stored once.

    A correction must be one that `lushan tune` can learn from: it is read as the model's task reads its data.
    """
    models = request.app.state.models
    hosted = models.get(given.model)
    if hosted is None:
        raise UnknownModelError(given.model, list(models))
    predictor = hosted.predictor
    check_against_task(given, predictor.task, multi_label=predictor.state.multi_label)
    task_name = type(predictor.task).__module__.rpartition(".")[2]
    with _refusing():
        added = _store(request).add(given, task=task_name, version=predictor.version)
    if not added.is_new:
        response.status_code = 200
    return added.feedback


@router.get("/v1/feedback", dependencies=[Depends(require_key("admin"))])
def list_feedback(
    request: Request,
    model: Annotated[str | None, Query(description="Only feedback about this model.")] = None,
    after: Annotated[str | None, Query(description="The last id of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most rows to give.")] = 100,
) -> FeedbackPage:
    """Give stored feedback, the oldest first, page by page."""
    with _refusing():
        found = _store(request).page(after=after, model=model, limit=limit + 1)
    return FeedbackPage(data=found[:limit], has_more=len(found) > limit)


def _store(request: Request) -> FeedbackStore:
    return request.app.state.feedback


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn what the store cannot do into answers; paths of this machine stay in the log."""
    try:
        yield
    except ConflictError as error:
        raise RequestError(str(error), status=409, param="id", code="id_taken") from None
    except DataError as error:
        raise RequestError(str(error), status=404, param="after", code="id_unknown") from None
    except StoreError:
        logger.exception("The store of feedback fails.")
        message = "Feedback cannot be stored or read now. Nothing of this was stored; send it again later."
        raise RequestError(message, status=503, code="store_unavailable") from None
