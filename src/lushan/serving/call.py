"""One request for written answers: waited for or streamed, and noted in the log."""

import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from fastapi import Request

from lushan.serving.answers import Answers, Events, Piece
from lushan.serving.connection import while_connected
from lushan.serving.event_stream import EventStream, begun
from lushan.serving.hosted import HostedModel
from lushan.serving.observation import note
from lushan.serving.prompts import Asked
from lushan.serving.request_bodies import Sampled


class Call:
    """One request for written answers, and how it is answered."""

    def __init__(self, request: Request, body: Sampled, model: HostedModel, asked: Asked) -> None:
        self._request = request
        self._body = body
        self._model = model
        self._asked = asked
        note(request.scope, model=model.name)
        if asked.num_cut_tokens:
            note(request.scope, num_cut_tokens=asked.num_cut_tokens)

    def head(self, kind: str) -> dict[str, Any]:
        """Write what stands at the start of an answer, with a new id that begins with its kind."""
        return {
            "id": f"{kind}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": self._model.name,
            "system_fingerprint": self._model.predictor.version,
        }

    async def collect(self, events: Events) -> Answers:
        """Wait for the whole answer."""
        answers = Answers(self._asked)
        try:
            await while_connected(self._request, answers.collect(events))
        finally:
            self._tell(answers)
        return answers

    async def stream(
        self, events: Events, head: dict[str, Any], write: Callable[[Piece], dict[str, Any]]
    ) -> EventStream:
        """Send the answer piece by piece, each as `write` gives it behind `head`."""
        events = await while_connected(self._request, begun(events))
        return EventStream(self._chunks(events, head, write), self._request.scope)

    async def _chunks(
        self, events: Events, head: dict[str, Any], write: Callable[[Piece], dict[str, Any]]
    ) -> AsyncGenerator[dict[str, Any], None]:
        options = self._body.stream_options
        with_usage = options is not None and options.include_usage
        if with_usage:
            head = {**head, "usage": None}
        answers = Answers(self._asked)
        try:
            async with aclosing(answers.pieces(events)) as pieces:
                async for piece in pieces:
                    choice = {"index": piece.choice, "finish_reason": piece.finish_reason}
                    yield {**head, "choices": [{**choice, **write(piece)}]}
        finally:
            self._tell(answers)
        if with_usage:
            yield {**head, "choices": [], "usage": answers.usage.model_dump()}

    def _tell(self, answers: Answers) -> None:
        """Have the log tell what was read and written."""
        usage = answers.usage
        note(
            self._request.scope,
            num_prompt_tokens=usage.prompt_tokens,
            num_reused_tokens=usage.prompt_tokens_details.cached_tokens,
            num_completion_tokens=usage.completion_tokens,
        )
        if self._request.app.state.settings.log_texts:
            texts = [each.text for each in answers.in_order]
            note(self._request.scope, asked=self._body.model_dump(), answered=texts)
