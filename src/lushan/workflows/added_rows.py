"""Rows that a model wrote or labelled: trained on where the user says so, never asked about, and counted by themselves."""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lushan.data.columns import Columns, Notes
from lushan.data.example_store import ExampleStore, take
from lushan.data.formats import EXTENSIONS, format_of, read_records
from lushan.data.readers import read_rows
from lushan.data.splits import Parts, count_labels
from lushan.errors import DataError
from lushan.records import Example
from lushan.tasks import Task

MARK = "augmented"
"""Column that tells such rows from real ones, wherever they go."""
_PLACE = "added: "
"""How the place of such an example begins."""


@dataclass(frozen=True, slots=True)
class Added:
    """What `data.added` named."""

    examples: Sequence[Example] = ()
    notes: tuple[str, ...] = ()
    digest: str = ""
    """SHA-256 of the file; empty where there is none."""


NONE_ADDED = Added()


def read_added(file: Path, *, task: Task, wanted: Columns, multi_label: bool) -> Added:
    """Read the rows of a file that `lushan augment` wrote.

    Args:
        file: With the task's own column names, and the mark in every row.
        task: What gives the rows their meaning.
        wanted: Its columns.
        multi_label: Whether a text may have several labels.

    Raises:
        DataError: If it is no such file; says where.
    """
    if not file.is_file() or not format_of(file):
        raise DataError(
            f"`data.added={file}`: there is no such file. Name one that `lushan augment` wrote "
            f"({', '.join(EXTENSIONS)})."
        )
    for record in read_records(file, Notes(file.name)):
        if str(record.values.get(MARK)).casefold() != "true":
            raise DataError(
                f"{file.name}, row {record.number}: `{MARK}` is {record.values.get(MARK)!r}, not true. `data.added` "
                "takes rows that `lushan augment` wrote; put rows of your own into the training file."
            )
    notes = Notes(file.name)
    rows = read_rows(file, columns={}, wanted=wanted, notes=notes, known=(MARK,))
    examples = [
        replace(example, place=f"{_PLACE}{example.place}")
        for example in (task.read(row, multi_label=multi_label) for row in rows)
    ]
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    told = f"{len(examples):,} rows of `{file}` that a model wrote or labelled are added to the training rows."
    return Added(examples, (*notes.lines(), told), digest)


def with_added(parts: Parts, added: Sequence[Example]) -> Parts:
    """Put the rows behind the training rows, and into no other part.

    Raises:
        DataError: If they have a label that no real row has.
    """
    if not added:
        return parts
    unknown = sorted(set(count_labels(added)) - set(count_labels(parts.train)))
    if unknown:
        raise DataError(
            f"The rows of `data.added` have labels that no training row has: {', '.join(unknown[:5])}. A model cannot "
            "know them; take these rows out."
        )
    return replace(parts, train=ExampleStore.collect(itertools.chain(parts.train, added)))


def count_added(examples: Sequence[Example]) -> int:
    """Count the rows that came in this way."""
    return sum(map(_is_added, examples))


def without_added(examples: Sequence[Example]) -> Sequence[Example]:
    """Give the rows that did not come in this way: those of the data itself."""
    return take(examples, np.flatnonzero([not _is_added(each) for each in examples]))


def _is_added(example: Example) -> bool:
    return example.place.startswith(_PLACE)
