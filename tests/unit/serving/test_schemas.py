"""What clients may send: strict fields, and an OpenAPI document that keeps its promises."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from pydantic import ValidationError
from schemathesis import BaseSchema, Case, GenerationMode
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from lushan.serving.schemas import ChatRequest, CompletionRequest, Message, TextPart
from tests.served import Served

CHECKS: list[CheckFunction] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
CHAT = {"model": "m", "messages": [{"role": "user", "content": "a"}]}


ROUTES = (
    *(("GET", path) for path in ("/healthz", "/readyz", "/metrics")),
    *(("GET", path) for path in ("/v1/models", "/v1/models/{model}")),
    *(("POST", path) for path in ("/v1/chat/completions", "/v1/completions")),
    *(("POST", path) for path in ("/v1/embeddings", "/v1/explain", "/v1/predict/{model}")),
)
QUICK = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def document(served: Served) -> BaseSchema:
    """Give the document of a server that runs."""
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json")


def test_document_has_these_routes(document: BaseSchema) -> None:
    found = [(method.upper(), path) for path in document for method in document[path]]
    assert sorted(found) == sorted(ROUTES)


GOOD, BAD = GenerationMode.POSITIVE, GenerationMode.NEGATIVE


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [*((*route, GOOD) for route in ROUTES), *((*x, BAD) for x in ROUTES if x[0] == "POST")],
)
def test_requests_made_from_the_document_meet_what_it_promises(
    method: str, path: str, mode: GenerationMode, document: BaseSchema
) -> None:
    @QUICK
    @given(case=document[path][method].as_strategy(generation_mode=mode))
    def check(case: Case) -> None:
        case.body = pointed_at_a_model(case.body)
        case.path_parameters = dict.fromkeys(case.path_parameters, "run")
        case.call_and_validate(checks=CHECKS)

    check()


def pointed_at_a_model(body: Any) -> Any:  # noqa: ANN401
    """Have a request that could be answered ask a model that is there, for a short answer."""
    if not isinstance(body, dict) or not isinstance(body.get("model"), str):
        return body
    length = {"max_tokens": 3} if {"messages", "prompt"} & body.keys() else {}
    return {**body, "model": "chatter", **length}


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
