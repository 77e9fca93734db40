"""New labelled rows by the model itself: written, filtered, measured, and kept apart from the data.

prepare -> write -> filter -> measure -> report. The test rows are only looked at to keep rows like them out.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lushan.backbones.encoding import LengthLimit
from lushan.backbones.inspect import describe
from lushan.backbones.load import load_backbone
from lushan.backbones.tokenizer import Tokenizer
from lushan.data.columns import Notes
from lushan.data.readers import find_files, read_rows
from lushan.data.splits import subsample
from lushan.errors import DataError, SettingError
from lushan.inference.row_writer import rows_that_fit, write_rows
from lushan.records import Example, Row
from lushan.tasks import Task
from lushan.workflows.added_rows import without_added
from lushan.workflows.encode import Encoder
from lushan.workflows.new_rows import (
    NewRow,
    Sifted,
    added_files,
    begin,
    check_place,
    clock,
    drop,
    drop_known,
    keep_where_it_helps,
    measure_gain,
    reserved,
    what_came_out,
    with_train,
)
from lushan.workflows.predict import check_output
from lushan.workflows.prepare import Prepared, columns_for
from lushan.workflows.progress import Progress, Tell
from lushan.workflows.recipe import TuneRecipe
from lushan.workflows.self_training import self_train
from lushan.workflows.setup import Setup
from lushan.workflows.tune import tuned_apart

SOURCE = "written rows"
NUM_ROWS = 200
"""Rows that are written where nobody says how many."""
MOST_SHOWN_ROWS = 2_000
"""Training rows that prompts are drawn from; more would only take memory."""


def augment_or_label(
    data: Path,
    recipe: TuneRecipe,
    *,
    unlabelled: Path | None,
    num_rows: int | None,
    out: Path,
    keep: bool,
    overwrite: bool,
    tell: Tell,
) -> dict[str, Any]:
    """Make new rows in one of the two ways: label those of `unlabelled`, or write `num_rows`; see `augment`.

    Raises:
        UserError: If both are given, or something else does not fit.
    """
    if unlabelled is None:
        return augment(
            data,
            recipe,
            out=out,
            num_rows=NUM_ROWS if num_rows is None else num_rows,
            keep=keep,
            overwrite=overwrite,
            tell=tell,
        )
    if num_rows is not None:
        raise SettingError(
            "`--rows` says how many rows are to be written, and with `--unlabelled` none are. Leave one out."
        )
    return self_train(
        data, recipe, unlabelled=unlabelled, out=out, keep=keep, overwrite=overwrite, tell=tell
    )


def augment(
    data: Path,
    recipe: TuneRecipe,
    *,
    out: Path,
    num_rows: int,
    keep: bool = False,
    overwrite: bool = False,
    tell: Tell,
) -> dict[str, Any]:
    """Write new rows like the training rows, and say whether training on them helps.

    Args:
        data: A file, or a folder with train, validation and test files.
        recipe: How both models are tuned that are compared; its model also writes the rows.
        out: JSON Lines file for the new rows; it is written only where they help, or `keep` is set.
        num_rows: Rows to write, before the filters.
        keep: Write the file also where the rows do not help.
        overwrite: Replace the file in `out`.
        tell: Takes one line for a person.

    Returns:
        Plain values: rows by filter, `gain`, `helps`, `written`, `seconds`.

    Raises:
        UserError: If the recipe, the data or the model is wrong; nothing is written then.
    """
    if num_rows < 1:
        raise SettingError(f"At least one row must be asked for, got {num_rows}.")
    check_output(out, overwrite=overwrite)
    check_place(out, data, others=added_files(recipe))
    seconds: dict[str, float] = {}
    with reserved(out, overwrite=overwrite):
        with clock(seconds, "check"):
            prepared, setup = begin(data, recipe, writes=True, tell=tell)
        with clock(seconds, "write"):
            known = _fitting(_train_rows(data, prepared, setup), setup, tell=tell)
            tell(f"Writing {num_rows:,} rows like {len(known):,} of the training rows.")
            texts = _written(known, setup, num_rows=num_rows, tell=tell)
        with clock(seconds, "filter"):
            sifted = sift(texts, setup, multi_label=prepared.multi_label)
        with clock(seconds, "agreement"):
            asks = bool(setup.task.columns.labels)
            if asks and sifted.rows:
                tell(f"Asking a model tuned on the real rows about {len(sifted.rows):,} new ones.")
                _drop_disagreeing(sifted, _with_real_rows(prepared, setup), tell=tell)
        gain = None
        if sifted.rows:
            with clock(seconds, "gain"):
                tell(f"Measuring whether {len(sifted.rows):,} new rows help.")
                gain = measure_gain(sifted.rows, prepared, setup, tell=tell)
        written = keep_where_it_helps(sifted, gain, out=out, keep=keep, overwrite=overwrite)
    return {
        "data": str(data),
        **what_came_out(sifted, setup),
        "num_asked": num_rows,
        "agreement_asked": asks,
        "gain": gain,
        **written,
        "seconds": seconds,
    }


def _train_rows(data: Path, prepared: Prepared, setup: Setup) -> list[Mapping[str, Any]]:
    """Give the training rows as they were read: an example no longer has its columns."""
    shown = subsample(without_added(setup.parts.train), MOST_SHOWN_ROWS, seed=setup.recipe.seed)
    ids = {each.id for each in shown}
    file = find_files(data)[0]["train"]
    rows = read_rows(
        file,
        columns=setup.recipe.data.columns,
        wanted=columns_for(
            setup.task,
            multi_label=prepared.multi_label,
            length_control=setup.recipe.task_settings.length_control,
        ),
        notes=Notes(file.name),
    )
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        example = setup.task.read(row, multi_label=prepared.multi_label)
        if example.id in ids:
            values = {name: value for name, value in row.values.items() if value is not None}
            found.setdefault(example.id, values)
    return [*found.values()]


def _with_real_rows(prepared: Prepared, setup: Setup) -> Setup:
    """Leave the rows of `data.added` out: who learned from rows that a model wrote would confirm more of them."""
    real = without_added(setup.parts.train)
    return setup if len(real) == len(setup.parts.train) else with_train(real, prepared, setup)


def _fitting(
    rows: Sequence[Mapping[str, Any]], setup: Setup, *, tell: Tell
) -> list[Mapping[str, Any]]:
    context_tokens = describe(setup.base).context_tokens
    fitting = rows_that_fit(rows, Tokenizer.load(setup.base), context_tokens=context_tokens)
    if num_long := len(rows) - len(fitting):
        tell(f"{num_long:,} of the training rows are too long to be shown to the writer.")
    return fitting


def _written(
    known: Sequence[Mapping[str, Any]], setup: Setup, *, num_rows: int, tell: Tell
) -> list[str]:
    precision = "bf16" if setup.recipe.model.precision == "bf16" else "fp32"
    backbone = load_backbone(setup.base, purpose="language", precision=precision)
    return write_rows(
        backbone,
        known,
        fixed=setup.task.columns.labels,
        num_rows=num_rows,
        seed=setup.recipe.seed,
        advance=Progress(tell, "Wrote {} of " + f"{num_rows:,} rows so far.").advance,
    )


def sift(texts: Sequence[str], setup: Setup, *, multi_label: bool) -> Sifted:
    """Keep the rows that the task and the model accept, that are new, and that no row of validation or test is like.

    Args:
        texts: What was written.
        setup: What there is already.
        multi_label: Whether a row may have several labels.
    """
    sifted = Sifted([])
    for number, text in enumerate(texts, start=1):
        try:
            row = _read(text, number, setup.task, multi_label=multi_label)
            _check_can_be_learned(row.example, setup)
            sifted.rows.append(row)
        except DataError as error:
            sifted.refused[str(error).removeprefix(f"{SOURCE}, row {number}: ")] += 1
    drop_known(sifted, setup)
    return sifted


def _read(text: str, number: int, task: Task, *, multi_label: bool) -> NewRow:
    """Read one row that was written.

    Raises:
        DataError: If it is unfinished, no text, or none that the task accepts.
    """
    try:
        values = json.loads(text)
        json.dumps(values, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError:
        raise DataError("unfinished: it is longer than any training row.") from None
    except UnicodeEncodeError:
        raise DataError("half a character (a lone surrogate).") from None
    return NewRow(values, task.read(Row(values, SOURCE, number), multi_label=multi_label))


def _check_can_be_learned(example: Example, setup: Setup) -> None:
    """Refuse a row that would end the training on all.

    Raises:
        DataError: If it is longer than the model reads, or the model cannot be told something in it.
    """
    encoder = Encoder(setup.task, setup.state, setup.tokenizer, setup.recipe.answer, setup.limit)
    try:
        encoder.encode([example], with_target=True)
    except DataError:
        # Whatever is wrong beside the length is said by its own name.
        replace(encoder, limit=LengthLimit(sys.maxsize)).encode([example], with_target=True)
        raise DataError("too long: more tokens than `model.max_length`.") from None


def _drop_disagreeing(sifted: Sifted, setup: Setup, *, tell: Tell) -> None:
    """Keep the rows to which a model that was tuned on real rows alone gives the same label."""
    examples = [row.example for row in sifted.rows]
    predictor, _ = tuned_apart(setup, tell=tell)
    scores = setup.task.score(predictor.predict(examples), examples, setup.state)
    agrees = np.asarray(scores.correct, dtype=float) == 1
    drop(sifted, "disagrees", set(np.flatnonzero(~agrees).tolist()))
