"""The lower half of the tab of tuning: how the run that goes on stands, its curve, its report, and "try it"."""

from typing import Any

import gradio as gr

from lushan.errors import LushanError
from lushan.serving.page import drawing
from lushan.serving.page.choosing import Triggers
from lushan.serving.page.runs import planned_steps, read_report, read_steps
from lushan.serving.page.studio import Studio
from lushan.serving.page.texts import Texts

SECONDS_BETWEEN_LOOKS = 1.0
MESSAGES = {
    "running": "tune.going",
    "finished": "tune.done",
    "failed": "tune.failed",
    "cancelled": "tune.cancelled",
}


def build_watching(opened: Triggers, studio: Studio, texts: Texts) -> tuple[gr.HTML, gr.Timer]:
    """Put it together; gives where messages stand, and the timer that makes it look."""
    cancel = gr.Button(texts("tune.cancel"), variant="stop", visible=False)
    status, curve = gr.HTML(), gr.HTML()
    trial = gr.Button(texts("tune.try"), variant="primary", visible=False)
    tried, report = gr.HTML(), gr.HTML()
    timer = gr.Timer(SECONDS_BETWEEN_LOOKS, active=False)

    def look() -> list[Any]:
        state, plan = studio.tuner.state, studio.tuner.plan
        if plan is None:
            return [gr.skip()] * 6
        finished = state == "finished"
        page_html = read_report(plan.out) if finished else None
        return [
            progress_html(studio, texts),
            drawing.curve(read_steps(plan.out), texts),
            drawing.report(page_html, texts),
            gr.update(visible=state == "running"),
            gr.update(visible=finished),
            gr.update(active=state == "running"),
        ]

    async def try_it() -> str:
        plan = studio.tuner.plan
        if plan is None:
            return ""
        try:
            name = await studio.load(plan.out)
        except LushanError as error:
            return drawing.problem(error, texts)
        return drawing.note(texts("tune.loaded", name=name), texts)

    seen = [status, curve, report, cancel, trial, timer]
    gr.on(opened, look, outputs=seen, show_progress="hidden")
    timer.tick(look, outputs=seen, show_progress="hidden")
    cancel.click(studio.tuner.cancel, show_progress="hidden")
    trial.click(try_it, outputs=tried)
    return status, timer


def progress_html(studio: Studio, texts: Texts) -> str:
    """Say how the latest run stands, and what it said last."""
    tuner = studio.tuner
    if tuner.plan is None or tuner.state == "idle":
        return ""
    run, detail = tuner.plan.out, ""
    steps, planned = read_steps(run), planned_steps(run)
    if tuner.state == "running" and steps and planned:
        detail = texts("tune.step", step=steps[-1]["step"], total=planned)
    message = texts(MESSAGES[tuner.state], name=run.name)
    lines = [] if tuner.state == "finished" else tuner.last_lines()
    return drawing.draw("progress", texts, message=message, detail=detail, lines=lines)
