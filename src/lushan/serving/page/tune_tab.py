"""The tab in which a table becomes a tuned model: upload, check, start, watch, try."""

import asyncio
from collections.abc import Container
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from lushan.backbones.sources import ListedModel, list_models
from lushan.catalog import names_in
from lushan.errors import DataError, LushanError, ModelError, RunError
from lushan.serving.page import drawing
from lushan.serving.page.choosing import Triggers, among
from lushan.serving.page.preflight import preflight_html
from lushan.serving.page.studio import Studio
from lushan.serving.page.texts import Texts
from lushan.serving.page.tuning import Plan, columns_of, guess_task
from lushan.serving.page.uploads import FILE_TYPES, free_place, keep_upload, safe_name
from lushan.serving.page.watching import build_watching

EFFORTS = ("quick", "normal", "thorough")
RUNS = "runs"
"""Folder of the store that holds the runs that were started here."""


class Wish(NamedTuple):
    """What a visitor has filled in; nothing of it is sure to be there."""

    upload: str | None
    task: str | None
    model: str | None
    effort: str | None
    name: str | None


def build(opened: Triggers, studio: Studio, texts: Texts) -> None:
    """Put the tab together; `opened` tells that a visitor comes to it."""
    if studio.store is None:
        gr.HTML(drawing.note(texts("no_store"), texts))
        return
    gr.HTML(drawing.heading(texts("tune.step_upload"), texts, hint=texts("tune.about")))
    table = gr.File(label=texts("tune.upload"), file_types=FILE_TYPES, height=140)
    gr.HTML(drawing.heading(texts("tune.step_choose"), texts))
    guessed = gr.HTML()
    with gr.Row():
        tasks = [(texts.name_of("task", each), each) for each in names_in("lushan.tasks")]
        task = gr.Dropdown(choices=tasks, value=None, label=texts("tune.task"), interactive=True)
        model = gr.Dropdown(label=texts("tune.model"), interactive=True)
    findings = gr.HTML()
    gr.HTML(drawing.heading(texts("tune.step_start"), texts))
    with gr.Row():
        name = gr.Textbox("", label=texts("tune.name"), max_lines=1)
        efforts = [(texts(f"tune.effort.{each}"), each) for each in EFFORTS]
        effort = gr.Dropdown(
            choices=efforts, value=EFFORTS[0], label=texts("tune.effort"), interactive=True
        )
    start = gr.Button(texts("tune.start"), variant="primary")
    status, timer = build_watching(opened, studio, texts)

    async def look_at(*filled_in: str | None) -> str:
        wish = Wish(*filled_in)
        if wish.upload is None or wish.task is None:
            return ""
        return await asyncio.to_thread(_findings, wish, texts)

    def begin(*filled_in: str | None) -> list[Any]:
        try:
            begin_run(Wish(*filled_in), studio, texts)
        except LushanError as error:
            return [drawing.problem(error, texts), gr.skip()]
        return [gr.skip(), gr.update(active=True)]

    wished = [table, task, model, effort, name]
    gr.on(
        opened,
        lambda current: _choose_base(current, texts),
        inputs=model,
        outputs=model,
        show_progress="hidden",
    )
    table.change(
        lambda upload: guess(upload, texts),
        inputs=table,
        outputs=[guessed, task, name],
        show_progress="hidden",
    ).then(look_at, inputs=wished, outputs=findings)
    gr.on([task.input, model.input], look_at, inputs=wished, outputs=findings)
    start.click(begin, inputs=wished, outputs=[status, timer])


def guess(upload: str | None, texts: Texts) -> list[Any]:
    """Say which task a table looks like, and name the run after it."""
    if upload is None:
        return ["", None, ""]
    try:
        columns = columns_of(Path(upload))
    except LushanError as error:
        return [drawing.problem(error, texts), None, ""]
    task = guess_task(columns)
    key = "tune.guessed" if task else "tune.not_guessed"
    name = safe_name(Path(upload).name.partition(".")[0], otherwise="run")
    return [drawing.note(texts(key, columns=", ".join(columns)), texts), task, name]


def _findings(wish: Wish, texts: Texts) -> str:
    try:
        return preflight_html(Path(wish.upload or ""), wish.task or "", wish.model, texts)
    except LushanError as error:
        return drawing.problem(error, texts)


def bases() -> list[ListedModel]:
    """List the pretrained models of this machine."""
    return [each for each in list_models() if each.is_here]


def _choose_base(current: str | None, texts: Texts) -> Any:  # noqa: ANN401 - an update of gradio
    """Offer the pretrained models; the usual one comes first."""
    names = [each.name for each in sorted(bases(), key=lambda each: not each.is_default)]
    hint = None if names else texts("tune.no_base")
    return {**among([(name, name) for name in names], current), "info": hint}


def begin_run(wish: Wish, studio: Studio, texts: Texts) -> None:
    """Keep the table in the store, and tune on it.

    Raises:
        DataError: If there is no table.
        ModelError: If no model or task is chosen.
        RunError: If a run is going; the table is not kept then.
    """
    plan = plan_of(wish, studio.needed_store(), texts, taken=studio.models)
    try:
        studio.tuner.start(plan)
    except RunError:
        plan.data.unlink()
        raise


def plan_of(wish: Wish, store: Path, texts: Texts, *, taken: Container[str] = ()) -> Plan:
    """Keep the table in the store, and say what is to be run.

    Args:
        wish: What is filled in.
        store: The folder of runs and uploads.
        texts: For messages.
        taken: Names that the run must not have: those of models that are served.

    Raises:
        DataError: If there is no table.
        ModelError: If no model or task is chosen.
    """
    if wish.upload is None:
        raise DataError(texts("tune.missing"))
    task, model, effort = wish.task, wish.model, wish.effort
    known = (names_in("lushan.tasks"), [each.name for each in bases()], EFFORTS)
    if task not in known[0] or model not in known[1] or effort not in known[2]:
        raise ModelError(texts("tune.choose"))
    data = keep_upload(Path(wish.upload), store)
    name = safe_name(wish.name or "", otherwise="run")
    (store / RUNS).mkdir(parents=True, exist_ok=True)
    return Plan(data, task, model, effort, free_place(store / RUNS, name, taken=taken))
