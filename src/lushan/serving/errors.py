"""What a client is told when a request fails: OpenAI's form, with what to do, and never a traceback."""

from typing import Any

from pydantic import BaseModel
from starlette.responses import JSONResponse

from lushan.errors import LushanError, UserError


class RequestError(UserError):
    """A request that cannot be answered; `status` is the HTTP code."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        """The field of the request that is wrong."""
        self.code = code
        """A word for programs."""
        self.retry_after_seconds = retry_after_seconds


class ServerBusyError(RequestError):
    """As many requests wait as may; the client should come again."""

    def __init__(self, message: str = "The server is busy. Try again in a moment.") -> None:
        super().__init__(message, status=503, code="server_busy", retry_after_seconds=1)


class DeadlineError(RequestError):
    """A request took longer than requests may."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"The answer was not finished after {seconds:g} seconds, the most that a request may take. Ask for less.",
            status=504,
            code="deadline_exceeded",
        )


class UnknownModelError(RequestError):
    """A request names a model that is not served."""

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(
            f"There is no model `{name[:100]}` here. Served: {', '.join(known)}.",
            status=404,
            param="model",
            code="model_not_found",
        )


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def error_body(
    message: str, status: int, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Give the body of an answer that tells an error."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    writable = message.encode("utf-8", "replace").decode()  # half characters have no UTF-8
    return {"error": {"message": writable, "type": kind, "param": param, "code": code}}


def status_of(error: LushanError) -> int:
    """Give the HTTP code of an error that Lushan raised on purpose."""
    if isinstance(error, RequestError):
        return error.status
    return 400 if isinstance(error, UserError) else 500


def told(error: LushanError) -> dict[str, Any]:
    """Give the body that tells an error."""
    param = error.param if isinstance(error, RequestError) else None
    code = error.code if isinstance(error, RequestError) else None
    return error_body(str(error), status_of(error), param=param, code=code)


def error_response(error: LushanError) -> JSONResponse:
    """Give the whole answer that tells an error."""
    headers: dict[str, str] = {}
    if isinstance(error, RequestError) and error.retry_after_seconds is not None:
        headers["retry-after"] = str(error.retry_after_seconds)
    return JSONResponse(told(error), status_of(error), headers)


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of every answer that tells an error."""

    error: ErrorDetail
