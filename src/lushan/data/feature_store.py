"""Encoded documents by the million, in memory-mapped files that are kept for the next run of equal data.

What many documents have in common (target, weight) is kept once, as a *kind*, and the first kinds stay in memory. The
functions take any sequence of features, so that nobody needs to know how it is stored.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Self, overload

import numpy as np
from numpy.typing import NDArray

from lushan.atomic import naming_full_disk, write_json
from lushan.data.chunks import Encode, encoded_in_chunks
from lushan.data.near import Positions
from lushan.records import Example, Features, ToolForm

LAYOUT = 2
"""Changes whenever files of before must not be read any more."""
FEWEST_STORED = 10_000
"""Fewer examples are encoded sooner than files are looked up, and need little memory."""
_TOKENS_AT_ONCE = 1 << 22
_ABANDONED_SECONDS = 86_400.0
_SPARE_BYTES = 1 << 30
"""Room on the disk that is left to others."""
_MOST_SHARED_KINDS = 2**16
"""So many are written once, however many documents have them; of most a digest stays in memory while others are written."""
_MOST_KEPT_BYTES = 2**20
"""Kinds stay in memory up to here in their file: where there are more, most documents share theirs with few others."""
_ABOUT = "about.json"
_COLUMNS = {"ends": "<i8", "example_indices": "<i8", "codes": "<i4", "kind_ends": "<i8"}
_KIND_FIELDS = tuple(
    each.name
    for each in dataclasses.fields(Features)
    if each.name not in ("token_ids", "place", "example_index")
)


@dataclass(frozen=True, slots=True)
class Columns:
    """Documents as columns, one entry each."""

    lengths: Positions
    """Tokens of each document."""
    example_indices: Positions
    last_tokens: Positions
    codes: NDArray[np.integer]
    """The kind of each document."""
    kinds: Sequence[Features]
    """Documents without tokens, place and example."""

    def of_kinds(self, value: Callable[[Features], float]) -> NDArray[Any]:
        """Give each document a value that its kind decides."""
        return np.array([value(kind) for kind in self.kinds])[self.codes]

    def num_supervised(self) -> Positions:
        """Give how many targets each document has; none where they have no weight."""
        span = int(self.lengths.max(initial=0)) + 1
        alike, inverse = np.unique(
            self.codes.astype(np.int64) * span + self.lengths, return_inverse=True
        )
        values = [
            _num_learned(replace(self.kinds[code], token_ids=(0,) * length))
            for code, length in zip(
                *(each.tolist() for each in np.divmod(alike, span)), strict=True
            )
        ]
        return np.array(values, dtype=np.int64)[inverse]


def _num_learned(features: Features) -> int:
    return features.num_supervised if features.weight else 0


class FeatureStore(Sequence[Features]):
    """A list of documents that is read from files."""

    def __init__(self, folder: Path, examples: Sequence[Example]) -> None:
        """Open what a `_Writer` left.

        Args:
            folder: Where the files are; they may be removed as soon as this is done.
            examples: What was encoded.
        """
        self._examples = examples
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        found = {name: _mapped(folder / name, kind) for name, kind in _COLUMNS.items()}
        self._tokens = _mapped(folder / "tokens", about["token_type"])
        self._ends, self._example_indices = found["ends"], found["example_indices"]
        self._codes = found["codes"]
        self._kinds = _Kinds(_mapped(folder / "kinds", "u1"), found["kind_ends"])

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Features: ...
    @overload
    def __getitem__(self, index: slice) -> list[Features]: ...
    def __getitem__(self, index: int | slice) -> Features | list[Features]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        end = int(self._ends[index])
        place = index % len(self)
        start = int(self._ends[place - 1]) if place else 0
        example_index = int(self._example_indices[place])
        return replace(
            self._kinds[int(self._codes[place])],
            token_ids=tuple(self._tokens[start:end].tolist()),
            place=self._examples[example_index].place,
            example_index=example_index,
        )

    def columns(self) -> Columns:
        """Give the documents as columns."""
        return Columns(
            self.lengths(),
            example_indices=self._example_indices,
            last_tokens=self._tokens[self._ends - 1].astype(np.int64),
            codes=self._codes,
            kinds=self._kinds,
        )

    def lengths(self) -> Positions:
        """Give the number of tokens of each document."""
        return np.diff(self._ends, prepend=0)

    def distinct_tokens(self) -> Positions:
        """Give every token id, once, ascending."""
        found = np.zeros(int(self._tokens.max(initial=0)) + 1, dtype=bool)
        for start in range(0, len(self._tokens), _TOKENS_AT_ONCE):
            found[self._tokens[start : start + _TOKENS_AT_ONCE]] = True
        return found.nonzero()[0]

    def example_indices(self) -> Positions:
        """Give the example of each document."""
        return self._example_indices


class Joined(Sequence[Features]):
    """Two lists of documents, one behind the other."""

    def __init__(self, first: Sequence[Features], second: Sequence[Features]) -> None:
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    @overload
    def __getitem__(self, index: int) -> Features: ...
    @overload
    def __getitem__(self, index: slice) -> list[Features]: ...
    def __getitem__(self, index: int | slice) -> Features | list[Features]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        num_first = len(self._first)
        return self._first[place] if place < num_first else self._second[place - num_first]


class _Kinds(Sequence[Features]):
    def __init__(self, written: NDArray[np.uint8], ends: Positions) -> None:
        self._written, self._ends = written, ends
        self._kept = cache(self._read)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 - slices are not needed
        if index >= len(self):
            raise IndexError(index)
        is_kept = self._ends[index] <= _MOST_KEPT_BYTES
        return self._kept(index) if is_kept else self._read(index)

    def _read(self, index: int) -> Features:
        start = self._ends[index - 1] if index else 0
        values = json.loads(self._written[start : self._ends[index]].tobytes())
        return _kind({name: _as_tuples(each) for name, each in values.items()})


def lengths_of(features: Sequence[Features]) -> Positions:
    """Give the number of tokens of each document."""
    if isinstance(features, FeatureStore):
        return features.lengths()
    return np.array([len(each.token_ids) for each in features], dtype=np.int64)


def distinct_tokens(features: Sequence[Features]) -> Positions:
    """Give every token id that a document has, once, ascending."""
    if isinstance(features, FeatureStore):
        return features.distinct_tokens()
    found = set(itertools.chain.from_iterable(each.token_ids for each in features))
    return np.array(sorted(found), dtype=np.int64)


def example_indices_of(features: Sequence[Features]) -> Positions:
    """Give the example of each document."""
    if isinstance(features, FeatureStore):
        return features.example_indices()
    return np.array([each.example_index for each in features], dtype=np.int64)


def columns_of(features: Sequence[Features]) -> Columns:
    """Give any documents as columns."""
    if isinstance(features, FeatureStore):
        return features.columns()
    found: dict[tuple[Any, ...], int] = {}
    codes = [found.setdefault(_kind_values(each), len(found)) for each in features]
    last = [each.token_ids[-1] if each.token_ids else -1 for each in features]
    return Columns(
        lengths_of(features),
        example_indices=example_indices_of(features),
        last_tokens=np.array(last, dtype=np.int64),
        codes=np.array(codes, dtype=np.int64),
        kinds=[_kind(dict(zip(_KIND_FIELDS, values, strict=True))) for values in found],
    )


def _kind(values: Mapping[str, Any]) -> Features:
    form = values["tool_form"]
    given = {**values, "tool_form": form and ToolForm(*form)}
    return Features(token_ids=(), place="", example_index=0, **given)


@dataclass(slots=True)
class EncodedCache:
    """A folder of encoded examples, and how large it may grow."""

    folder: Path
    limit_bytes: float
    notes: list[str] = field(default_factory=list[str])
    """What a person should know."""

    def features(
        self, name: str, examples: Sequence[Example], encode: Encode, *, vocabulary_size: int
    ) -> Sequence[Features]:
        """Encode examples in parts, or take what an earlier run encoded.

        Args:
            name: Name of the entry, made from everything that decides a token.
            examples: What to encode.
            encode: Encodes some of them.
            vocabulary_size: Ids are below it.
        """
        path = self.folder / name
        # Another process may remove it at any time, and what another user left may not be readable.
        with contextlib.suppress(OSError):
            if _is_whole(path):
                with contextlib.suppress(OSError):  # of somebody else, who lets it be read
                    os.utime(path)
                return FeatureStore(path, examples)
        beside = self._beside()
        remedy = "or name another folder by the environment variable `LUSHAN_CACHE`"
        try:
            with naming_full_disk(beside.parent, what="The tokens", remedy=remedy):
                _write(beside, examples, encode, vocabulary_size=vocabulary_size)
            store = FeatureStore(beside, examples)
            if beside.parent == self.folder and self.limit_bytes:
                self._keep(beside, path)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return store

    def _beside(self) -> Path:
        """Make a folder to write into: in the cache, so that it can be renamed, or a temporary one."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            beside = self.folder / f"{uuid.uuid4().hex}.unfinished"
            beside.mkdir()
        except OSError as error:
            self.notes.append(
                f"Tokens are not kept for a later run: `{self.folder}` cannot be written: {error.strerror}."
            )
            return Path(tempfile.mkdtemp(prefix="lushan-"))
        return beside

    def _keep(self, beside: Path, path: Path) -> None:
        """Give an entry its name, if there is room and no other process was first."""
        try:
            if self._has_room(beside) and not _is_whole(path):
                shutil.rmtree(path, ignore_errors=True)
                beside.rename(path)
        except OSError as error:
            self.notes.append(f"Tokens are not kept for a later run: `{path}`: {error.strerror}.")

    def _has_room(self, beside: Path) -> bool:
        """Make room by removing what was not used for longest."""
        num_bytes = _size(beside)
        if num_bytes > self.limit_bytes:
            self.notes.append(
                f"Tokens are not kept for a later run: they take {num_bytes / 1e9:,.2f} GB, more than "
                f"`data.cache_gigabytes` = {self.limit_bytes / 1e9:g}."
            )
            return False
        entries = sorted(self._entries(), key=lambda each: each.stat().st_mtime)
        taken = sum(map(_size, entries))
        removed = 0
        while taken + num_bytes > self.limit_bytes:
            taken -= _size(entries[removed])
            shutil.rmtree(entries[removed], ignore_errors=True)
            removed += 1
        if removed:
            self.notes.append(
                f"Removed the tokens of {removed} earlier data set(s) from `{self.folder}`, which may hold "
                f"{self.limit_bytes / 1e9:g} GB (`data.cache_gigabytes`)."
            )
        if shutil.disk_usage(self.folder).free < _SPARE_BYTES:
            self.notes.append(
                f"Tokens are not kept for a later run: `{self.folder}` has less than "
                f"{_SPARE_BYTES / 1e9:.0f} GB to spare."
            )
            return False
        return True

    def _entries(self) -> Iterator[Path]:
        for each in self.folder.iterdir():
            if each.suffix != ".unfinished":
                yield each
            elif time.time() - each.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(each, ignore_errors=True)


def _write(
    folder: Path, examples: Sequence[Example], encode: Encode, *, vocabulary_size: int
) -> None:
    token_type = "<u2" if vocabulary_size <= 2**16 else "<u4"
    with _Writer(folder, token_type) as writer:
        for start, features in encoded_in_chunks(examples, encode):
            writer.add(features, first_example=start)
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    write_json(folder / _ABOUT, {"token_type": token_type, "sizes": sizes})


class _Writer:
    """Appends documents to the files of an entry."""

    def __init__(self, folder: Path, token_type: str) -> None:
        self._folder, self._token_type = folder, token_type
        self._files: dict[str, BinaryIO] = {}
        self._codes: dict[tuple[Any, ...] | bytes, int] = {}
        self._num_kinds = self._num_tokens = self._num_kind_bytes = 0

    def __enter__(self) -> Self:
        for name in ("tokens", "kinds", *_COLUMNS):
            self._files[name] = (self._folder / name).open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, features: Sequence[Features], *, first_example: int) -> None:
        """Append documents of the examples from `first_example` on."""
        ends = self._num_tokens + np.cumsum([len(each.token_ids) for each in features])
        self._num_tokens = int(ends[-1])
        tokens = [token for each in features for token in each.token_ids]
        self._append("tokens", tokens, self._token_type)
        self._append("ends", ends)
        self._append("codes", [self._code_of(each) for each in features])
        indices = [each.example_index + first_example for each in features]
        self._append("example_indices", indices)

    def _code_of(self, features: Features) -> int:
        """Give the number of a kind, and write it where it is new; behind the first ones a digest tells that."""
        values = _kind_values(features)
        if (code := self._codes.get(values)) is not None:
            return code
        written = json.dumps(dict(zip(_KIND_FIELDS, values, strict=True))).encode()
        digest = hashlib.blake2b(written, digest_size=16).digest()
        if (code := self._codes.get(digest)) is not None:
            return code
        self._num_kind_bytes += self._files["kinds"].write(written)
        self._append("kind_ends", [self._num_kind_bytes])
        if self._num_kind_bytes <= _MOST_KEPT_BYTES:
            self._codes[values] = self._num_kinds
        elif self._num_kinds < _MOST_SHARED_KINDS:
            self._codes[digest] = self._num_kinds
        self._num_kinds += 1
        return self._num_kinds - 1

    def _append(self, name: str, values: Any, dtype: str = "") -> None:  # noqa: ANN401 - numbers
        self._files[name].write(np.asarray(values, dtype=dtype or _COLUMNS[name]).tobytes())


def _as_tuples(value: Any) -> Any:  # noqa: ANN401 - of JSON
    if not isinstance(value, list):
        return value
    has_lists = value and isinstance(value[0], list)  # all are, or none
    return tuple(map(tuple, value)) if has_lists else tuple(value)


def _kind_values(features: Features) -> tuple[Any, ...]:
    return tuple(getattr(features, name) for name in _KIND_FIELDS)


def _is_whole(folder: Path) -> bool:
    """Whether all files of an entry are there, as long as they were written."""
    about = folder / _ABOUT
    if not about.is_file():
        return False
    try:
        sizes = json.loads(about.read_text(encoding="utf-8"))["sizes"]
    except (ValueError, KeyError, TypeError):
        return False
    files = {name: folder / name for name in sizes}
    return all(
        file.is_file() and file.stat().st_size == sizes[name] for name, file in files.items()
    )


def _mapped(path: Path, kind: str) -> NDArray[Any]:
    if not path.stat().st_size:
        return np.empty(0, dtype=kind)
    return np.memmap(path, dtype=kind, mode="r")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
