"""From files to rows: one file or a folder with splits, streamed, checked, and told what was changed."""

import hashlib
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from lushan.data.columns import (
    Cleaner,
    Columns,
    Notes,
    check_mapping,
    find_columns,
    form_of,
    listed,
)
from lushan.data.formats import EMPTY_ROWS, EXTENSIONS, Record, format_of, read_records
from lushan.data.near import RULES
from lushan.errors import DataError
from lushan.records import SPLIT_NAMES, Row, SplitName

__all__ = [
    "Columns",
    "Dataset",
    "digests_of",
    "find_files",
    "fingerprint_of",
    "read_dataset",
    "read_rows",
]

Item = TypeVar("Item")

ALIASES: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
NUM_ROWS_FOR_NAMES = 100
MOST_NAMES = 1000
NUM_PLACES = 5


@dataclass(frozen=True, slots=True)
class Dataset(Generic[Item]):
    """What was read."""

    splits: dict[SplitName, Sequence[Item]]
    """Only the splits that there are; a single file is `train`."""
    num_empty: dict[SplitName, int]
    """Empty rows that were left out."""
    notes: list[str]
    """What was guessed, changed or left out, one line each."""
    fingerprint: str
    """Hash of the content of the files and of which split each is."""
    digests: dict[SplitName, str] = field(default_factory=dict[SplitName, str])
    """SHA-256 of the content of each file."""


def read_dataset(
    path: Path,
    *,
    columns: Mapping[str, str],
    wanted: Columns,
    read: Callable[[Row], Item],
    collect: Callable[[Iterable[Item]], Sequence[Item]] = list,
) -> Dataset[Item]:
    """Read all splits; each row goes through `read` at once, so that only its result is kept.

    Args:
        path: A file, or a folder with train, validation and test files.
        columns: The task's column name to the file's, where the user said so.
        wanted: What the task asks for.
        read: Makes an item of a row, such as `task.read`.
        collect: Takes the items of a split as they come, and keeps them.

    Raises:
        DataError: If something does not fit; says where and what to do.
    """
    check_mapping(columns, wanted)
    files, notes = find_files(path)
    splits: dict[SplitName, Sequence[Item]] = {}
    num_empty: dict[SplitName, int] = {}
    for name, file in files.items():
        found = Notes(file.name)
        rows = read_rows(file, columns=columns, wanted=wanted, notes=found)
        splits[name] = collect(map(read, rows))
        num_empty[name] = found.times(EMPTY_ROWS)
        notes += found.lines()
    digests = digests_of(files)
    return Dataset(
        splits,
        num_empty=num_empty,
        notes=notes,
        fingerprint=fingerprint_of(digests),
        digests=digests,
    )


def digests_of(files: Mapping[SplitName, Path]) -> dict[SplitName, str]:
    """Give the SHA-256 of the content of each file."""
    digests: dict[SplitName, str] = {}
    for name, file in files.items():
        with file.open("rb") as content:
            digests[name] = hashlib.file_digest(content, "sha256").hexdigest()
    return digests


def fingerprint_of(digests: Mapping[SplitName, str]) -> str:
    """Give the hash of what files hold and of which split each is; that of one file is the hash of it as `train`."""
    found = hashlib.sha256(RULES)
    for name, digest in digests.items():
        found.update(name.encode() + bytes.fromhex(digest))
    return found.hexdigest()[:16]


def read_rows(
    path: Path,
    *,
    columns: Mapping[str, str],
    wanted: Columns,
    notes: Notes,
    known: Collection[str] = (),
) -> Iterator[Row]:
    """Stream the rows of one file; memory does not grow with it.

    Rows without any text are left out and counted in `notes`, which also name, after the last row, the columns that are not
    read. Rows in which another required value is missing are collected, and refused together after the last row.

    Args:
        path: The file.
        columns: The task's column name to the file's, where the user said so.
        wanted: What the task asks for.
        notes: Is told what was guessed, changed or left out.
        known: Columns that somebody else reads, of which nothing is told.

    Raises:
        DataError: If the file or a row does not fit; says where.
    """
    records = read_records(path, notes)
    head = list(itertools.islice(records, NUM_ROWS_FOR_NAMES))
    found = list(dict.fromkeys(name for record in head for name in record.values))
    if not head:
        raise DataError(f"{path.name} has no rows.")
    wanted = form_of(found, mapping=columns, wanted=wanted)
    names = _Names(found, mapping=columns, wanted=wanted, notes=notes)
    cleaner = Cleaner(wanted, notes)
    gaps = _Gaps()
    num_rows = 0
    for record in itertools.chain(head, records):
        row = _row(record, names=names.of(record), cleaner=cleaner, source=path.name)
        if row.values.get(wanted.required[0]) is None:
            notes.count(EMPTY_ROWS, record.number)
        elif (gap := _first_gap(row, wanted)) is not None:
            gaps.add(gap, record.number)
        else:
            num_rows += 1
            yield row
    gaps.refuse(path.name)
    names.tell_unread(known)
    if not num_rows:
        raise DataError(f"{path.name} has no row with a `{wanted.required[0]}`.")


def _row(record: Record, *, names: Mapping[str, str], cleaner: Cleaner, source: str) -> Row:
    values = {
        name: cleaner.clean(name, record.values.get(column), record.number)
        for name, column in names.items()
    }
    return Row(values, source=source, number=record.number)


class _Names:
    """Which column of a file is which of the task; of JSON a later row may be the first that has an optional one."""

    def __init__(
        self, found: Sequence[str], *, mapping: Mapping[str, str], wanted: Columns, notes: Notes
    ) -> None:
        self._found = dict.fromkeys(found)
        self._notes = notes
        self._find = partial(find_columns, mapping=mapping, wanted=wanted, notes=notes)
        self._wanted = wanted
        self._names = self._find(found)
        self._missing = self._names_of_missing()

    def of(self, record: Record) -> Mapping[str, str]:
        """Give the file's name of each of the task's columns that the rows up to this one have."""
        new = [name for name in record.values if name not in self._found]
        if late := [name for name in new if name.strip().casefold() in self._missing]:
            self._found |= dict.fromkeys(late)
            self._names = {**self._find(list(self._found)), **self._names}
            self._missing = self._names_of_missing()
        if new and len(self._found) < MOST_NAMES:
            self._found |= dict.fromkeys(new)
        return self._names

    def tell_unread(self, known: Collection[str]) -> None:
        """Note the columns up to here that are not read, but for those that somebody else reads."""
        read = {*self._names.values(), *self._wanted.lengths, *known}
        unread = [name for name in self._found if name.strip() and name not in read]
        if unread:
            several = len(unread) > 1
            what = f"columns {listed(unread)} are" if several else f"column {listed(unread)} is"
            self._notes.say(f"{what} not read.")

    def _names_of_missing(self) -> set[str]:
        missing = [name for name in self._wanted.names if name not in self._names]
        guesses = (self._wanted.guesses.get(name, ()) for name in missing)
        return {*missing, *self._wanted.lengths, *itertools.chain.from_iterable(guesses)}


def _first_gap(row: Row, wanted: Columns) -> str | None:
    return next((name for name in wanted.required if row.values.get(name) is None), None)


class _Gaps:
    """Rows that lack a required value."""

    def __init__(self) -> None:
        self._name = ""
        self._places: list[int] = []
        self._times = 0

    def add(self, name: str, number: int) -> None:
        self._name = self._name or name
        self._times += 1
        if len(self._places) < NUM_PLACES:
            self._places.append(number)

    def refuse(self, source: str) -> None:
        if not self._times:
            return
        places = ", ".join(map(str, self._places)) + (" ..." if self._times > NUM_PLACES else "")
        raise DataError(
            f"{source}: {self._times:,} row(s) have no `{self._name}` (empty, null or NaN): "
            f"row {places}. Fill it in, or take these rows out."
        )


def find_files(path: Path) -> tuple[dict[SplitName, Path], list[str]]:
    """Find the file of each split, in the order train, validation, test; and tell what was guessed, or is not read.

    Raises:
        DataError: If the path does not exist, holds no such file, or two files for one split.
    """
    if path.is_file():
        return {"train": path}, []
    if not path.is_dir():
        what = (
            "is a device or a pipe, which cannot be read twice"
            if path.exists()
            else "does not exist"
        )
        raise DataError(
            f"`{path}` {what}. Give a file ({', '.join(EXTENSIONS)}, each also with `.gz`) "
            "or a folder with train, validation and test files."
        )
    files: dict[SplitName, Path] = {}
    notes: list[str] = []
    unread: list[Path] = []
    for file in _data_files(path):
        split = ALIASES.get(_stem(file))
        if split is None:
            unread.append(file)
            continue
        if split in files:
            raise DataError(
                f"`{path}` has two files for {split}: `{files[split].name}` and `{file.name}`. "
                "Take one away."
            )
        files[split] = file
        if _stem(file) != split:
            notes.append(f"{file.name} is read as {split}.")
    if not files:
        raise DataError(
            f"`{path}` has no train, validation or test file ({', '.join(EXTENSIONS)}, each also with "
            f"`.gz`). Found: {_content(path)}."
        )
    if unread:
        notes.append(_unread_note(unread))
    return {name: files[name] for name in SPLIT_NAMES if name in files}, notes


def _data_files(folder: Path) -> list[Path]:
    files = (each for each in sorted(folder.iterdir()) if not each.name.startswith("."))
    return [each for each in files if format_of(each) and each.is_file()]


def _unread_note(files: Sequence[Path]) -> str:
    """Name some of the files that hold data, but are of no split."""
    named = ", ".join(f"`{file.name}`" for file in files[:NUM_PLACES])
    more = f" and {len(files) - NUM_PLACES:,} more" if len(files) > NUM_PLACES else ""
    return (
        f"Not read: {named}{more}. A split has one file, called `train`, "
        f"`validation` or `test`, such as `test{format_of(files[0])}`."
    )


def _stem(file: Path) -> str:
    return file.name.casefold().partition(".")[0]


def _content(folder: Path) -> str:
    names = sorted(each.name for each in folder.iterdir())
    return (", ".join(names[:10]) + (" ..." if len(names) > 10 else "")) or "nothing"
