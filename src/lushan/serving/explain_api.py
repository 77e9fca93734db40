"""`POST /v1/explain`: why a model answers as it does."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from lushan.explain.explanation import Explanation, explain
from lushan.explain.settings import BaselineName, ExplainSettings
from lushan.inference.predict import Predictor
from lushan.records import Example
from lushan.serving.connection import while_connected
from lushan.serving.hosted import find_model
from lushan.serving.observation import note
from lushan.serving.worker import Worker
from lushan.workflows.predict import read_texts

router = APIRouter()

MOST_TEXTS = 32
"""Texts of one request: each takes the time of some dozen predictions."""


class ExplainRequest(BaseModel):
    """Texts to answer, and what is to be explained of the answers."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={"examples": [{"model": "reviews", "texts": ["A film to see twice."]}]},
    )

    model: str
    """Name of a served model."""

    texts: list[str | dict[str, Any]] = Field(min_length=1, max_length=MOST_TEXTS)
    """Texts, or rows with the task's columns where it reads several."""

    label: str | None = None
    """Explain this label and not the one that is answered; of entities, only those of this label."""

    baseline: BaselineName = "padding"
    """What stands for "no word"."""

    most_gap: float = Field(default=0.02, gt=0, lt=1)
    """Completeness gap, as a share of all weight, at which steps suffice."""

    seed: int = Field(default=0, ge=0)
    """Seed of the random words that the faithfulness check takes out."""


class ExplainResponse(BaseModel):
    """Explanations in the order of the texts."""

    model: str
    explanations: list[Explanation]


@router.post("/v1/explain", summary="Why a model answers as it does")
async def explain_texts(asked: ExplainRequest, request: Request) -> ExplainResponse:
    """Answer texts and say what each of their words adds to the log-probability of the answer."""
    predictor = find_model(request.app.state.models, asked.model).predictor
    note(request.scope, model=asked.model)
    settings = ExplainSettings(baseline=asked.baseline, most_gap=asked.most_gap, seed=asked.seed)
    examples, num_tokens = await anyio.to_thread.run_sync(_read, predictor, asked.texts)
    explanations: list[Explanation] = []

    async def explain_all() -> None:
        worker: Worker = request.app.state.worker
        with worker.admit() as admitted:
            for example in examples:
                # One at a time, so that the requests of others are answered between them.
                work = partial(_explain_one, predictor, example, asked.label, settings)
                explanations.append(await worker.run(work, within=admitted))

    await while_connected(request, explain_all())
    request.app.state.metrics.count_tokens(asked.model, num_prompt=num_tokens, num_completion=0)
    note(request.scope, num_prompt_tokens=num_tokens)
    if request.app.state.settings.log_texts:
        answered = [each.answer for each in explanations]
        note(request.scope, asked=asked.model_dump(), answered=answered)
    return ExplainResponse(model=asked.model, explanations=explanations)


def _read(predictor: Predictor, texts: Sequence[str | dict[str, Any]]) -> tuple[list[Example], int]:
    """Read texts, and tell their tokens; one that is too long is found before any is explained."""
    examples = read_texts(predictor, texts, caller="explain")
    return examples, sum(len(each.token_ids) for each in predictor.encode(examples))


def _explain_one(
    predictor: Predictor, example: Example, label: str | None, settings: ExplainSettings
) -> Explanation:
    (explanation,) = explain(predictor, [example], label=label, settings=settings)
    return explanation
