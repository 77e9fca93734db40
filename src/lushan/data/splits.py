"""Train, validation and test: stratified, and decided by the content of a row, not by its place."""

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lushan.data.example_store import (
    counted,
    hash_text,
    hashes_of,
    numbered,
    of_kinds,
    take,
)
from lushan.data.near import Positions, comparable
from lushan.errors import DataError
from lushan.records import GOES_ON, SPLIT_NAMES, Example, SplitName

NUM_NAMED = 10
SEVERAL = -1
"""Stands for the group that begins like another where there is more than one."""

Stratum = str | tuple[str, ...]
"""What is drawn in proportion: a label, or a set of labels."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The examples of a task, in three parts."""

    train: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example]

    def of(self, name: SplitName) -> Sequence[Example]:
        """Give one part by its name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    def as_dict(self) -> dict[SplitName, Sequence[Example]]:
        """Give all parts by name, in order."""
        return {name: self.of(name) for name in SPLIT_NAMES}


def split(
    examples: Sequence[Example], *, validation_fraction: float, test_fraction: float, seed: int
) -> Parts:
    """Cut one list into parts with the same shares of labels; each part keeps the order of the list.

    Texts that are equal but for case, space and punctuation stay together, and so do groups, where rows have one, and a group
    with the one that begins like it. Those that several begin like, such as a greeting, are for training, and so are those that
    would be most of another part, unless there are no others. The same rows and seed give the same parts, whatever the order
    of the rows. A fraction of 0 leaves that part empty.

    Raises:
        DataError: If a label has too few different texts to be in every part; where texts have several, if all labels do.
    """
    fractions: dict[SplitName, float] = {"test": test_fraction, "validation": validation_fraction}
    wanted: dict[SplitName, float] = {
        name: fraction for name, fraction in fractions.items() if fraction > 0
    }
    groups = _Groups(examples, seed=seed)
    homes = np.full(len(groups.sizes), SPLIT_NAMES.index("train"), dtype=np.int8)
    for members in _strata(examples, groups, num_needed=len(wanted) + 1):
        ordered = members[np.argsort(groups.ranks[members], kind="stable")]
        dealt = _deal(groups.sizes[ordered].tolist(), wanted)
        homes[ordered] = [SPLIT_NAMES.index(name) for name in dealt]
    part_of = homes[groups.numbers]
    for name in wanted:
        if not (part_of == SPLIT_NAMES.index(name)).any():  # of several labels, each has too few
            raise DataError(
                f"Too few rows to split: none is left for {name}, as no {len(wanted) + 1} different texts have the same "
                "rarest label. Rows that belong together, such as equal texts, count as one. Add rows, or give the data "
                "as train, validation and test files."
            )
    return Parts(
        *(take(examples, np.flatnonzero(part_of == number)) for number in range(len(SPLIT_NAMES)))
    )


def subsample(examples: Sequence[Example], num_rows: int, *, seed: int) -> Sequence[Example]:
    """Draw rows with the same shares of labels; every label keeps one where there is room.

    The draw is decided by content and seed; what is drawn stands in the order of the list.
    """
    if num_rows >= len(examples):
        return examples
    numbers, strata = numbered(examples, _stratum_key)
    ordered = np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])
    places = dict(zip(strata, ordered, strict=True))
    ranks = _ranks(seed, (each.id for each in examples))
    drawn = _drawn(places, ranks, num_rows)
    present = (strata[number] for number in np.unique(numbers[drawn]).tolist())
    held = {label for stratum in present for label in _labels_in(stratum)}
    if held < count_labels(examples).keys():  # rows have several labels, and few the same ones
        first = _one_of_each(places, ranks)
        if len(first) <= num_rows:
            left = {stratum: np.setdiff1d(rows, first) for stratum, rows in places.items()}
            rest = {stratum: rows for stratum, rows in left.items() if len(rows)}
            drawn = np.concatenate([first, _drawn(rest, ranks, num_rows - len(first))])
    return take(examples, np.sort(drawn))


def _drawn(
    places: Mapping[Stratum, Positions], ranks: NDArray[np.uint64], num_rows: int
) -> Positions:
    """Draw rows of each stratum in proportion."""
    quotas = _quotas({stratum: len(rows) for stratum, rows in places.items()}, num_rows)
    drawn = [
        rows[np.argsort(ranks[rows], kind="stable")][: quotas[stratum]]
        for stratum, rows in places.items()
    ]
    return np.concatenate(drawn)


def _one_of_each(places: Mapping[Stratum, Positions], ranks: NDArray[np.uint64]) -> Positions:
    """Draw rows until every label has one, those of the rarest first."""
    labels = {stratum: _labels_in(stratum) for stratum in places}
    times: Counter[str] = Counter()
    for stratum, rows in places.items():
        times.update(dict.fromkeys(map(str, labels[stratum]), len(rows)))
    chosen, held = list[int](), set[object]()
    for label in sorted(times, key=lambda label: (times[label], label)):
        if label not in held:
            having = [stratum for stratum in places if label in labels[stratum]]
            first = {int(rows[ranks[rows].argmin()]): s for s in having for rows in [places[s]]}
            chosen.append(min(first, key=lambda place: ranks[place]))
            held.update(labels[first[chosen[-1]]])
    return np.array(chosen, dtype=np.int64)


def _stratum_key(example: Example) -> Stratum:
    labels = labels_of(example)
    return labels[0] if isinstance(example.target, str) and labels else labels


def _labels_in(stratum: Stratum) -> tuple[str, ...]:
    return stratum if isinstance(stratum, tuple) else (stratum,)


def stratum_of(example: Example, frequencies: Mapping[str, int]) -> str:
    """Give the label by which an example is dealt: of several labels the rarest."""
    return min(labels_of(example), key=lambda label: (frequencies[label], label), default="")


def labels_of(example: Example) -> tuple[str, ...]:
    """Give the labels of an example: one, several, or none."""
    return example.classes


def count_labels(examples: Sequence[Example]) -> Counter[str]:
    """Give how many examples have each label."""
    counts: Counter[str] = Counter()
    for labels, times in counted(examples, labels_of):
        for label in labels:
            counts[label] += times
    return counts


class _Groups:
    """Which examples must not be separated; numbered as they first come."""

    def __init__(self, examples: Sequence[Example], *, seed: int) -> None:
        stored = hashes_of(examples)
        hashes, firsts, inverse = np.unique(stored.group, return_index=True, return_inverse=True)
        order = np.argsort(firsts)
        number_of = np.empty_like(order)
        number_of[order] = np.arange(len(order))
        beginnings, ranks = _Beginnings(hashes, number_of), array("Q")
        for number, first in enumerate(take(examples, firsts[order])):
            ranks.append(_rank(seed, comparable(first.group or first.text)))
            beginnings.add(number, first.group)
        groups = beginnings.joined(len(order))[number_of[inverse]]
        with_texts = np.arange(len(order))
        if not np.array_equal(stored.group, stored.comparable):
            with_texts = _joined_by_text(groups, stored.comparable, num_groups=len(order))
        kept, numbers, sizes = np.unique(
            with_texts[groups], return_inverse=True, return_counts=True
        )
        least_ranks, present = np.array(ranks, dtype=np.uint64), np.unique(groups)
        np.minimum.at(least_ranks, with_texts[present], least_ranks[present])
        self.sizes: Positions = sizes
        """How many examples each group has."""
        self.numbers: Positions = numbers
        """The group of each example."""
        self.ranks: NDArray[np.uint64] = least_ranks[kept]
        """The order of the groups, which only their content and the seed decide."""
        self.are_dealt: NDArray[np.bool_] = ~np.isin(kept, with_texts[beginnings.of_several()])
        """Whether each group may come into any part; else it is for training."""


def _joined_by_text(groups: Positions, texts: NDArray[np.uint64], *, num_groups: int) -> Positions:
    """Give the first of the groups that each group hangs together with, by texts that stand in several.

    Args:
        groups: The group of each example.
        texts: The hash of the text of each example.
        num_groups: How many groups there are.
    """
    _, texts_of = np.unique(texts, return_inverse=True)
    joined = np.arange(num_groups)
    while True:
        firsts = np.full(len(groups), num_groups)
        np.minimum.at(firsts, texts_of, joined[groups])
        further = joined.copy()
        np.minimum.at(further, groups, firsts[texts_of])
        further = further[further]
        if np.array_equal(further, joined):
            return joined
        joined = further


class _Beginnings:
    """Which groups others begin with: a conversation that is cut behind each turn gives rows that begin alike.

    A row that is cut early is never asked about while a longer one, which holds its answer, is learned.
    """

    def __init__(self, hashes: NDArray[np.uint64], number_of: Positions) -> None:
        self._hashes, self._number_of = hashes, number_of
        self._longer: dict[int, int] = {}
        """Group to the one that begins like it, or `SEVERAL`."""

    def add(self, number: int, group: str) -> None:
        """Find the longest of the groups that this one begins with."""
        turns = group.split(GOES_ON)
        for num_turns in range(len(turns) - 1, 0, -1):
            beginning = hash_text(comparable(GOES_ON.join(turns[:num_turns])))
            place = int(np.searchsorted(self._hashes, np.uint64(beginning)))
            if place == len(self._hashes) or self._hashes[place] != beginning:
                continue
            shorter = int(self._number_of[place])
            if shorter != number:
                known = self._longer.setdefault(shorter, number)
                self._longer[shorter] = number if known == number else SEVERAL
                return

    def joined(self, num_groups: int) -> Positions:
        """Give the group that each group belongs to: the longest that alone begins like it."""
        into = np.arange(num_groups)
        for shorter, longer in self._longer.items():
            if longer != SEVERAL:
                into[shorter] = longer
        while not np.array_equal(further := into[into], into):
            into = further
        return into

    def of_several(self) -> list[int]:
        """List the groups that several begin like."""
        return [shorter for shorter, longer in self._longer.items() if longer == SEVERAL]


def _strata(examples: Sequence[Example], groups: _Groups, *, num_needed: int) -> list[Positions]:
    """Give the groups of each label. Labels with too few are refused; of several labels, go to train."""
    frequencies = count_labels(examples)
    codes, names = numbered(examples, lambda each: stratum_of(each, frequencies))
    labels = sorted(names)
    numbers = {label: number for number, label in enumerate(labels)}
    number_of = np.array([numbers[name] for name in names], dtype=np.int64)
    # Of the labels of a group's rows the most frequent one; of equally frequent ones the first.
    pairs, times = np.unique(groups.numbers * len(labels) + number_of[codes], return_counts=True)
    group_of, label_of = np.divmod(pairs, len(labels))
    order = np.lexsort((label_of, -times, group_of))
    is_first = np.diff(group_of[order], prepend=-1) > 0
    chosen = label_of[order][is_first]
    strata = [
        np.flatnonzero((chosen == number) & groups.are_dealt) for number in range(len(labels))
    ]
    small = [
        label for label, rows in zip(labels, strata, strict=True) if 0 < len(rows) < num_needed
    ]
    if small and not of_kinds(examples, lambda each: isinstance(each.target, tuple)).any():
        if labels == [""]:  # answers without labels
            raise DataError(
                f"Too few rows to split: {len(strata[0])} different text(s), at least {num_needed} are needed; rows that "
                "belong together (equal texts, conversations that begin alike) count as one. Add rows, or give the data as "
                "train, validation and test files."
            )
        raise DataError(
            f"Too few rows to split: {len(small)} label(s) have fewer than {num_needed} different "
            f"texts: {_named(small)}. Rows that belong together, such as equal texts, count as one. Add rows, take these "
            "labels out, or give the data as train, validation and test files."
        )
    return strata


def _named(labels: Sequence[str]) -> str:
    listed = ", ".join(f"`{label}`" for label in labels[:NUM_NAMED])
    return listed + (" ..." if len(labels) > NUM_NAMED else "")


@dataclass(slots=True)
class _Room:
    """What a part may still take of the groups of one label."""

    num_rows: int
    num_groups: int
    """Training keeps half of its share of them, also where one group holds most rows, and so is for training."""
    largest_group: int
    """Rows of the largest that is taken: one that is larger would be most of the part."""

    def take(self, size: int) -> bool:
        """Take a group of so many rows, if there is room for it."""
        is_taken = self.num_groups > 0 and size <= min(self.num_rows, self.largest_group)
        if is_taken:
            self.num_rows -= size
            self.num_groups -= 1
        return is_taken


def _deal(sizes: Sequence[int], fractions: Mapping[SplitName, float]) -> list[SplitName]:
    """Give each group of one label a part; no part stays empty where there are enough groups.

    Args:
        sizes: Number of rows of each group, in random order.
        fractions: Part to its share of the rows; the rest is for training.
    """
    homes: list[SplitName] = ["train"] * len(sizes)
    if not fractions or len(sizes) <= len(fractions):
        return homes
    rooms = _rooms(fractions, num_rows=sum(sizes), num_groups=len(sizes))
    for group, size in enumerate(sizes):
        for name, room in rooms.items():
            if room.take(size):
                homes[group] = name
                break
    needed: tuple[SplitName, ...] = (*fractions, "train")
    for name in needed:
        held = Counter(homes)
        if name not in held:
            richest = max(held, key=held.__getitem__)
            movable = (group for group, home in enumerate(homes) if home == richest)
            homes[min(movable, key=sizes.__getitem__)] = name
    return homes


def _rooms(
    fractions: Mapping[SplitName, float], *, num_rows: int, num_groups: int
) -> dict[SplitName, _Room]:
    # Half way from a share of all groups to the share that a part would have if training had none.
    stretch = (1 + 1 / sum(fractions.values())) / 2
    rooms: dict[SplitName, _Room] = {}
    for name, fraction in fractions.items():
        most_rows = max(1, round(fraction * num_rows))
        share = round(fraction * num_groups)
        most_groups = max(1, share, int(stretch * fraction * num_groups))
        rooms[name] = _Room(most_rows, most_groups, largest_group=max(1, most_rows // 2))
    return rooms


def _quotas(sizes: Mapping[object, int], num_rows: int) -> dict[object, int]:
    """Share `num_rows` out in proportion by largest remainder, at least one each where possible."""
    num_all = sum(sizes.values())
    exact = {label: num_rows * size / num_all for label, size in sizes.items()}
    quotas = {label: int(share) for label, share in exact.items()}
    if num_rows >= len(sizes):
        quotas = {label: max(1, quota) for label, quota in quotas.items()}
    order = sorted(sizes, key=lambda label: (quotas[label] - exact[label], str(label)))
    while (left := num_rows - sum(quotas.values())) != 0:
        movable = order[:left] if left > 0 else _richest(quotas, exact, -left)
        for label in movable:
            quotas[label] += 1 if left > 0 else -1
    return quotas


def _richest(quotas: Mapping[object, int], exact: Mapping[object, float], num: int) -> list[object]:
    """Give the labels that lie most above their share and can give up a row."""
    able = [label for label, quota in quotas.items() if quota > 1]
    return sorted(able, key=lambda label: (exact[label] - quotas[label], str(label)))[:num]


def _ranks(seed: int, keys: Iterable[str]) -> NDArray[np.uint64]:
    """Give a number for each key, by which they are put in an order that only the seed decides."""
    return np.array(array("Q", (_rank(seed, key) for key in keys)), dtype=np.uint64)


def _rank(seed: int, key: str) -> int:
    return hash_text(f"{seed}:{key}")
