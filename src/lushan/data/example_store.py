"""Examples by the million: their texts in a temporary file, and some 20 bytes of memory for each.

What many examples have in common (their label) is kept once, as a *kind*; hashes of the texts stand in the file, too, for
whoever looks for equal ones. The functions take any sequence of examples, so that nobody needs to know how it is stored.
"""

import hashlib
import os
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self, overload

import numpy as np
from numpy.typing import NDArray

from lushan.atomic import naming_full_disk
from lushan.data.near import Positions, bare_of, comparable, plain
from lushan.records import Example

_MOST_SHARED_KINDS = 2**16
"""Where there are more, targets are as good as all different, and looking for equal ones only costs."""
_ROWS_PER_READ = 4096
_MOST_READ_BYTES = 2**24
_BUFFER_BYTES = 2**20

_HASH = np.dtype(np.uint64)

Hashes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class ContentHashes:
    """Hashes by which examples are compared: equal ones have equal hashes."""

    whole: Hashes
    """Of everything but the place."""
    plain: Hashes
    """Of the plain form: equal but for case and space."""
    comparable: Hashes
    """Of the comparable form: equal but for punctuation, too."""
    group: Hashes
    """Of the comparable form of what keeps rows together."""


@dataclass(frozen=True, slots=True)
class _Table:
    """All examples that were collected together."""

    file: "_NamelessFile"
    """The id, place, group and text of each example; then the hashes, each kind of hash of all examples together."""
    ends: Positions
    """Where each example ends in the file; the first begins at 0."""
    codes: NDArray[np.int32]
    """The kind of each example."""
    kinds: list[Example]
    """Examples without id, place, group and text."""

    def hashes(self, number: int) -> Hashes:
        """Read one of the hashes of every example."""
        num_bytes = len(self.ends) * _HASH.itemsize
        start = int(self.ends[-1]) + number * num_bytes if num_bytes else 0
        return np.frombuffer(self.file.read(start, num_bytes), dtype=_HASH)


class ExampleStore(Sequence[Example]):
    """A list of examples that is read from a file; make it with `ExampleStore.collect`."""

    def __init__(self, table: _Table, rows: Positions) -> None:
        self._table = table
        self._rows = rows

    @classmethod
    def collect(cls, examples: Iterable[Example]) -> Self:
        """Store examples as they come."""
        file, kinds = _NamelessFile(), _Kinds()
        codes, ends = array("i"), array("q")
        hashes = [array("Q") for _ in fields(ContentHashes)]
        num_bytes = 0
        remedy = "name another folder by the environment variable `TMPDIR`"
        full = naming_full_disk(Path(tempfile.gettempdir()), what="The rows", remedy=remedy)
        with full, file.writer() as writer:
            for example in examples:
                kind = _kind(example)
                num_bytes += writer.write(_to_bytes(example))
                ends.append(num_bytes)
                codes.append(kinds.code_of(kind))
                for column, found in zip(hashes, _hashes(example, kind), strict=True):
                    column.append(found)
            for column in hashes:
                writer.write(column.tobytes())
        table = _Table(
            file,
            ends=np.frombuffer(ends, dtype=np.int64),
            codes=np.frombuffer(codes, dtype=np.int32),
            kinds=kinds.kinds,
        )
        return cls(table, np.arange(len(ends)))

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Example | Self:
        if isinstance(index, slice):
            return type(self)(self._table, self._rows[index])
        return next(self._read(self._rows[[index]]))

    def __iter__(self) -> Iterator[Example]:
        for start in range(0, len(self), _ROWS_PER_READ):
            yield from self._read(self._rows[start : start + _ROWS_PER_READ])

    def take(self, places: Positions) -> Self:
        """Give the examples at some places, in that order."""
        return type(self)(self._table, self._rows[places])

    def kinds(self) -> tuple[NDArray[np.int32], list[Example]]:
        """Give the kind of each example, and one example of each kind; see `kinds_of`."""
        return self._table.codes[self._rows], self._table.kinds

    def hashes(self) -> ContentHashes:
        """Give the hashes of each example."""
        numbers = range(len(fields(ContentHashes)))
        return ContentHashes(*(self._table.hashes(number)[self._rows] for number in numbers))

    def _read(self, rows: Positions) -> Iterator[Example]:
        table = self._table
        ends = table.ends[rows]
        starts = np.where(rows > 0, table.ends[rows - 1], 0)
        first = int(starts.min())
        span_bytes = int(ends.max()) - first
        span = table.file.read(first, span_bytes) if span_bytes <= _MOST_READ_BYTES else None
        for start, end, code in zip(
            starts.tolist(), ends.tolist(), table.codes[rows].tolist(), strict=True
        ):
            content = (
                table.file.read(start, end - start)
                if span is None
                else span[start - first : end - first]
            )
            yield _from_bytes(content, table.kinds[code])


class _NamelessFile:
    """A temporary file that is gone when nobody holds it any more, whatever happens to the process."""

    def __init__(self) -> None:
        self._descriptor, name = tempfile.mkstemp(prefix="lushan-")
        Path(name).unlink()
        weakref.finalize(self, os.close, self._descriptor)

    def writer(self) -> BinaryIO:
        return os.fdopen(os.dup(self._descriptor), "wb", buffering=_BUFFER_BYTES)

    def read(self, start: int, num_bytes: int) -> bytes:
        """Read without moving a position, so that threads do not meet."""
        parts: list[bytes] = []
        while num_bytes:  # the system gives at most 2 GiB at once
            parts.append(os.pread(self._descriptor, num_bytes, start))
            start, num_bytes = start + len(parts[-1]), num_bytes - len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)


class _Kinds:
    """What examples have beside id, place, group and text."""

    def __init__(self) -> None:
        self.kinds: list[Example] = []
        self._codes: dict[str, int] = {}

    def code_of(self, kind: "_Kind") -> int:
        if len(self._codes) >= _MOST_SHARED_KINDS:
            self.kinds.append(kind.example)
            return len(self.kinds) - 1
        code = self._codes.setdefault(kind.written, len(self.kinds))
        if code == len(self.kinds):
            self.kinds.append(kind.example)
        return code


class _Kind(NamedTuple):
    """An example without id, place, group and text."""

    example: Example
    written: str
    """All of it; equality does not look at every field of a target."""


def _kind(example: Example) -> _Kind:
    kind = replace(example, id="", text="", place="", group="")
    return _Kind(kind, repr(kind))


def kinds_of(examples: Sequence[Example]) -> tuple[NDArray[np.int32], list[Example]]:
    """Give the kind of each example, and one example of each kind; not every kind needs to occur.

    Examples of one kind are equal but for id, place, group and text; those of two kinds may be.
    """
    if isinstance(examples, ExampleStore):
        return examples.kinds()
    kinds = _Kinds()
    codes = np.array([kinds.code_of(_kind(each)) for each in examples], dtype=np.int32)
    return codes, kinds.kinds


def count_kinds(examples: Sequence[Example]) -> list[tuple[Example, int]]:
    """Give one example of each kind that there is and how many are of it, in the order of the first of each."""
    codes, kinds = kinds_of(examples)
    present, firsts, times = np.unique(codes, return_index=True, return_counts=True)
    order = np.argsort(firsts)
    return [(kinds[present[place]], int(times[place])) for place in order]


def hashes_of(examples: Sequence[Example]) -> ContentHashes:
    """Give the hashes of any examples."""
    if isinstance(examples, ExampleStore):
        return examples.hashes()
    hashes = [_hashes(each, _kind(each)) for each in examples]
    return ContentHashes(
        *np.array(hashes, dtype=np.uint64).reshape(-1, len(fields(ContentHashes))).T
    )


def take(examples: Sequence[Example], places: Positions) -> Sequence[Example]:
    """Give the examples at some places, in that order; a list of a list."""
    if isinstance(examples, ExampleStore):
        return examples.take(places)
    return [examples[place] for place in places.tolist()]


def hash_text(text: str) -> int:
    """Give 64 bits of a text."""
    content = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def _hashes(example: Example, kind: _Kind) -> tuple[int, int, int, int]:
    plain_text = plain(example.text)
    comparable_text = bare_of(plain_text) or plain_text
    group = comparable(example.group) if example.group else comparable_text
    return (
        hash_text("\0".join((example.id, kind.written, example.text))),
        hash_text(plain_text),
        hash_text(comparable_text),
        hash_text(group),
    )


def _to_bytes(example: Example) -> bytes:
    parts = (example.id, example.place, example.group.replace("\0", " "), example.text)
    return "\0".join(parts).encode("utf-8", "surrogatepass")


def _from_bytes(content: bytes, kind: Example) -> Example:
    id_, place, group, text = content.decode("utf-8", "surrogatepass").split("\0", 3)
    return replace(kind, id=id_, text=text, place=place, group=group)
