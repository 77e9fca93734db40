"""Self-training: the tuned model labels rows that have no label, and is tuned again on those it is sure of.

prepare -> tune -> label -> filter -> tune again and measure -> report. It is the `augment` of rows that are there already
but for their label, and whether they help is judged in the same way.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lushan.backbones.tokenizer import Tokenizer
from lushan.data.chunks import encoded_in_chunks
from lushan.data.columns import Notes
from lushan.data.readers import read_rows
from lushan.data.splits import count_labels
from lushan.errors import DataError, SettingError
from lushan.inference.predict import Predictor
from lushan.records import Prediction, Row
from lushan.workflows.added_rows import count_added, without_added
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
)
from lushan.workflows.predict import check_output
from lushan.workflows.progress import Tell
from lushan.workflows.recipe import TuneRecipe
from lushan.workflows.setup import Setup
from lushan.workflows.tune import tuned_apart

FEWEST_SURE_ROWS = 10
"""Validation rows that a threshold must leave: the errors among fewer tell nothing."""
ERROR_SHARE = 0.5
"""Rows above the threshold are wrong at most this often, as a share of how often all are."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """How sure the model must be of a label, and what that gave on the validation rows."""

    probability: float
    num_validation_rows: int
    """Those at or above it."""
    error_fraction: float
    """Of those."""


def self_train(
    data: Path,
    recipe: TuneRecipe,
    *,
    unlabelled: Path,
    out: Path,
    keep: bool = False,
    overwrite: bool = False,
    tell: Tell,
) -> dict[str, Any]:
    """Label rows with the tuned model, and say whether tuning on the sure ones too helps.

    Args:
        data: A file, or a folder with train, validation and test files.
        recipe: How the models are tuned.
        unlabelled: A file with the columns of the task; a label in it is not read.
        out: JSON Lines file for the labelled rows; it is written only where they help, or `keep` is set.
        keep: Write the file also where the rows do not help.
        overwrite: Replace the file in `out`.
        tell: Takes one line for a person.

    Returns:
        Plain values, as `augment` gives them; and `threshold`, and `error_fraction` of all validation rows.

    Raises:
        UserError: If the recipe, the data or the model is wrong; nothing is written then.
    """
    check_output(out, overwrite=overwrite)
    check_place(out, data, others=[unlabelled, *added_files(recipe)])
    seconds: dict[str, float] = {}
    with reserved(out, overwrite=overwrite):
        with clock(seconds, "check"):
            prepared, setup = begin(data, recipe, writes=False, tell=tell)
            _refuse_other_answers(setup)
            sifted = _read(unlabelled, setup, tell=tell)
            num_asked = len(sifted.rows)
            drop_known(sifted, setup)
        with clock(seconds, "tune"):
            tell(_told_rows(setup))
            predictor, _ = tuned_apart(setup, tell=tell)
            asked = predictor.examine(setup.parts.validation)
        first = setup.task.score(asked, setup.parts.validation, setup.state, seed=setup.recipe.seed)
        threshold = choose_threshold(asked, first.correct)
        with clock(seconds, "label"):
            tell(f"Labelling {len(sifted.rows):,} rows.")
            _label(sifted, predictor, threshold, setup)
            del predictor
        gain = None
        if sifted.rows:
            with clock(seconds, "gain"):
                tell(f"Measuring whether {len(sifted.rows):,} labelled rows help.")
                gain = measure_gain(sifted.rows, prepared, setup, first=first, tell=tell)
        written = keep_where_it_helps(sifted, gain, out=out, keep=keep, overwrite=overwrite)
    return {
        "data": str(data),
        "unlabelled": str(unlabelled),
        **what_came_out(sifted, setup),
        "num_asked": num_asked,
        "threshold": asdict(threshold) if threshold else None,
        "error_fraction": 1 - sum(first.correct) / len(first.correct),
        "gain": gain,
        **written,
        "seconds": seconds,
    }


def _told_rows(setup: Setup) -> str:
    num_added = count_added(setup.parts.train)
    told = f"Tuning on {len(setup.parts.train) - num_added:,} real rows"
    return f"{told} and {num_added:,} of `data.added`." if num_added else f"{told}."


def _refuse_other_answers(setup: Setup) -> None:
    """Stop where there is not one label of a closed list to each row.

    Raises:
        SettingError: If there is not.
    """
    if not setup.task.columns.labels:
        raise SettingError(
            f"`--unlabelled`: an answer of the task `{setup.recipe.task}` is no label of a closed list, so no "
            "probability says whether to trust it. Leave it out: the model then writes rows."
        )
    if setup.state.multi_label:
        raise SettingError(
            "`--unlabelled`: a text can have several labels here, and rows could not be balanced by label. "
            "Use data with one label to each text."
        )


def _read(file: Path, setup: Setup, *, tell: Tell) -> Sifted:
    """Read the rows and check that each can be asked about, before anything is tuned.

    Raises:
        DataError: If the file or a row does not fit.
    """
    if not file.is_file():
        raise DataError(f"`--unlabelled {file}`: there is no such file.")
    wanted = setup.task.columns.asked
    named = setup.recipe.data.columns
    columns = {name: column for name, column in named.items() if name in wanted.all_names}
    notes = Notes(file.name)
    sifted = Sifted([])
    for row in read_rows(file, columns=columns, wanted=wanted, notes=notes):
        values = {name: value for name, value in row.values.items() if value is not None}
        sifted.rows.append(NewRow(values, setup.task.read(row, needs_target=False)))
    for note in notes.lines():
        tell(note)
    # A text that is too long must be found before anything is tuned.
    tokenizer = Tokenizer.load(setup.base)
    encoder = Encoder(setup.task, setup.state, tokenizer, setup.recipe.answer, setup.limit)
    encode = partial(encoder.encode, with_target=False)
    for _ in encoded_in_chunks([row.example for row in sifted.rows], encode):
        pass
    return sifted


def choose_threshold(
    predictions: Sequence[Prediction], correct: Sequence[float]
) -> Threshold | None:
    """Choose how sure the model must be, so that its labels are wrong at most half as often as on all validation rows.

    Args:
        predictions: On the validation rows.
        correct: Whether each is right.

    Returns:
        The lowest such threshold, which takes in most rows; None where there is none.
    """
    sure_N = np.exp([each.log_likelihood for each in predictions])
    order_N = np.argsort(sure_N, kind="stable")
    sure_N, wrong_N = sure_N[order_N], 1 - np.asarray(correct, dtype=float)[order_N]
    # Of each row and all that the model is as sure of or surer.
    num_rows_N = np.arange(len(sure_N), 0, -1)
    num_wrong_N = wrong_N[::-1].cumsum()[::-1]
    error_N = num_wrong_N / num_rows_N
    # A threshold parts no rows of which it is equally sure.
    is_first_N = np.diff(sure_N, prepend=-1.0) > 0
    is_enough_N = is_first_N & (num_rows_N >= FEWEST_SURE_ROWS)
    (fitting,) = np.nonzero(is_enough_N & (error_N <= ERROR_SHARE * wrong_N.mean()))
    if not len(fitting):
        return None
    lowest = fitting[0]
    return Threshold(float(sure_N[lowest]), int(num_rows_N[lowest]), float(error_N[lowest]))


def _label(sifted: Sifted, predictor: Predictor, threshold: Threshold | None, setup: Setup) -> None:
    """Give the rows their labels, and keep those that are sure, with the shares of labels of the training rows."""
    predictions = predictor.predict([row.example for row in sifted.rows]) if sifted.rows else []
    (column,) = setup.task.columns.labels
    sifted.rows = [
        _with_label(row, column, each, setup)
        for row, each in zip(sifted.rows, predictions, strict=True)
    ]
    sure = [math.exp(each.log_likelihood) for each in predictions]
    least = threshold.probability if threshold else math.inf
    unsure = {place for place, each in enumerate(sure) if each < least}
    drop(sifted, "unsure", unsure)
    sure = [each for each in sure if each >= least]
    labels = [str(row.example.target) for row in sifted.rows]
    drop(
        sifted,
        "over_share",
        over_share(labels, sure, count_labels(without_added(setup.parts.train))),
    )


def _with_label(row: NewRow, column: str, prediction: Prediction, setup: Setup) -> NewRow:
    values = {**row.values, column: str(prediction.answer)}
    source, _, number = row.example.place.rpartition(", row ")
    return NewRow(values, setup.task.read(Row(values, source, int(number))))


def over_share(labels: Sequence[str], sure: Sequence[float], shares: Mapping[str, int]) -> set[int]:
    """Give the places of rows that would give their label more than its share, the least sure ones.

    A model is surest of the label that it knows best; without this, what it adds would tilt what it learns next.

    Args:
        labels: Of each row.
        sure: Probability of each.
        shares: Training rows of each label.
    """
    total = sum(shares.values())
    most = {label: math.ceil(len(labels) * shares.get(label, 0) / total) for label in set(labels)}
    taken: Counter[str] = Counter()
    found: set[int] = set()
    for place in sorted(range(len(labels)), key=lambda each: (-sure[each], each)):
        taken[labels[place]] += 1
        if taken[labels[place]] > most[labels[place]]:
            found.add(place)
    return found
