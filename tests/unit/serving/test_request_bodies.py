"""What clients may send: strict fields; what is unknown, or does not fit, is refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from lushan.serving.request_bodies import ChatRequest, CompletionRequest, Message, TextPart

CHAT = {"model": "m", "messages": [{"role": "user", "content": "a"}]}


def test_unknown_field_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValidationError, match=r"`best_of` is not supported here. Supported: model"):
        CompletionRequest.model_validate({"model": "m", "prompt": "a", "best_of": 2})


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "tools": []},
        {"modalities": ["text"], "response_format": {"type": "text"}, "tool_choice": "none"},
        {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
        {"best_of": None, "stream": True, "stream_options": {"include_usage": True, "a": None}},
    ],
)
def test_fields_that_could_change_nothing_are_taken(fields: dict[str, Any]) -> None:
    ChatRequest.model_validate({**CHAT, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"store": True}, "store"),
        ({"n": "2"}, "valid integer"),
        ({"logit_bias": {"5": 1.0}}, "at most 0 items"),
        ({"stop": ["a"] * 65}, "at most 64 items"),
        ({"stream_options": {"include_usage": True}}, "no effect without `stream`"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "not both"),
        ({"response_format": {"type": "xml"}}, "does not match any of the expected tags"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ChatRequest.model_validate({**CHAT, **fields})


def test_parts_of_a_message_are_one_text() -> None:
    parts = [TextPart(type="text", text="a"), TextPart(type="text", text="b")]
    assert Message(role="user", content=parts).text == "a\nb"


def test_many_texts_may_end_an_answer() -> None:
    stop = [f"</{number}>" for number in range(64)]
    assert ChatRequest.model_validate({**CHAT, "stop": stop}).stop == stop
