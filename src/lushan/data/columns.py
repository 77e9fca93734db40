"""Which column of a file is which column of a task: named by the user, equal, or guessed and told."""

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lushan.errors import DataError

WHOLE_NUMBER = re.compile(r"[+-]?\d+\.0+")
_MARK = re.compile(r"[+-]?[\d.]+(e[+-]?\d+)?|true|false", re.IGNORECASE)
"""What a list that has a place for every label holds there."""
MISSING_WORDS = frozenset({"nan", "null"})
LABEL_SEPARATORS = ("|", ";\uff1b")
"""Marks between the labels of a text: it is cut at the first of these that it holds, or at several that stand together."""
_WITHOUT_LENGTHS = (
    "only a model that is tuned with `--set task_settings.length_control=true` keeps to a length."
)
_MOST_INNER_NAMES = 20
"""So many names inside a column that are not read are told one by one."""


@dataclass(frozen=True, slots=True)
class Columns:
    """What a task wants to find in every row. All names are the task's own."""

    required: tuple[str, ...]
    """Must have a value in every row; the first is what the model reads: a row without it is empty."""
    optional: tuple[str, ...] = ()
    """Taken where they are there."""
    guesses: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Other names under which a column is often found, such as `text: (review, sentence)`."""
    asked_with: tuple[str, ...] = ()
    """Columns, beside the first, that a row also needs when it is only asked about."""
    labels: tuple[str, ...] = ()
    """Those that hold class names: stripped, and `1.0` is read as `1`."""
    lists: tuple[str, ...] = ()
    """Those labels of which a row may have several: a list, also as a text of JSON, or text that `cut_labels` cuts."""
    lengths: tuple[str, ...] = ()
    """Optional ones that say how long an answer is wanted, of which only a model that learned to keep to it makes anything
    (`task_settings.length_control`)."""
    inner: Mapping[str, Callable[[object], Iterable[str]]] = field(
        default_factory=dict[str, Callable[[object], Iterable[str]]]
    )
    """Those that hold messages, each with what gives the names in a value that are not read."""
    others: tuple["Columns", ...] = ()
    """Other forms of the same rows; a file has one of them."""

    def without_lengths(self) -> "Columns":
        """What is left where the model does not learn to keep to a length; files may mean something else by the name."""
        optional = tuple(name for name in self.optional if name not in self.lengths)
        return replace(self, optional=optional)

    @property
    def names(self) -> tuple[str, ...]:
        """All columns, required first."""
        return self.required + self.optional

    @property
    def all_names(self) -> tuple[str, ...]:
        """The columns of every form, each once."""
        return tuple(dict.fromkeys(name for form in self.forms for name in form.names))

    @property
    def forms(self) -> tuple["Columns", ...]:
        """This form and the others."""
        return (self, *self.others)

    @property
    def asked(self) -> "Columns":
        """What is left where a row is only asked about: what the model reads, in any form."""
        others = tuple(each.asked for each in self.others)
        read, guesses = (*self.required[:1], *self.asked_with), self.guesses
        return Columns(
            read,
            self.optional,
            asked_with=self.asked_with,
            lengths=self.lengths,
            inner=self.inner,
            guesses=guesses,
            others=others,
        )


class Notes:
    """What was noticed while reading one file: each kind once, with how often and where first."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._counts: Counter[str] = Counter()
        self._first: dict[str, int] = {}

    def count(self, kind: str, number: int) -> None:
        """Note one row; `number` is where it stands in the file."""
        self._counts[kind] += 1
        self._first.setdefault(kind, number)

    def say(self, message: str) -> None:
        """Note something about the whole file."""
        self._counts[message] = 0

    def times(self, kind: str) -> int:
        """Give how often a kind was noted."""
        return self._counts[kind]

    def lines(self) -> list[str]:
        """Give one line a kind, in the order in which they were first seen."""
        return [f"{self.source}: {self._line(kind, times)}" for kind, times in self._counts.items()]

    def _line(self, kind: str, times: int) -> str:
        if not times:
            return kind
        return f"{kind}: {times:,} (first in row {self._first[kind]})."


def find_columns(
    found: Sequence[str], *, mapping: Mapping[str, str], wanted: Columns, notes: Notes
) -> dict[str, str]:
    """Give the file's name of each of the task's columns that the file has.

    Args:
        found: Column names of the file.
        mapping: What the user said: the task's name to the file's.
        wanted: What the task asks for.
        notes: Is told each guess.

    Raises:
        DataError: If a required column is not there, two could be meant, or one is meant twice.
    """
    names: dict[str, str] = {}
    for name in wanted.names:
        if name in mapping:
            names[name] = _named(name, mapping[name], found=found, source=notes.source)
            continue
        if name in found:
            names[name] = name
            continue
        guess = _guess(name, found, wanted=wanted, taken={*mapping.values()}, source=notes.source)
        if guess is not None:
            names[name] = guess
            notes.say(f"column `{guess}` is read as `{name}`.")
    for name in wanted.lengths:
        if name in found and name not in {*wanted.names, *names.values()}:
            notes.say(f"column `{name}` is not read: {_WITHOUT_LENGTHS}")
    missing = [name for name in wanted.required if name not in names]
    if missing:
        instead = "".join(
            f" (nor `{form.required[0]}`)"
            for form in wanted.others
            if missing[0] == wanted.required[0]
        )
        raise DataError(
            f"{notes.source}: no column `{missing[0]}`{instead}. Found: {listed(found)}. Say which it is "
            f"with `--set data.columns.{missing[0]}=NAME`, or give the file a first line with names."
        )
    columns = list(names.values())
    if twice := [name for name, column in names.items() if columns.count(column) > 1]:
        raise DataError(
            f"{notes.source}: {listed(twice)} would be read from the same column, `{names[twice[0]]}`. Found: "
            f"{listed(found)}. Say which is which, such as with `--set data.columns.{twice[0]}=NAME`."
        )
    return names


def form_of(found: Sequence[str], *, mapping: Mapping[str, str], wanted: Columns) -> Columns:
    """Give the form of a file's rows: the first with a named column of its own, whose read columns are there, or can be guessed."""
    if not wanted.others:
        return wanted
    there = {*found, *mapping}
    folded = {name.strip().casefold() for name in found}
    num_forms = Counter(name for form in wanted.forms for name in form.names)
    for is_there in (
        lambda form, _: any(name in mapping and num_forms[name] == 1 for name in form.names),
        lambda form, _: all(name in there for name in form.asked.required),
        lambda _, name: name in there,
        lambda form, name: bool(folded & {name, *form.guesses.get(name, ())}),
    ):
        for form in wanted.forms:
            if is_there(form, form.required[0]):
                return form
    return wanted


def check_mapping(mapping: Mapping[str, str], wanted: Columns) -> None:
    """Check that the user named only columns that the task reads.

    Raises:
        DataError: If not; lists the task's columns.
    """
    for name in mapping:
        if name in wanted.lengths and name not in wanted.all_names:
            raise DataError(f"`data.columns.{name}` has no effect: {_WITHOUT_LENGTHS}")
        if name not in wanted.all_names:
            raise DataError(
                f"`data.columns.{name}`: the task has no column `{name}`. "
                f"Its columns: {listed(wanted.all_names)}."
            )


def _named(name: str, chosen: str, *, found: Sequence[str], source: str) -> str:
    if chosen in found:
        return chosen
    raise DataError(
        f"{source}: `data.columns.{name}` says `{chosen}`, but there is no such column. "
        f"Found: {listed(found)}. Say which it is with `--set data.columns.{name}=NAME`."
    )


def _guess(
    name: str, found: Sequence[str], *, wanted: Columns, taken: set[str], source: str
) -> str | None:
    free = [each for each in found if each not in taken and each not in wanted.names]
    for choices in ((name,), wanted.guesses.get(name, ())):
        likely = [each for each in free if each.strip().casefold() in choices]
        if len(likely) > 1:
            raise DataError(
                f"{source}: both {listed(likely)} could be the column `{name}`. Say which it is "
                f"with `--set data.columns.{name}=NAME`."
            )
        if likely:
            return likely[0]
    return None


def listed(names: Iterable[str]) -> str:
    """Name columns in a message: some of them, where there are many."""
    quoted = [f"`{name[:40]}`" for name in names]
    return ", ".join(quoted[:20]) + (" ..." if len(quoted) > 20 else "") if quoted else "nothing"


def unpacked(value: object) -> object:
    """Give a list or an object as it is, and what a text says as JSON, since tables hold them so; None if it says nothing."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def looks_like_list(value: object) -> bool:
    """Say whether a text begins and ends as a list of texts: as JSON writes it, or Python, `['a', 'b']`, and so tables that pandas saves."""
    text = value.strip() if isinstance(value, str) else ""
    return text.startswith(("['", '["')) and text.endswith("]")


def cut_labels(text: str) -> tuple[list[str], list[str]]:
    """Give the labels of a text that may hold several, and the marks that cut it: `|`, or else `;` and its full-width form."""
    for separators in LABEL_SEPARATORS:
        marks = [mark for mark in separators if mark in text]
        if marks:
            parts = re.split(f"[{separators}]", text)
            return [part for part in parts if part.strip()], marks
    return [text], []


class Cleaner:
    """Turns the values of one file's columns into text, lists, or None; tells what it changed."""

    def __init__(self, wanted: Columns, notes: Notes) -> None:
        self._labels = frozenset(wanted.labels + wanted.lists)
        self._lists = frozenset(wanted.lists)
        self._inner = wanted.inner
        self._inner_names: set[str] = set()
        self._notes = notes

    def clean(self, name: str, value: object, number: int) -> object:
        """Give the value of the task's column `name`; None where there is none.

        Raises:
            DataError: If it is text that no file can hold (a lone surrogate), or a wrong label.
        """
        value = self._plain(name, value, number)
        if value is not None and name in self._inner:
            self._tell_inner(name, value, number)
        if name in self._labels:
            return self._clean_label(name, value, number)
        if isinstance(value, str):
            self._check_text(name, value, number)
            return value if value and not value.isspace() else None
        return value

    def _plain(self, name: str, value: object, number: int) -> object:
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, float) and math.isnan(value):
            return None
        if isinstance(value, bytes):
            raise DataError(
                f"{self._place(number)}: `{name}` holds bytes, not text. Store it as text."
            )
        if isinstance(value, (list, tuple, Mapping)):
            return value
        self._notes.count(f"`{name}` was no text but {type(value).__name__}; read as text", number)
        return str(value).lower() if isinstance(value, bool) else str(value)

    def _tell_inner(self, name: str, value: object, number: int) -> None:
        for each in self._inner[name](value):
            if len(self._inner_names) < _MOST_INNER_NAMES:
                self._inner_names.add(each)
            told = each[:40] if each in self._inner_names else "..."
            self._notes.count(f"`{told}` of a message in `{name}` is not read", number)

    def _check_text(self, name: str, text: str, number: int) -> None:
        if text.isascii():
            return
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{self._place(number)}: `{name}` has half a character (a lone surrogate) at "
                f"position {error.start}. Repair the text."
            ) from None
        if "\N{REPLACEMENT CHARACTER}" in text:
            self._notes.count(f"`{name}` has U+FFFD, the mark of a broken character", number)

    def _clean_label(self, name: str, value: object, number: int) -> str | tuple[str, ...] | None:
        if isinstance(value, Mapping):
            raise DataError(
                f"{self._place(number)}: `{name}` must be a label or a list of labels, "
                f"got an object. Give its name as text."
            )
        if isinstance(value, str) and name in self._lists:
            value = self._cut(name, value, number)
        if isinstance(value, (list, tuple)):
            labels = [self._label(name, self._plain(name, each, number), number) for each in value]
            if None in labels:
                raise DataError(
                    f"{self._place(number)}: `{name}` has an empty label in its list. Take it out."
                )
            return self._each_once(name, [each for each in labels if each is not None], number)
        return self._label(name, value, number)

    def _each_once(self, name: str, labels: Sequence[str], number: int) -> tuple[str, ...]:
        """A name that is given twice means no more than once; a number that is, was no name."""
        times = Counter(labels)
        if len(times) < len(labels):
            twice = next(label for label in labels if times[label] > 1)
            if _MARK.fullmatch(twice):
                raise DataError(
                    f"{self._place(number)}: `{name}` has `{twice}` {times[twice]} times in its list, as a list with a "
                    "number for every label has. Give the names of the labels that the text has instead, each once, such "
                    'as ["joy", "anger"].'
                )
            self._notes.count(f"`{name}` had a label twice in its list; read once", number)
        return tuple(times)

    def _cut(self, name: str, text: str, number: int) -> Sequence[str]:
        if isinstance(found := unpacked(text), list):
            return found
        inside = text.strip()[1:-1]
        if text.strip() == f"[{inside}]" and not {"[", "]"} & set(inside):
            raise DataError(
                f"{self._place(number)}: `{name}` holds a list that is not JSON: {text[:80]!r}. Write it "
                'with double quotes, such as ["a", "b"].'
            )
        if not text.strip():
            self._notes.count(f"`{name}` is empty; read as no label", number)
            return []
        labels, marks = cut_labels(text)
        for mark in marks:
            self._notes.count(f"`{name}` was cut into several labels at `{mark}`", number)
        return labels

    def _label(self, name: str, value: object, number: int) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str):
            raise DataError(
                f"{self._place(number)}: `{name}` has a list inside its list. Write its labels side by side."
            )
        label = value.strip()
        if not label or label.casefold() in MISSING_WORDS:
            return None
        self._check_text(name, label, number)
        if label != value:
            self._notes.count(f"`{name}` had spaces around it; taken off", number)
        if WHOLE_NUMBER.fullmatch(label):
            self._notes.count(f"`{name}` was a whole number with a point; 1.0 is read as 1", number)
            label = label.partition(".")[0]
        return sys.intern(label)

    def _place(self, number: int) -> str:
        return f"{self._notes.source}, row {number}"
