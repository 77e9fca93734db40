"""The tab that takes a table and gives back an answer for every row."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import gradio as gr

from lushan.errors import DataError, LushanError
from lushan.inference.grammar import check_forms
from lushan.inference.predict import Predictor
from lushan.records import Example, plain_prediction
from lushan.serving.hosted import HostedModel
from lushan.serving.page import drawing
from lushan.serving.page.choosing import Triggers, among
from lushan.serving.page.studio import Studio
from lushan.serving.page.texts import Texts
from lushan.serving.page.uploads import FILE_TYPES, safe_name
from lushan.settings import read_yaml
from lushan.workflows.predict import Opened, Rows, open_rows

ROWS_AT_ONCE = 64
"""Rows of a file that are asked together; others' requests get their turn between."""


class Progress(NamedTuple):
    """How far a file is."""

    done: int
    total: int
    num_cut: int = 0
    """Rows that were too long and were cut."""


def build(opened: Triggers, studio: Studio, texts: Texts) -> None:
    """Put the tab together; `opened` tells that a visitor comes to it."""
    gr.HTML(drawing.note(texts("file.about"), texts))
    model = gr.Dropdown(label=texts("model"), interactive=True)
    table = gr.File(label=texts("file.upload"), file_types=FILE_TYPES, height=140)
    start = gr.Button(texts("file.start"), variant="primary")
    status = gr.HTML()
    result = gr.File(label=texts("file.result"), interactive=False, visible=False)

    gr.on(
        opened,
        lambda current: among(studio.choices(texts), current),
        inputs=model,
        outputs=model,
        show_progress="hidden",
    )
    # One file at a time; the rest of the visitors wait in the queue, whose length is bounded.
    start.click(
        _Answering(studio, texts).answer,
        inputs=[model, table],
        outputs=[status, result],
        concurrency_limit=1,
    )


class _Answering(NamedTuple):
    """What happens in the tab."""

    studio: Studio
    texts: Texts

    async def answer(self, name: str | None, upload: str | None) -> AsyncIterator[list[Any]]:
        """Answer a table; gives what is said, and the file once it is there."""
        texts, progress = self.texts, Progress(0, 0)
        yield [drawing.note(texts("file.reading"), texts), gr.update(visible=False)]
        # What is yielded is copied before the next step: the folder may go then.
        with TemporaryDirectory(prefix="lushan-") as folder:
            target = Path(folder, _result_name(Path(upload or "")))
            written = gr.update(value=str(target), visible=True)
            try:
                if upload is None:
                    raise DataError(texts("file.missing"))
                model = self.studio.model(name)
                async for progress in answer_file(self.studio, model, Path(upload), target):
                    message = texts("file.progress", **progress._asdict())
                    yield [drawing.note(message, texts), gr.skip()]
            except LushanError as error:
                problem = drawing.problem(error, texts)
                if progress.done:
                    message = texts("file.partly", **progress._asdict())
                    note = drawing.note(message, texts) + self._note_of_cut(progress)
                    yield [problem + note, written]
                else:
                    yield [problem, gr.skip()]
                return
            message = texts("file.done", count=f"{progress.done:,}")
            yield [drawing.note(message, texts) + self._note_of_cut(progress), written]

    def _note_of_cut(self, progress: Progress) -> str:
        if not progress.num_cut:
            return ""
        return drawing.note(self.texts("file.cut", count=f"{progress.num_cut:,}"), self.texts)


def _result_name(upload: Path) -> str:
    name = safe_name(upload.name.partition(".")[0], otherwise="table")
    return f"{name}.predictions.jsonl"


async def answer_file(
    studio: Studio, hosted: HostedModel, table: Path, target: Path
) -> AsyncIterator[Progress]:
    """Answer every row of a table: one JSON line a row, in its order, as `lushan predict` writes them.

    Every row is read and checked before the first is answered.

    Args:
        studio: The server.
        hosted: The model.
        table: What was uploaded.
        target: Where the lines go.

    Raises:
        DataError: If the table does not fit the model's task; nothing is written then.
    """
    opened = Opened(hosted.run, hosted.predictor, "", {}, _run_columns(hosted.run))
    rows = open_rows(opened, table, needs_target=False)
    num_rows = await asyncio.to_thread(_num_checked, rows, hosted.predictor)
    yield Progress(0, num_rows)
    num_done = num_cut = 0
    with target.open("w", encoding="utf-8") as stream, studio.worker.admit() as admitted:
        for chunk in _chunks(rows):
            examples = [each for _, each in chunk]
            predictions = await studio.worker.predict(hosted, examples, within=admitted)
            for (number, _), prediction in zip(chunk, predictions, strict=True):
                line = {"row": number, **plain_prediction(prediction)}
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            num_done += len(chunk)
            num_cut += sum(each.num_cut_tokens > 0 for each in predictions)
            yield Progress(num_done, num_rows, num_cut)


def _num_checked(rows: Rows, predictor: Predictor) -> int:
    """Count rows that can all be asked: none is too long, and no form is one that cannot be held.

    Raises:
        DataError: If one cannot; names it.
    """
    num_rows = 0
    for chunk in _chunks(rows):
        examples = [example for _, example in chunk]
        predictor.encode(examples)
        check_forms(examples, most_tokens=predictor.generation.max_new_tokens)
        num_rows += len(chunk)
    return num_rows


def _chunks(rows: Rows) -> Iterator[list[tuple[int, Example]]]:
    stream = iter(rows)
    while chunk := list(itertools.islice(stream, ROWS_AT_ONCE)):
        yield chunk


def _run_columns(run: Path | None) -> dict[str, str]:
    """Give the columns that a run was told, so that a table like its own is read in the same way."""
    if run is None or not (run / "recipe.yaml").is_file():
        return {}
    return read_yaml(run / "recipe.yaml").get("data", {}).get("columns", {})
