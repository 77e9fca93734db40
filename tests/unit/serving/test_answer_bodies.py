"""What clients get: an OpenAPI document that keeps its promises, whatever is sent."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import BaseSchema, Case, GenerationMode
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.served import Served

CHECKS: list[CheckFunction] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


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
