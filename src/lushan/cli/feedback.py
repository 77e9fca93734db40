"""`lushan feedback`: what people say of answers, stored, listed, and exported as rows to tune on."""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from lushan.cli.console import (
    Command,
    JsonOption,
    SeedOption,
    StoreOption,
    emit_json,
    open_store,
    show_table,
    tell,
)
from lushan.errors import RunError

app = typer.Typer(help="Store, list and export what people say of answers.", add_completion=False)
PURPOSE = "`lushan feedback`"

ModelFilter = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="Only feedback about this model.")
]


@app.command("add", cls=Command)
def add(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model that answered.")],
    asked: Annotated[
        str, typer.Argument(metavar="INPUT", help="What was asked: a text, or a row as JSON.")
    ],
    *,
    task: Annotated[str, typer.Option("--task", help="What the model does.")],
    prediction: Annotated[
        str | None,
        typer.Option("--prediction", metavar="ANSWER", help="What it answered: text or JSON."),
    ] = None,
    rating: Annotated[
        str | None, typer.Option("--rating", metavar="good|bad", help="How good the answer was.")
    ] = None,
    correction: Annotated[
        str | None,
        typer.Option(
            "--correction",
            metavar="ANSWER",
            help="The right answer, as the data of the task hold it: text or JSON.",
        ),
    ] = None,
    comment: Annotated[str, typer.Option("--comment", help="Anything else, in words.")] = "",
    name: Annotated[
        str | None,
        typer.Option("--id", metavar="ID", help="Added again with its id, it is stored once."),
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    seed: SeedOption = 0,
) -> None:
    """Store what you say of one answer: a rating, the right answer, or both."""
    from lushan.catalog import load_task
    from lushan.feedback.given import check_given
    from lushan.feedback.training_rows import check_against_task

    del seed  # every command takes it; nothing here is random
    values = {
        "id": name,
        "model": model,
        "input": _value(asked),
        "prediction": _value(prediction),
        "rating": rating,
        "correction": _value(correction),
        "comment": comment,
        "source": "command",
    }
    given = check_given(values)
    check_against_task(given, load_task(task), multi_label=None)
    with open_store(store, purpose=PURPOSE, create=True) as database:
        from lushan.feedback.store import FeedbackStore

        added = FeedbackStore(database).add(given, task=task)
    tell(f"{'Stored' if added.is_new else 'Was there already'}: {added.feedback.id}")
    if as_json:
        emit_json({"feedback": added.feedback.model_dump(mode="json"), "is_new": added.is_new})


def _value(text: str | None) -> Any:  # noqa: ANN401 - any JSON value
    """Read an object, a list or a quoted text as JSON; anything else is a text as it stands."""
    if text is None or not text.lstrip().startswith(("{", "[", '"')):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


@app.command("list", cls=Command)
def list_them(
    *,
    model: ModelFilter = None,
    after: Annotated[
        str | None, typer.Option("--after", metavar="ID", help="Only what came after this one.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=10**9, help="Most rows to show.")
    ] = 20,
    store: StoreOption = None,
    as_json: JsonOption = False,
    seed: SeedOption = 0,
) -> None:
    """List feedback, the oldest first."""
    del seed
    with open_store(store, purpose=PURPOSE, create=False) as database:
        from lushan.feedback.store import FeedbackStore

        feedback = FeedbackStore(database)
        found = feedback.page(after=after, model=model, limit=limit)
        tally = feedback.tally(model=model)
    rows = [
        (
            each.id,
            f"{each.created_at:%Y-%m-%d %H:%M}",
            each.model,
            _shown(each.input),
            _shown(each.prediction),
            each.rating or "",
            _shown(each.correction),
        )
        for each in found
    ]
    show_table(("id", "UTC", "model", "input", "prediction", "rating", "correction"), rows)
    for task, counted in tally.items():
        tell(
            f"{task}: {counted.num_rows:,} in all, {counted.num_good:,} good, {counted.num_bad:,} bad, "
            f"{counted.num_corrected:,} corrected."
        )
    if as_json:
        shown = [each.model_dump(mode="json") for each in found]
        emit_json({
            "feedback": shown,
            "tally": {task: asdict(each) for task, each in tally.items()},
        })


def _shown(value: object) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


@app.command("export", cls=Command)
def export(
    *,
    task: Annotated[
        str | None,
        typer.Option("--task", help="The task of the corrections; needed where there are several."),
    ] = None,
    model: ModelFilter = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the rows here, not to stdout."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file in --out.")
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
    seed: SeedOption = 0,
) -> None:
    """Write the corrected rows as JSON Lines that `lushan tune` reads."""
    from lushan.workflows.predict import check_output, write_file

    del seed
    if out is not None and not out.name.endswith(".jsonl"):
        raise RunError(f"`--out {out}` must end in `.jsonl`: the rows are JSON Lines.")
    check_output(out, overwrite=overwrite)

    def write(lines: Iterable[str]) -> None:
        if out is None:
            sys.stdout.writelines(lines)
        else:
            write_file(out, lines)

    with open_store(store, purpose=PURPOSE, create=False) as database:
        from lushan.feedback.export import export_rows
        from lushan.feedback.store import FeedbackStore

        done = export_rows(FeedbackStore(database), write=write, task=task, model=model)
    tell(
        f"{done.num_rows:,} rows of {done.task}. Left out: {done.num_replaced:,} corrections that a later one of the "
        f"same input replaces, {done.num_only_rated:,} rated without a correction."
    )
    if as_json:
        emit_json({**asdict(done), "out": None if out is None else str(out)})
