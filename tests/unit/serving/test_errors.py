"""Errors as clients are told them: OpenAI's form, and a status that says who acts."""

import json

import pytest

from lushan.errors import CertificateError, DataError, LushanError
from lushan.serving.errors import RequestError, ServerBusyError, UnknownModelError, error_response


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (DataError("no"), 400, "invalid_request_error"),
        (CertificateError("no"), 500, "server_error"),
        (RequestError("no", status=401), 401, "authentication_error"),
        (RequestError("no", status=403), 403, "permission_error"),
        (UnknownModelError("a", ["b"]), 404, "not_found_error"),
        (ServerBusyError(), 503, "server_error"),
    ],
    ids=repr,
)
def test_error_has_its_status_and_type(error: LushanError, status: int, kind: str) -> None:
    response = error_response(error)
    told = json.loads(bytes(response.body))["error"]
    assert (response.status_code, told["type"]) == (status, kind)
    assert told["message"] == str(error)
    assert set(told) == {"message", "type", "param", "code"}


def test_busy_server_says_when_to_come_again() -> None:
    assert error_response(ServerBusyError()).headers["Retry-After"] == "1"
