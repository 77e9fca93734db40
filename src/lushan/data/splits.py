"""Train, validation and test: stratified, and decided by the content of a row, not by its place."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lushan.data.near import comparable
from lushan.errors import DataError
from lushan.records import SPLIT_NAMES, Example, SplitName

NUM_NAMED = 10


@dataclass(frozen=True, slots=True)
class Parts:
    """The examples of a task, in three parts."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]

    def of(self, name: SplitName) -> list[Example]:
        """Give one part by its name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    def as_dict(self) -> dict[SplitName, list[Example]]:
        """Give all parts by name, in order."""
        return {name: self.of(name) for name in SPLIT_NAMES}


def split(
    examples: Sequence[Example], *, validation_fraction: float, test_fraction: float, seed: int
) -> Parts:
    """Cut one list into parts with the same shares of labels; each part keeps the order of the list.

    Texts that are equal but for case, space and punctuation stay together. The same rows and seed give
    the same parts, whatever the order of the rows. A fraction of 0 leaves that part empty.

    Raises:
        DataError: If a label has too few different texts to be in every part.
    """
    fractions = {"test": test_fraction, "validation": validation_fraction}
    wanted = {name: fraction for name, fraction in fractions.items() if fraction > 0}
    groups = _groups(examples)
    home: dict[str, str] = {}
    for members in _strata(examples, groups, num_needed=len(wanted) + 1):
        ordered = sorted(members, key=lambda key: _rank(seed, key))
        home |= _deal({key: len(groups[key]) for key in ordered}, wanted)
    part_of = {place: home[key] for key, places in groups.items() for place in places}
    parts: dict[str, list[Example]] = {name: [] for name in SPLIT_NAMES}
    for place, example in enumerate(examples):
        parts[part_of[place]].append(example)
    return Parts(**parts)


def subsample(examples: Sequence[Example], num_rows: int, *, seed: int) -> list[Example]:
    """Draw rows with the same shares of labels; every label keeps one where there is room.

    The draw is decided by content and seed; what is drawn stands in the order of the list.
    """
    if num_rows >= len(examples):
        return list(examples)
    by_label: dict[object, list[int]] = defaultdict(list)
    for place, example in enumerate(examples):
        by_label[_stratum_key(example)].append(place)
    for places in by_label.values():
        places.sort(key=lambda place: _rank(seed, examples[place].id))
    quotas = _quotas({label: len(places) for label, places in by_label.items()}, num_rows)
    taken = sorted(place for label, places in by_label.items() for place in places[: quotas[label]])
    return [examples[place] for place in taken]


def _stratum_key(example: Example) -> object:
    """Give what is drawn in proportion: the label, or the set of labels."""
    labels = labels_of(example)
    return labels[0] if isinstance(example.target, str) and labels else labels


def stratum_of(example: Example, frequencies: Mapping[str, int]) -> str:
    """Give the label by which an example is dealt: of several labels the rarest."""
    return min(labels_of(example), key=lambda label: (frequencies[label], label), default="")


def labels_of(example: Example) -> tuple[str, ...]:
    """Give the labels of an example: one, several, or none."""
    return example.classes


def count_labels(examples: Iterable[Example]) -> Counter[str]:
    """Give how many examples have each label."""
    return Counter(label for example in examples for label in labels_of(example))


def _groups(examples: Sequence[Example]) -> dict[str, list[int]]:
    """Put the places of texts together that must not be separated."""
    groups: dict[str, list[int]] = defaultdict(list)
    for place, example in enumerate(examples):
        groups[comparable(example.text)].append(place)
    return groups


def _strata(
    examples: Sequence[Example], groups: Mapping[str, list[int]], *, num_needed: int
) -> list[list[str]]:
    """Give the groups of each label. Labels with too few are refused; of several labels, go to train."""
    frequencies = count_labels(examples)
    strata: dict[str, list[str]] = defaultdict(list)
    for key, places in groups.items():
        labels = Counter(stratum_of(examples[place], frequencies) for place in places)
        strata[max(sorted(labels), key=labels.__getitem__)].append(key)
    small = sorted(label for label, keys in strata.items() if len(keys) < num_needed)
    if small and not any(isinstance(example.target, tuple) for example in examples):
        raise DataError(
            f"Too few rows to split: {len(small)} label(s) have fewer than {num_needed} different "
            f"texts: {_named(small)}. Add rows, take these labels out, or give the data as "
            "train, validation and test files."
        )
    return [strata[label] for label in sorted(strata)]


def _named(labels: Sequence[str]) -> str:
    listed = ", ".join(f"`{label}`" for label in labels[:NUM_NAMED])
    return listed + (" ..." if len(labels) > NUM_NAMED else "")


def _deal(sizes: Mapping[str, int], fractions: Mapping[str, float]) -> dict[str, str]:
    """Give each group of one label a part; no part stays empty where there are enough groups.

    Args:
        sizes: Group to its number of rows, in random order.
        fractions: Part to its share of the rows; the rest is for training.
    """
    if len(sizes) <= len(fractions):
        return dict.fromkeys(sizes, "train")
    num_rows = sum(sizes.values())
    room = {name: max(1, round(fraction * num_rows)) for name, fraction in fractions.items()}
    home: dict[str, str] = {}
    for key, size in sizes.items():
        home[key] = next((name for name in fractions if room[name] >= size), "train")
        if home[key] != "train":
            room[home[key]] -= size
    for name in (*fractions, "train"):
        held = Counter(home.values())
        if name not in held:
            richest = max(held, key=held.__getitem__)
            home[min((key for key in home if home[key] == richest), key=sizes.__getitem__)] = name
    return home


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


def _rank(seed: int, key: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
