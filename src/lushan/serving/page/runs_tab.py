"""The tab of all runs: where each stands, its curve while it trains, and its report."""

from typing import Any

import gradio as gr

from lushan.errors import LushanError
from lushan.serving.page import drawing
from lushan.serving.page.choosing import Triggers, among
from lushan.serving.page.runs import find_run, list_runs, read_report, read_steps
from lushan.serving.page.studio import Studio
from lushan.serving.page.texts import Texts

SECONDS_BETWEEN_LOOKS = 2.0


def build(opened: Triggers, studio: Studio, texts: Texts) -> None:
    """Put the tab together; `opened` tells that a visitor comes to it."""
    store = studio.store
    if store is None:
        gr.HTML(drawing.note(texts("no_store"), texts))
        return
    table = gr.HTML()
    with gr.Row():
        chosen = gr.Dropdown(label=texts("runs.choose"), interactive=True, scale=3)
        refresh = gr.Button(texts("runs.refresh"), scale=1)
    curve, report = gr.HTML(), gr.HTML()
    timer = gr.Timer(SECONDS_BETWEEN_LOOKS, active=False)

    def look(name: str | None) -> list[Any]:
        runs = list_runs(store, texts)
        return [
            drawing.draw("runs", texts, runs=runs),
            among([(each.name, each.name) for each in runs], name),
            gr.update(active=any(each.state == "running" for each in runs)),
        ]

    def show(name: str | None) -> list[str]:
        if name is None:
            return ["", ""]
        try:
            run = find_run(store, name, texts)
        except LushanError as error:
            return [drawing.problem(error, texts), ""]
        return [
            drawing.curve(read_steps(run.path), texts),
            drawing.report(read_report(run.path), texts),
        ]

    seen = [table, chosen, timer]
    gr.on(opened, look, inputs=chosen, outputs=seen, show_progress="hidden")
    refresh.click(look, inputs=chosen, outputs=seen).then(
        show, inputs=chosen, outputs=[curve, report], show_progress="hidden"
    )
    chosen.change(show, inputs=chosen, outputs=[curve, report], show_progress="hidden")
    timer.tick(look, inputs=chosen, outputs=seen, show_progress="hidden").then(
        show, inputs=chosen, outputs=[curve, report], show_progress="hidden"
    )
