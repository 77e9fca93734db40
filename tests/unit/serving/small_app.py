"""An app with a few routes, which tells errors as the server does."""

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from lushan.errors import UserError
from lushan.serving.errors import error_response


def answering_errors(app: FastAPI) -> FastAPI:
    """Let an app tell errors in OpenAI's form."""

    @app.exception_handler(UserError)
    async def tell(_: Request, error: UserError) -> JSONResponse:
        return error_response(error)

    return app
