"""Errors in the form of OpenAI's API."""

import json

import pytest

from lushan.errors import CertificateError, DataError, LushanError
from lushan.serving.errors import (
    DeadlineError,
    ErrorAnswer,
    RequestError,
    ServerBusyError,
    UnknownModelError,
    error_response,
)


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (DataError("no text"), 400, "invalid_request_error"),
        (RequestError("no key", status=401), 401, "authentication_error"),
        (UnknownModelError("a", ["b", "c"]), 404, "not_found_error"),
        (RequestError("too often", status=429), 429, "rate_limit_error"),
        (ServerBusyError(), 503, "server_error"),
        (DeadlineError(2.0), 504, "server_error"),
        (CertificateError("differs"), 500, "server_error"),
    ],
)
def test_error_has_its_status_and_form(error: LushanError, status: int, kind: str) -> None:
    found = error_response(error)
    body = ErrorAnswer.model_validate(json.loads(bytes(found.body)))
    assert (found.status_code, body.error.type, body.error.message) == (status, kind, str(error))


def test_busy_server_says_when_to_come_again() -> None:
    assert error_response(ServerBusyError()).headers["retry-after"] == "1"


def test_half_a_character_in_a_message_can_be_sent() -> None:
    found = error_response(DataError("a \ud800"))
    assert json.loads(bytes(found.body))["error"]["message"] == "a ?"
