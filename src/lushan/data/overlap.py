"""Rows of one split that a later split has too: found, counted, and taken out of the earlier one."""

from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lushan.data.near import bare, find_near, plain
from lushan.data.splits import Parts
from lushan.errors import DataError
from lushan.records import SplitName

OverlapPolicy = Literal["remove", "error", "keep"]
PAIRS: tuple[tuple[SplitName, SplitName], ...] = (
    ("train", "validation"),
    ("train", "test"),
    ("validation", "test"),
)
MOST_OVERLAP_FRACTION = 0.05
NUM_SHOWN = 10


@dataclass(frozen=True, slots=True)
class PairOverlap:
    """What one split shares with a later one. Near rows are not exact ones."""

    earlier: SplitName
    later: SplitName
    exact_rows: tuple[int, ...]
    """Places in the earlier split of rows whose text is also in the later split."""
    near_rows: tuple[int, ...]
    """Places in the earlier split of rows whose text is nearly in the later split."""
    later_exact_rows: tuple[int, ...]
    """The same, seen from the later split."""
    later_near_rows: tuple[int, ...]
    shown: tuple[tuple[str, str], ...]
    """Some near pairs, to look at: the text of the earlier and of the later row."""


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
    num_removed: dict[SplitName, int]
    """Rows that were taken out; rows that overlap two later splits count once."""
    num_test_rows: int
    """Rows of the test split that an earlier split has too."""
    shown: tuple[tuple[str, str], ...] = ()
    """Some near pairs, to look at."""

    @property
    def num_overlapping(self) -> int:
        """Rows of earlier splits that overlap, each counted once for each later split."""
        return sum(pair.num_exact + pair.num_near for pair in self.pairs)

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


def find_overlap(parts: Parts) -> list[PairOverlap]:
    """Find the rows that two splits share, for each two splits."""
    forms = {
        name: _Forms([plain(each.text) for each in part], [bare(each.text) for each in part])
        for name, part in parts.as_dict().items()
    }
    return [_pair_overlap(earlier, later, forms[earlier], forms[later]) for earlier, later in PAIRS]


@dataclass(frozen=True, slots=True)
class _Forms:
    """The plain and the bare texts of a split."""

    plain: Sequence[str]
    bare: Sequence[str]


def _pair_overlap(
    earlier: SplitName, later: SplitName, ones: _Forms, others: _Forms
) -> PairOverlap:
    matches = find_near(ones.bare, others.bare)
    matched = {text for texts in matches.values() for text in texts}
    shared = set(ones.plain) & set(others.plain)
    shown = [(text, found[0]) for text, found in matches.items() if found[0] != text]
    return PairOverlap(
        earlier,
        later,
        exact_rows=_places(ones.plain, shared),
        near_rows=_places(ones.bare, matches, but=set(_places(ones.plain, shared))),
        later_exact_rows=_places(others.plain, shared),
        later_near_rows=_places(others.bare, matched, but=set(_places(others.plain, shared))),
        shown=tuple(shown[:NUM_SHOWN]),
    )


def _places(
    texts: Sequence[str], wanted: Container[str], *, but: Container[int] = ()
) -> tuple[int, ...]:
    return tuple(place for place, text in enumerate(texts) if text in wanted and place not in but)


def remove_overlap(
    parts: Parts, policy: OverlapPolicy, *, are_given: bool = True
) -> tuple[Parts, OverlapCounts]:
    """Take rows out of a split that a later split has too; test is never touched.

    Args:
        parts: The splits.
        policy: `remove` the rows, stop with an `error`, or `keep` them; all are counted.
        are_given: Whether the splits came with the data; more than 5 % of overlap stops only then.

    Raises:
        DataError: If rows overlap and the policy is `error`, or if more than 5 % of the test rows do.
    """
    found = find_overlap(parts)
    counts = _count(found, policy)
    if policy == "error" and counts.num_overlapping:
        raise DataError(
            " ".join(counts.lines()) + " Take them out, or let Lushan do it: `--overlap remove`."
        )
    if policy != "remove":
        return parts, counts
    if are_given and counts.num_test_rows > MOST_OVERLAP_FRACTION * len(parts.test):
        raise DataError(
            f"{counts.num_test_rows:,} of {len(parts.test):,} test rows are also in train or "
            f"validation, exactly or nearly; more than {MOST_OVERLAP_FRACTION:.0%} is no fair test. "
            "Put all rows into one file, which Lushan splits so that equal texts stay together, "
            "or go on with `--overlap keep`."
        )
    gone = _gone(found)
    kept = {
        name: [example for place, example in enumerate(part) if place not in gone[name]]
        for name, part in parts.as_dict().items()
    }
    return Parts(**kept), counts


def _gone(found: Sequence[PairOverlap]) -> dict[SplitName, set[int]]:
    gone: dict[SplitName, set[int]] = {"train": set(), "validation": set(), "test": set()}
    for pair in found:
        gone[pair.earlier].update(pair.exact_rows, pair.near_rows)
    return gone


def _count(found: Sequence[PairOverlap], policy: OverlapPolicy) -> OverlapCounts:
    in_test = [pair for pair in found if pair.later == "test"]
    test_rows = {
        place for pair in in_test for place in (*pair.later_exact_rows, *pair.later_near_rows)
    }
    removed: dict[SplitName, int] = {name: len(gone) for name, gone in _gone(found).items()}
    return OverlapCounts(
        policy,
        pairs=tuple(
            PairCounts(
                pair.earlier,
                pair.later,
                num_exact=len(pair.exact_rows),
                num_near=len(pair.near_rows),
                num_later_exact=len(pair.later_exact_rows),
                num_later_near=len(pair.later_near_rows),
            )
            for pair in found
        ),
        num_removed=removed if policy == "remove" else dict.fromkeys(removed, 0),
        num_test_rows=len(test_rows),
        shown=tuple(pair for each in found for pair in each.shown)[:NUM_SHOWN],
    )
