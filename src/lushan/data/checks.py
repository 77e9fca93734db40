"""What is looked at before any training: labels, repeats, contradictions; what blocks and what is told."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lushan.data.near import plain
from lushan.data.overlap import OverlapCounts, OverlapPolicy, find_overlap, remove_overlap
from lushan.data.splits import Parts, count_labels, labels_of
from lushan.errors import DataError
from lushan.records import Example, Span

__all__ = [
    "Findings",
    "OverlapCounts",
    "OverlapPolicy",
    "check_parts",
    "find_overlap",
    "remove_overlap",
]

NUM_SHOWN = 5
FEWEST_ROWS_PER_LABEL = 5
LARGEST_IMBALANCE = 20


@dataclass(frozen=True, slots=True)
class Contradiction:
    """One text that stands in a split with different labels."""

    split: str
    text: str
    labels: tuple[str, ...]
    places: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found and does not block: told, counted, left as it is."""

    num_repeats: dict[str, int]
    """Rows whose text stands earlier in the same split."""
    num_contradictions: dict[str, int]
    """Different texts of a split that have different labels."""
    contradictions: tuple[Contradiction, ...]
    """Some of them, to look at."""
    labels: dict[str, dict[str, int]]
    """Label to number of rows, the most frequent first."""
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Give it as plain values for JSON."""
        return asdict(self)


def check_parts(parts: Parts, *, needs_test: bool = True, weighs_classes: bool = True) -> Findings:
    """Check the rows, and their labels where they have some.

    Args:
        parts: The splits.
        needs_test: Whether there must be test rows.
        weighs_classes: Whether rare classes can be given more weight.

    Raises:
        DataError: If a part is empty, training has one answer only, or a later part knows labels
            that training does not.
    """
    _refuse_empty(parts, needs_test=needs_test)
    labels = {name: count_labels(part) for name, part in parts.as_dict().items()}
    _refuse_one_answer(parts.train)
    _refuse_unknown_labels(parts, labels["train"])
    num_repeats: dict[str, int] = {}
    contradictions: dict[str, list[Contradiction]] = {}
    for name, part in parts.as_dict().items():
        by_text = _by_text(part)
        num_repeats[name] = len(part) - len(by_text)
        contradictions[name] = _contradictions(name, by_text)
    num_contradictions = {name: len(found) for name, found in contradictions.items()}
    return Findings(
        num_repeats=num_repeats,
        num_contradictions=num_contradictions,
        contradictions=tuple(
            each for found in contradictions.values() for each in found[:NUM_SHOWN]
        ),
        labels={str(name): dict(counts.most_common()) for name, counts in labels.items()},
        warnings=(
            *_repeat_warnings(num_repeats, num_contradictions),
            *_label_warnings(labels["train"], labels["test"], weighs_classes=weighs_classes),
        ),
    )


def _refuse_empty(parts: Parts, *, needs_test: bool) -> None:
    for name, part in parts.as_dict().items():
        if not part and (needs_test or name != "test"):
            raise DataError(
                f"The {name} split has no rows left. Give it rows of its own that are not in a "
                "later split."
            )


def _refuse_one_answer(train: Sequence[Example]) -> None:
    answers = {example.target for example in train}
    only = next(iter(answers))
    # The same spans in every row still have to be found.
    if len(answers) < 2 and not any(isinstance(each, Span) for each in only or ()):
        raise DataError(
            f"All {len(train):,} training rows have the same label, {only!r}: there is nothing to "
            "learn. Give rows of at least two labels."
        )


def _refuse_unknown_labels(parts: Parts, known: Counter[str]) -> None:
    for name, part in parts.as_dict().items():
        unknown = [each for each in part if any(label not in known for label in labels_of(each))]
        if not unknown:
            continue
        counts = Counter(
            label for each in unknown for label in labels_of(each) if label not in known
        )
        listed = ", ".join(f"`{label}` ({times:,})" for label, times in counts.most_common(10))
        raise DataError(
            f"The {name} split has {len(counts)} label(s) that training never sees: {listed}; first in "
            f"{unknown[0].place}. Known: {_short(sorted(known))}. Add training rows for them, mend "
            "the spelling, or take these rows out."
        )


def _short(labels: Sequence[str]) -> str:
    listed = ", ".join(f"`{label}`" for label in labels[:20])
    return listed + (f" ... ({len(labels)} in all)" if len(labels) > 20 else "")


def _by_text(part: Sequence[Example]) -> dict[str, list[Example]]:
    by_text: dict[str, list[Example]] = defaultdict(list)
    for example in part:
        by_text[plain(example.text)].append(example)
    return by_text


def _contradictions(name: str, by_text: dict[str, list[Example]]) -> list[Contradiction]:
    return [
        Contradiction(
            name,
            text=examples[0].text,
            labels=tuple(sorted({" + ".join(labels_of(each)) for each in examples})),
            places=tuple(each.place for each in examples[:NUM_SHOWN]),
        )
        for examples in by_text.values()
        if len(examples) > 1 and len({each.target for each in examples}) > 1
    ]


def _repeat_warnings(num_repeats: dict[str, int], num_contradictions: dict[str, int]) -> list[str]:
    warnings = [
        f"{name}: {times:,} row(s) repeat a text of the same split; kept."
        for name, times in num_repeats.items()
        if times
    ]
    warnings += [
        f"{name}: {times:,} text(s) stand there with different labels; kept."
        for name, times in num_contradictions.items()
        if times
    ]
    return warnings


def _label_warnings(train: Counter[str], test: Counter[str], *, weighs_classes: bool) -> list[str]:
    warnings: list[str] = []
    rare = sorted(label for label, times in train.items() if times < FEWEST_ROWS_PER_LABEL)
    if rare:
        warnings.append(
            f"{len(rare)} label(s) have fewer than {FEWEST_ROWS_PER_LABEL} training rows: {_short(rare)}."
        )
    cases = Counter(label.casefold() for label in train)
    alike = sorted(label for label in train if cases[label.casefold()] > 1)
    if alike:
        warnings.append(f"Labels that differ only in capital letters: {_short(alike)}.")
    untested = sorted(set(train) - set(test))
    if untested:
        warnings.append(f"{len(untested)} label(s) are in no test row: {_short(untested)}.")
    if not weighs_classes or not train:
        return warnings
    if max(train.values()) > LARGEST_IMBALANCE * min(train.values()):
        warnings.append(
            f"The most frequent label has {max(train.values()):,} training rows, the rarest "
            f"{min(train.values()):,}; consider `--set task_settings.class_weights=balanced`."
        )
    return warnings
