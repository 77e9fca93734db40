"""`/v1/embeddings`: texts as vectors, in the form of OpenAI's API."""

import base64
from collections.abc import Iterator, Sequence
from functools import partial

import anyio.to_thread
import numpy as np
from fastapi import APIRouter, Request

from lushan.data.batching import MAX_BATCH_TOKENS, split_lengths
from lushan.inference.embedding import embed
from lushan.serving.answer_bodies import Embedding, EmbeddingList, Usage
from lushan.serving.connection import while_connected
from lushan.serving.errors import RequestError
from lushan.serving.hosted import find_model
from lushan.serving.observation import note
from lushan.serving.prompts import read_texts
from lushan.serving.request_bodies import MOST_INPUTS, EmbeddingRequest
from lushan.serving.worker import Worker

router = APIRouter()

EMBEDDED_AT_ONCE = 16
"""Texts of one step, or fewer where they are long, so that others hardly wait."""


@router.post("/v1/embeddings", summary="Texts as vectors")
async def make_embeddings(request: Request, body: EmbeddingRequest) -> EmbeddingList:
    """Give the mean of the model's last hidden states, of length 1, for each text."""
    model = find_model(request.app.state.models, body.model)
    note(request.scope, model=model.name)
    backbone = model.predictor.backbone
    if body.dimensions is not None and body.dimensions > backbone.facts.width:
        raise RequestError(
            f"`dimensions` is {body.dimensions}, but the vectors of `{model.name}` have {backbone.facts.width} numbers.",
            param="dimensions",
        )
    read = partial(read_texts, model.predictor, body.input, param="input", most=MOST_INPUTS)
    texts = await anyio.to_thread.run_sync(read)
    vectors: list[np.ndarray] = []

    async def embed_all() -> None:
        worker: Worker = request.app.state.worker
        with worker.admit() as admitted:
            for part in _parts(texts):
                vectors.extend(await worker.run(partial(embed, backbone, part), within=admitted))

    await while_connected(request, embed_all())
    num_tokens = sum(map(len, texts))
    request.app.state.metrics.count_tokens(model.name, num_prompt=num_tokens, num_completion=0)
    note(request.scope, num_prompt_tokens=num_tokens)
    if request.app.state.settings.log_texts:
        note(request.scope, asked=body.model_dump())
    return EmbeddingList(
        model=model.name,
        data=[
            Embedding(index=index, embedding=_vector(each, body))
            for index, each in enumerate(vectors)
        ],
        usage=Usage(prompt_tokens=num_tokens, total_tokens=num_tokens),
    )


def _parts(texts: Sequence[tuple[int, ...]]) -> Iterator[Sequence[tuple[int, ...]]]:
    """Cut texts, in order, into those of one step."""
    for start in range(0, len(texts), EMBEDDED_AT_ONCE):
        few = texts[start : start + EMBEDDED_AT_ONCE]
        for first, end in split_lengths(map(len, few), MAX_BATCH_TOKENS):
            yield few[first:end]


def _vector(vector: np.ndarray, body: EmbeddingRequest) -> list[float] | str:
    if body.dimensions is not None:
        vector = vector[: body.dimensions]
        vector /= max(float(np.linalg.norm(vector)), 1e-12)
    if body.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()
