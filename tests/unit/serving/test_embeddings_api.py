"""Embeddings, asked by OpenAI's own client and compared with `transformers`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch

from lushan.serving.embeddings_api import EMBEDDED_AT_ONCE, _parts
from lushan.serving.hosted import HostedModel
from lushan.serving.worker import Worker
from tests.generation import plain_model
from tests.served import Served

TEXTS = ["the fox lived in the forest", "soup", "a great film, 10 out of 10"]


def expected(folder: Path, model: HostedModel) -> np.ndarray:
    rows: list[np.ndarray] = []
    for each in model.predictor.backbone.tokenizer.encode(TEXTS):
        with torch.inference_mode():
            hidden_TD = plain_model(folder).model(torch.tensor([each.ids])).last_hidden_state[0]
        mean_D = hidden_TD.mean(dim=0).numpy()
        rows.append(mean_D / np.linalg.norm(mean_D))
    return np.stack(rows)


def test_embeddings_are_the_mean_of_the_last_hidden_states(
    client: openai.OpenAI, chat_folder: Path, chatter: HostedModel
) -> None:
    found = client.embeddings.create(model="chatter", input=TEXTS)  # the client asks for base64
    vectors = np.array([each.embedding for each in found.data])
    assert vectors == pytest.approx(expected(chat_folder, chatter), abs=1e-5)
    assert [each.index for each in found.data] == [0, 1, 2]
    plain = client.embeddings.create(model="chatter", input=TEXTS[1], encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(vectors[1], abs=1e-6)


def test_fewer_dimensions_are_the_first_at_length_one(
    client: openai.OpenAI, chat_folder: Path, chatter: HostedModel
) -> None:
    found = client.embeddings.create(model="chatter", input=TEXTS, dimensions=4)
    first = expected(chat_folder, chatter)[:, :4]
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    assert np.array([each.embedding for each in found.data]) == pytest.approx(first, abs=1e-5)


def test_tuned_classifier_gives_vectors_too(client: openai.OpenAI) -> None:
    found = client.embeddings.create(model="run", input=TEXTS)
    assert np.linalg.norm(found.data[0].embedding) == pytest.approx(1.0, abs=1e-5)


def test_more_dimensions_than_there_are_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"`dimensions` is 17.*have 16 numbers"):
        client.embeddings.create(model="chatter", input=TEXTS, dimensions=17)


def test_long_texts_are_read_in_steps_of_their_own() -> None:
    texts = [(1,) * 3000] * 3 + [(1,)] * 20
    parts = list(_parts(texts))
    assert [len(part) for part in parts] == [1, 1, 14, 7]
    assert [text for part in parts for text in part] == texts


def test_parts_of_a_request_are_let_in_as_one(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    run = Worker.run

    async def noted(self: Worker, function: Callable[[], Any], **options: Any) -> Any:  # noqa: ANN401
        seen.append(options["within"])
        return await run(self, function, **options)

    monkeypatch.setattr(Worker, "run", noted)
    body = {"model": "chatter", "input": TEXTS * EMBEDDED_AT_ONCE}
    assert len(served.post("/v1/embeddings", body).json()["data"]) == 3 * EMBEDDED_AT_ONCE
    assert len(seen) == 3
    assert len(set(seen)) == 1
