"""The page as a whole: its tabs, its look, and one copy of it per language; nothing of it comes from elsewhere."""

import json
from importlib.resources import files
from typing import cast

import gradio as gr
from fastapi import FastAPI
from gradio.routes import App
from gradio.themes import Base
from starlette.routing import Mount

from lushan.serving.page import chat_tab, drawing, file_tab, runs_tab, try_tab, tune_tab
from lushan.serving.page.access import Gate, check_is_guarded
from lushan.serving.page.studio import Studio
from lushan.serving.page.texts import LANGUAGES, Texts, texts_of
from lushan.serving.serve_settings import MOST_UPLOAD_BYTES

TABS = (
    ("try", try_tab),
    ("chat", chat_tab),
    ("tune", tune_tab),
    ("runs", runs_tab),
    ("file", file_tab),
)
MOST_WAITING = 64
"""Requests of the page that may wait; one more is told that the server is busy."""
MOST_AT_ONCE = 16
"""Requests of one kind that are answered at once; the worker computes them together."""
BROWSER_LANGUAGES = ("en", "zh-CN", "zh-TW")
"""In which gradio would say some words of its own."""
SECONDS_UPLOADS_ARE_KEPT = 24 * 60 * 60


def mount_languages(app: FastAPI, *, place: str) -> None:
    """Mount the page in every language below `place`; all share their runs.

    Raises:
        SettingError: If others can reach the server, and it asks for no keys.
    """
    check_is_guarded(app)
    studio = Studio(app)
    for language in LANGUAGES:
        texts = texts_of(language)
        gr.mount_gradio_app(
            app,
            build_page(studio, texts),
            f"{place}/{language}",
            theme=_theme(),
            css=(files("lushan.serving.page") / "style.css").read_text(encoding="utf-8"),
            head=_head(texts),
            footer_links=[],
            run_history=False,
            i18n=_upload_words(texts),
            max_file_size=max(app.state.settings.max_body_bytes, MOST_UPLOAD_BYTES),
            show_error=False,
            ssr_mode=False,
            enable_monitoring=False,
        )
        mounted = app.routes[-1]
        assert isinstance(mounted, Mount)  # noqa: S101 - what gradio has just put there
        page = cast("App", mounted.app)
        # Every open tab holds a connection, which gradio ends only where it runs the server itself.
        app.state.on_stop.append(page.stop_event.set)
        mounted.app = Gate(page, server=app)


def build_page(studio: Studio, texts: Texts) -> gr.Blocks:
    """Build the page in one language."""
    others = [
        {"path": f"../{code}/", "code": code, "name": texts_of(code)("language")}
        for code in LANGUAGES
        if code != texts.code
    ]
    page = gr.Blocks(
        title=texts("title"),
        analytics_enabled=False,
        delete_cache=(SECONDS_UPLOADS_ARE_KEPT, SECONDS_UPLOADS_ARE_KEPT),
    )
    with page:
        gr.HTML(drawing.draw("header", texts, others=others))
        with gr.Tabs() as tabs:
            pass
        for key, tab in TABS:
            with tabs, gr.Tab(texts(f"{key}.tab"), id=key) as opened:
                tab.build([page.load, opened.select], studio, texts)
    return page.queue(max_size=MOST_WAITING, default_concurrency_limit=MOST_AT_ONCE)


def _theme() -> Base:
    """The plain theme with fonts that every system has: the usual ones would be fetched."""
    return Base(
        primary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        # Dark enough to be read by everybody (4.5 to 1).
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        body_text_color_subdued="*neutral_600",
    )


def _upload_words(texts: Texts) -> gr.I18n:
    """Say in the language of the page, whatever the browser's is, what an empty upload asks for."""
    words = {
        "upload_text.drop_file": texts("upload.drop", most=MOST_UPLOAD_BYTES // 2**20),
        "common.or": texts("upload.or"),
        "upload_text.click_to_upload": texts("upload.click"),
    }
    return gr.I18n(**dict.fromkeys(BROWSER_LANGUAGES, words))


def _head(texts: Texts) -> str:
    """Have gradio's own words, and screen readers, follow the language of the page and not that of the browser."""
    language = json.dumps(texts("language_tag"))
    return (
        f"<script>document.documentElement.lang = {language};"
        f"for (const [name, value] of [['language', {language}], ['languages', [{language}]]])"
        "Object.defineProperty(navigator, name, {get: () => value});</script>"
    )
