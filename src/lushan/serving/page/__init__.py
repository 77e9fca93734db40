"""The page of the server, for people: try, chat, answer files, tune, watch runs; needs the extra `studio`. Start with layout.py."""

import asyncio
import os

from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse

from lushan.errors import need

PLACE = "/ui"
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 38 24" fill="#0f766e">'
    '<path d="M0 24 11 7l6 8 7-13 14 22z" opacity=".35"/><path d="M0 24 8 14l6 6 9-12 15 16z"/></svg>'
)


def mount_page(app: FastAPI) -> FastAPI:
    """Put the page under `/ui/LANGUAGE/` of a server, and lead `/` to the language that the browser prefers.

    Args:
        app: The server; `app.state` has what `make_app` gives it.

    Returns:
        The same server.

    Raises:
        MissingExtraError: If `gradio` is not installed.
        SettingError: If others can reach the server, and it asks for no keys.
    """
    # Read whenever gradio would call home, and once while it is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    need("gradio", extra="studio", purpose="The page")
    from lushan.serving.page.layout import mount_languages  # only now: it imports gradio
    from lushan.serving.page.texts import preferred_language

    def lead(request: Request) -> RedirectResponse:
        language = preferred_language(request.headers.get("accept-language", ""))
        target = f"{request.scope.get('root_path', '')}{PLACE}/{language}/"
        return RedirectResponse(target, headers={"Vary": "Accept-Language"})

    def manifest() -> dict[str, str]:
        return {"name": "Lushan", "start_url": "/", "display": "browser"}

    def icon() -> Response:
        return Response(ICON, media_type="image/svg+xml")

    for path in ("/", PLACE, f"{PLACE}/"):
        app.add_api_route(path, lead, methods=["GET"], include_in_schema=False)
    # Gradio's pages ask for both at the root.
    app.add_api_route("/manifest.json", manifest, include_in_schema=False)
    app.add_api_route("/favicon.ico", icon, include_in_schema=False)

    async def mount() -> None:
        mount_languages(app, place=PLACE)

    # Where no event loop runs, gradio makes some of its own, and leaves them open.
    asyncio.run(mount())
    return app
