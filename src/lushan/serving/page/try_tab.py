"""The tab in which a model is asked about one text, alone or beside another model."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from lushan.errors import DataError, LushanError
from lushan.inference.predict import Predictor
from lushan.records import Example, Prediction, Row
from lushan.serving.hosted import HostedModel
from lushan.serving.page import drawing
from lushan.serving.page.choosing import Triggers, among
from lushan.serving.page.form import Field, fields_of, values_of
from lushan.serving.page.heat import heat_maps
from lushan.serving.page.studio import Studio
from lushan.serving.page.texts import Texts

LINES = {"text": 3, "list": 4, "part": 1, "messages": 3}
"""Height of a field, by its kind."""


def build(opened: Triggers, studio: Studio, texts: Texts) -> None:
    """Put the tab together; `opened` tells that a visitor comes to it."""
    with gr.Row():
        model = gr.Dropdown(label=texts("model"), interactive=True)
        other = gr.Dropdown(label=texts("try.other"), interactive=True)
    empty = gr.HTML()

    def list_models(current: str | None) -> list[Any]:
        note = "" if studio.models else drawing.note(texts("no_models"), texts)
        return [among(studio.choices(texts), current), note]

    def show_others(name: str | None) -> Any:  # noqa: ANN401 - an update of gradio
        return gr.update(choices=list_others(studio, name, texts), value="")

    gr.on(opened, list_models, inputs=model, outputs=[model, empty], show_progress="hidden")
    model.change(show_others, inputs=model, outputs=other, show_progress="hidden")

    @gr.render(inputs=model, triggers=[model.change], show_progress="hidden")
    def show_form(name: str | None) -> None:
        if name is not None and name in studio.models:
            _build_form(studio, texts, name, other)


def _build_form(studio: Studio, texts: Texts, name: str, other: gr.Dropdown) -> None:
    predictor = studio.model(name).predictor
    fields = fields_of(predictor.task, length_control=bool(predictor.state.lengths))
    required = [each for each in fields if each.is_required]
    optional = [each for each in fields if not each.is_required]
    boxes = [_box(each, texts) for each in required]
    if optional:
        with gr.Accordion(texts("try.more"), open=any(each.kind == "part" for each in optional)):
            boxes += [_box(each, texts) for each in optional]
    with gr.Row():
        ask = gr.Button(texts("try.ask"), variant="primary")
        example = gr.Button(texts("try.example"))
    answer = gr.HTML(drawing.note(texts("try.empty"), texts))
    why = gr.Button(texts("try.heat"))
    heat = gr.HTML()

    async def answer_one(second: str, *written: str) -> list[str]:
        try:
            values = read_form(fields, written, texts)
            return [await answers_html(studio, texts, [name, second], values), ""]
        except LushanError as error:
            return [drawing.problem(error, texts), ""]

    async def explain_one(*written: str) -> str:
        try:
            example = _example(studio, name, read_form(fields, written, texts))
            maps = await heat_maps(studio, name, example)
        except LushanError as error:
            return drawing.problem(error, texts)
        drawn = (
            drawing.heat(each.target, each.pieces, texts, num_cut_tokens=each.num_cut_tokens)
            for each in maps
        )
        return "".join(drawn) or drawing.note(texts("answer.nothing"), texts)

    ask.click(answer_one, inputs=[other, *boxes], outputs=[answer, heat])
    why.click(explain_one, inputs=boxes, outputs=heat)
    samples = [gr.update(value=each.sample) for each in (*required, *optional)]
    example.click(lambda: samples[0] if len(samples) == 1 else samples, outputs=boxes)


def _box(field: Field, texts: Texts) -> gr.Textbox:
    hints = {"list": texts("try.list_hint"), "part": texts("try.part_hint")}
    return gr.Textbox(
        "",
        label=texts.name_of("column", field.column),
        info=hints.get(field.kind),
        lines=LINES[field.kind],
        max_lines=20,
    )


def list_others(studio: Studio, name: str | None, texts: Texts) -> list[tuple[str, str]]:
    """List what can answer the same form: models of the same task, and untouched ones that can be asked about it."""
    found = [(texts("none"), "")]
    if name is None or name not in studio.models:
        return found
    task = studio.model(name).predictor.task

    def fits(each: HostedModel) -> bool:
        return each.name != name and (
            isinstance(each.predictor.task, type(task)) or _can_be_asked(each, task)
        )

    return found + studio.choices(texts, fits)


def _can_be_asked(hosted: HostedModel, task: Any) -> bool:  # noqa: ANN401 - a task
    family = hosted.predictor.backbone.facts.asked_as
    return not hosted.is_tuned and task.untuned.get(family) == "prompt"


def read_form(fields: Sequence[Field], written: Sequence[str], texts: Texts) -> dict[str, Any]:
    """Give the values of a row from what was written.

    Raises:
        DataError: If something was left out, or does not fit.
    """
    values = values_of(fields, written)
    missing = [each.column for each in fields if each.is_required and each.column not in values]
    if missing:
        column = texts.name_of("column", missing[0])
        raise DataError(texts("try.missing", column=column))
    return values


async def answers_html(
    studio: Studio, texts: Texts, names: Sequence[str], values: Mapping[str, Any]
) -> str:
    """Ask one or two models about a row, and draw their answers side by side.

    Args:
        studio: The server.
        texts: Of the visitor's language.
        names: The model that the form belongs to, and another or an empty name.
        values: The row, by the columns of the first model's task.

    Raises:
        UserError: If a model cannot be asked.
    """
    first = studio.model(names[0])
    predictor = first.predictor
    example = _example(studio, names[0], values)
    asked = [first, *(studio.model(name) for name in names[1:] if name)]
    # At once: those of one base answer in the same passes.
    answers = await asyncio.gather(*(_ask(studio, each, predictor, example) for each in asked))
    cards = [
        drawing.answer_card(example, answer, texts, title=each.name)
        for each, answer in zip(asked, answers, strict=True)
    ]
    return drawing.answers(cards, texts)


def _example(studio: Studio, name: str, values: Mapping[str, Any]) -> Example:
    predictor = studio.model(name).predictor
    row = Row(values, "form", 1)
    return predictor.task.read(row, multi_label=predictor.state.multi_label, needs_target=False)


async def _ask(
    studio: Studio, hosted: HostedModel, of_form: Predictor, example: Example
) -> Prediction:
    """Ask a model; one of another task is asked by a prompt, as before tuning."""
    if not isinstance(hosted.predictor.task, type(of_form.task)):
        prompted = replace(
            hosted.predictor,
            task=of_form.task,
            state=of_form.state,
            answer="generate",
            generation=of_form.generation,
        )
        hosted = replace(hosted, predictor=prompted)
    return (await studio.worker.predict(hosted, [example]))[0]
