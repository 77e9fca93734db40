"""Examples by the million: their texts in a temporary file, and some 20 bytes of memory for each.

What many examples have in common (their label) is kept once, as a *kind*; of an example that has an answer of its own, all
stands in the file. Hashes of the texts are there, too, for whoever looks for equal ones. The functions take any sequence
of examples, so that nobody needs to know how it is stored.
"""

import hashlib
import marshal
import os
import tempfile
import weakref
from array import array
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, Self, TypeVar, get_args, overload

import numpy as np
from numpy.typing import NDArray

from lushan.atomic import naming_full_disk
from lushan.data.near import Positions, bare_of, comparable, plain
from lushan.records import Example, answer_from_plain, plain_answer

_MOST_KIND_CHARACTERS = 2**20
"""So much is kept in memory of what examples have in common: where there is more, most answers are no others'."""
_WHOLE = -1
"""Code of an example of which all stands in the file."""
_MARSHAL_VERSION = 2
"""Later ones have texts interned when they are read, which Python 3.12 then keeps for ever."""
_ROWS_PER_READ = 4096
_MOST_READ_BYTES = 2**24
_BUFFER_BYTES = 2**20

_HASH = np.dtype(np.uint64)

Key = TypeVar("Key", bound=Hashable)
Hashes = NDArray[np.uint64]
HashName = Literal["whole", "plain", "comparable", "group"]
"""The fields of `ContentHashes`, in their order."""


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
    """The id, place, group and text of each example, or all of it; then the hashes, each kind of hash of all examples together."""
    ends: Positions
    """Where each example ends in the file; the first begins at 0."""
    codes: NDArray[np.int32]
    """The kind of each example, or `_WHOLE`."""
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
        remedy = "or name another folder by the environment variable `TMPDIR`"
        full = naming_full_disk(Path(tempfile.gettempdir()), what="The rows", remedy=remedy)
        with full, file.writer() as writer:
            for example in examples:
                kind = _kind(example)
                code, content = kinds.write(example, kind)
                num_bytes += writer.write(content)
                ends.append(num_bytes)
                codes.append(code)
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

    def of_kinds(self, value: Callable[[Example], int]) -> Hashes:
        """Give each example a number that its kind decides; see `of_kinds`."""
        codes, kinds = self._table.codes[self._rows], self._table.kinds
        values = np.zeros(len(kinds) + 1, dtype=_HASH)  # `_WHOLE` takes the last, for now
        for code in np.flatnonzero(np.bincount(codes[codes != _WHOLE])).tolist():
            values[code] = value(kinds[code])
        found = values[codes]
        (places,) = np.nonzero(codes == _WHOLE)
        found[places] = _values(self.take(places), value)
        return found

    def hashes(self) -> ContentHashes:
        """Give the hashes of each example."""
        return ContentHashes(*map(self.hash, get_args(HashName)))

    def hash(self, name: HashName) -> Hashes:
        """Give one of the hashes of each example, by its name in `ContentHashes`."""
        return self._table.hashes(get_args(HashName).index(name))[self._rows]

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
            yield _from_bytes(content, None if code == _WHOLE else table.kinds[code])


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
    """What examples have beside id, place, group and text, where there is room for it."""

    def __init__(self) -> None:
        self.kinds: list[Example] = []
        self._codes: dict[str, int] = {}
        self._num_characters = 0

    def write(self, example: Example, kind: "_Kind") -> tuple[int, bytes]:
        """Give the code of an example, and what the file is to hold of it."""
        code = self._codes.get(kind.written)
        if code is None and self._num_characters + len(kind.written) <= _MOST_KIND_CHARACTERS:
            code = self._add(kind)
        if code is not None:
            return code, _to_bytes(example)
        try:
            return _WHOLE, _whole_to_bytes(example)
        except ValueError:  # it holds what is no plain value, such as a date of a parquet file
            return self._add(kind), _to_bytes(example)

    def _add(self, kind: "_Kind") -> int:
        self._num_characters += len(kind.written)
        self.kinds.append(kind.example)
        return self._codes.setdefault(kind.written, len(self.kinds) - 1)


class _Kind(NamedTuple):
    """An example without id, place, group and text."""

    example: Example
    written: str
    """All of it; equality does not look at every field of a target."""


def _kind(example: Example) -> _Kind:
    kind = replace(example, id="", text="", place="", group="")
    return _Kind(kind, repr(kind))


def of_kinds(examples: Sequence[Example], value: Callable[[Example], int]) -> Hashes:
    """Give each example a number; of those that have all but id, place, group and text in common, it is found out once.

    Args:
        examples: Any examples.
        value: Gives the number, from 0, of an example whose id, place, group and text are of no account: they may be empty.
    """
    if isinstance(examples, ExampleStore):
        return examples.of_kinds(value)
    return _values(examples, value)


def _values(examples: Sequence[Example], value: Callable[[Example], int]) -> Hashes:
    return np.fromiter(map(value, examples), dtype=_HASH, count=len(examples))


def numbered(
    examples: Sequence[Example], key: Callable[[Example], Key]
) -> tuple[Positions, list[Key]]:
    """Number different keys of examples as they first come: gives the number of each example's, and all keys.

    Args:
        examples: Any examples.
        key: Gives the key of an example, of which it knows what `of_kinds` says; few should be different.
    """
    found: dict[Key, int] = {}
    codes = of_kinds(examples, lambda each: found.setdefault(key(each), len(found)))
    numbers, keys = codes.astype(np.int64), list(found)
    firsts = np.empty(len(keys), dtype=np.int64)
    firsts[numbers[::-1]] = np.arange(len(numbers))[::-1]  # of several places the last one stays
    order = np.argsort(firsts)
    return np.argsort(order)[numbers], [keys[place] for place in order.tolist()]


def counted(examples: Sequence[Example], key: Callable[[Example], Key]) -> list[tuple[Key, int]]:
    """Give different keys of examples as `numbered` does, each with the number of examples that have it."""
    numbers, keys = numbered(examples, key)
    return list(zip(keys, np.bincount(numbers, minlength=len(keys)).tolist(), strict=True))


def hashes_of(examples: Sequence[Example]) -> ContentHashes:
    """Give the hashes of any examples."""
    if isinstance(examples, ExampleStore):
        return examples.hashes()
    hashes = [_hashes(each, _kind(each)) for each in examples]
    return ContentHashes(
        *np.array(hashes, dtype=np.uint64).reshape(-1, len(fields(ContentHashes))).T
    )


def hash_of(examples: Sequence[Example], name: HashName) -> Hashes:
    """Give one of the hashes of any examples: of a store only this one is read."""
    if isinstance(examples, ExampleStore):
        return examples.hash(name)
    return getattr(hashes_of(examples), name)


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


def _whole_to_bytes(example: Example) -> bytes:
    """Write all of an example, as plain values.

    Raises:
        ValueError: If it holds others.
    """
    target: Any = plain_answer(example.target)
    extra: Any = example.extra
    head = (example.id, example.text, target, example.place)
    return marshal.dumps((*head, extra, example.labels, example.group), _MARSHAL_VERSION)


def _from_bytes(content: bytes, kind: Example | None) -> Example:
    if kind is None:
        # It gives plain values and runs nothing, and nobody else can open the file.
        id_, text, target, *rest = marshal.loads(content)  # noqa: S302
        return Example(id_, text, answer_from_plain(target), *rest)
    id_, place, group, text = content.decode("utf-8", "surrogatepass").split("\0", 3)
    return replace(kind, id=id_, text=text, place=place, group=group)
