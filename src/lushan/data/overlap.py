"""Rows of one split that a later split has too: found, counted, and taken out of the earlier one."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lushan.data.example_store import hashes_of, take
from lushan.data.near import comparable, find_common, match_near
from lushan.data.pieces import Common, Numbers, Positions
from lushan.data.splits import Parts
from lushan.errors import DataError
from lushan.records import EITHER_WAY, SPLIT_NAMES, Example, SplitName

Advance = Callable[[int], None]
OverlapPolicy = Literal["remove", "error", "keep"]
PAIRS: tuple[tuple[SplitName, SplitName], ...] = (
    ("train", "validation"),
    ("train", "test"),
    ("validation", "test"),
)
MOST_OVERLAP_FRACTION = 0.05
NUM_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Rows:
    """Places in one split of rows that another split has too; none is in both lists."""

    exact: tuple[int, ...]
    """The texts are equal but for case and space."""
    near: tuple[int, ...]
    """The texts are nearly equal, as `near.py` defines it, or each is the answer to the other (`EITHER_WAY`)."""


@dataclass(frozen=True, slots=True)
class Shown:
    """Two rows that overlap, to look at."""

    earlier_place: str
    earlier_text: str
    later_place: str
    later_text: str


@dataclass(frozen=True, slots=True)
class PairOverlap:
    """What one split shares with a later one."""

    earlier: SplitName
    later: SplitName
    rows: Rows
    """Of the earlier split."""
    later_rows: Rows
    """Of the later split."""
    shown: tuple[Shown, ...]
    """Some of them, near ones first."""


@dataclass(frozen=True, slots=True)
class PairCounts:
    """How many rows of two splits overlap; near rows are not counted as exact ones."""

    earlier: SplitName
    later: SplitName
    num_exact: int
    """Rows of the earlier split."""
    num_near: int
    num_later_exact: int
    """Rows of the later split."""
    num_later_near: int


@dataclass(frozen=True, slots=True)
class OverlapCounts:
    """What was found, and what was done about it."""

    policy: OverlapPolicy
    pairs: tuple[PairCounts, ...]
    num_exact_removed: dict[SplitName, int]
    """Rows that were taken out; one that overlaps two later splits counts once."""
    num_near_removed: dict[SplitName, int]
    num_test_rows: int
    """Rows of the test split that an earlier split has too."""
    shown: tuple[Shown, ...]

    def lines(self) -> list[str]:
        """Say it for a person, one line for each two splits that overlap."""
        done = {"remove": "taken out", "keep": "kept, as asked", "error": "found"}[self.policy]
        return [
            f"{pair.num_exact + pair.num_near:,} row(s) of {pair.earlier} are also in {pair.later} "
            f"({pair.num_exact:,} exactly, {pair.num_near:,} nearly): {done}."
            for pair in self.pairs
            if pair.num_exact + pair.num_near
        ]

    def as_dict(self) -> dict[str, Any]:
        """Give it as plain values for JSON."""
        return asdict(self)


def find_overlap(parts: Parts, advance: Advance | None = None) -> list[PairOverlap]:
    """Find the rows that two splits share, for each two splits; `advance` hears how many rows were looked for."""
    forms = {name: _Forms(part) for name, part in parts.as_dict().items()}
    common = find_common(*forms.values())
    return [
        _compare(earlier, later, forms[earlier], forms[later], common=common, advance=advance)
        for earlier, later in PAIRS
    ]


def remove_overlap(
    parts: Parts,
    policy: OverlapPolicy,
    *,
    are_given: bool = True,
    advance: Advance | None = None,
) -> tuple[Parts, OverlapCounts]:
    """Take rows out of a split that a later split has too; test is never touched.

    Args:
        parts: The splits.
        policy: `remove` the rows, stop with an `error`, or `keep` them; all are counted.
        are_given: Whether the splits came with the data; more than 5 % of overlap stops only then.
        advance: Hears how many rows were looked for in a later split since the last call.

    Raises:
        DataError: If rows overlap and the policy is `error`, or if more than 5 % of the test rows do.
    """
    found = find_overlap(parts, advance)
    exact, near = _to_remove(found)
    test_rows = {
        place
        for pair in found
        if pair.later == "test"
        for place in pair.later_rows.exact + pair.later_rows.near
    }
    counts = OverlapCounts(
        policy,
        pairs=tuple(_count(pair) for pair in found),
        num_exact_removed={name: len(exact[name]) * (policy == "remove") for name in SPLIT_NAMES},
        num_near_removed={name: len(near[name]) * (policy == "remove") for name in SPLIT_NAMES},
        num_test_rows=len(test_rows),
        shown=tuple(shown for pair in found for shown in pair.shown),
    )
    if policy == "error" and counts.lines():
        example = counts.shown[0]
        raise DataError(
            f"{' '.join(counts.lines())} Such as {example.earlier_place} and {example.later_place}. "
            "Take them out, or let Lushan do it with `--overlap remove`."
        )
    if policy != "remove":
        return parts, counts
    if are_given and len(test_rows) > MOST_OVERLAP_FRACTION * len(parts.test):
        raise DataError(
            f"{len(test_rows):,} of {len(parts.test):,} test rows are also in train or validation, "
            f"exactly or nearly; more than {MOST_OVERLAP_FRACTION:.0%} is no fair test. Such as "
            f"{counts.shown[-1].earlier_place} and {counts.shown[-1].later_place}. Put all rows into one "
            "file, which Lushan splits so that equal texts stay together, or use `--overlap keep`."
        )
    gone = {name: sorted(exact[name] | near[name]) for name in SPLIT_NAMES}
    kept = [
        take(part, np.delete(np.arange(len(part)), gone[name])) if gone[name] else part
        for name, part in parts.as_dict().items()
    ]
    return Parts(*kept), counts


def places_found_in(examples: Sequence[Example], others: Sequence[Example]) -> set[int]:
    """Give the places of the examples whose texts equal, or nearly equal, one of the others."""
    if not examples or not others:
        return set()
    forms = _Forms(examples)
    return set(forms.places(match_near(forms, _Forms(others))).tolist())


def places_of_repeats(examples: Sequence[Example]) -> set[int]:
    """Give the places of the examples whose texts equal, or nearly equal, an earlier one that is no repeat itself."""
    if not examples:
        return set()
    forms = _Forms(examples)
    alike = match_near(forms, forms)
    first_seen: set[int] = set()
    repeats: set[int] = set()
    for place, number in enumerate(forms.hashes.tolist()):
        if first_seen.intersection(alike.get(number, ())):
            repeats.add(place)
        else:
            first_seen.add(place)
    return repeats


class _Forms:
    """The examples of a split with hashes of the forms in which their texts are compared."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples
        stored = hashes_of(examples)
        self.hashes = stored.comparable
        self.plain_hashes = stored.plain
        self._group_hashes = stored.group
        self._is_grouped = stored.group != stored.comparable

    @property
    def groups(self) -> Numbers:
        """Hashes of the groups that are not a row's own text."""
        return self._group_hashes[self._is_grouped]

    def group(self, place: int) -> Numbers:
        """Give the hash of the group of one row."""
        return self._group_hashes[[place]]

    def texts(self, places: Positions) -> Iterator[str]:
        """Give the comparable texts at some places; all of them would need much memory."""
        return (comparable(each.text) for each in take(self.examples, places))

    def places(self, hashes: Iterable[int]) -> Positions:
        """Give the places of the rows whose comparable texts have one of these hashes."""
        return np.flatnonzero(np.isin(self.hashes, np.array([*hashes], dtype=np.uint64)))

    def places_of_groups(self, groups: Numbers) -> Positions:
        """Give the places of the rows whose groups have one of these hashes, and are not their own texts."""
        return np.flatnonzero(self._is_grouped & np.isin(self._group_hashes, groups))


def _turned_groups(one: _Forms, other: _Forms) -> Numbers:
    """Give the groups of both, where they say text and answer whichever is which; others are no overlap."""
    shared = np.intersect1d(one.groups, other.groups)
    if not len(shared):
        return shared
    first = one.examples[int(one.places_of_groups(shared)[0])]
    return shared if EITHER_WAY in first.group else shared[:0]


def _compare(
    earlier: SplitName,
    later: SplitName,
    one: _Forms,
    other: _Forms,
    *,
    common: Common,
    advance: Advance | None,
) -> PairOverlap:
    matches = match_near(one, other, advance, common=common)
    matched = {int(other.hashes[place]) for places in matches.values() for place in places}
    groups = _turned_groups(one, other)
    places = np.union1d(one.places(matches), one.places_of_groups(groups))
    later_places = np.union1d(other.places(matched), other.places_of_groups(groups))
    shared = np.intersect1d(one.plain_hashes[places], other.plain_hashes[later_places])
    rows, later_rows = _rows(one, places, shared), _rows(other, later_places, shared)
    shown: list[Shown] = []
    for place in (*rows.near, *rows.exact)[:NUM_SHOWN]:
        near = matches.get(int(one.hashes[place]))
        likely = (
            other.places([int(other.hashes[near[0]])])
            if near
            else other.places_of_groups(one.group(place))
        )
        is_equal = other.plain_hashes[likely] == one.plain_hashes[place]
        later_place = likely[np.argmax(is_equal)]  # the first if none is
        first, second = one.examples[place], other.examples[int(later_place)]
        shown.append(Shown(first.place, first.text, second.place, second.text))
    return PairOverlap(earlier, later, rows=rows, later_rows=later_rows, shown=tuple(shown))


def _rows(forms: _Forms, places: Positions, shared: NDArray[np.uint64]) -> Rows:
    """Sort places into exact and near ones."""
    is_exact = np.isin(forms.plain_hashes[places], shared)
    return Rows(exact=tuple(places[is_exact].tolist()), near=tuple(places[~is_exact].tolist()))


def _to_remove(
    found: Sequence[PairOverlap],
) -> tuple[dict[SplitName, set[int]], dict[SplitName, set[int]]]:
    """Give the places to take out of each split: exact ones, and those that are only near."""
    exact: dict[SplitName, set[int]] = {name: set() for name in SPLIT_NAMES}
    near: dict[SplitName, set[int]] = {name: set() for name in SPLIT_NAMES}
    for pair in found:
        exact[pair.earlier].update(pair.rows.exact)
        near[pair.earlier].update(pair.rows.near)
    return exact, {name: near[name] - exact[name] for name in SPLIT_NAMES}


def _count(pair: PairOverlap) -> PairCounts:
    return PairCounts(
        pair.earlier,
        pair.later,
        num_exact=len(pair.rows.exact),
        num_near=len(pair.rows.near),
        num_later_exact=len(pair.later_rows.exact),
        num_later_near=len(pair.later_rows.near),
    )
