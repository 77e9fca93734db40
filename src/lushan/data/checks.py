"""What is looked at before any training: labels, repeats, contradictions; what blocks and what is told."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from lushan.data.example_store import hash_of, hash_text, of_kinds, take
from lushan.data.overlap import OverlapCounts, OverlapPolicy, find_overlap, remove_overlap
from lushan.data.splits import Parts, count_labels, labels_of
from lushan.errors import DataError
from lushan.records import Example, Span, SplitName, Triple, plain_answer

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
ASKED = ("question", "relation", "source_lang", "target_lang", "length", "tools")
"""What of `extra` may make other answers to one text right; what the system says in `messages` does, too."""


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
    labels: dict[SplitName, Counter[str]] = {
        name: count_labels(part) for name, part in parts.as_dict().items()
    }
    _refuse_one_answer(parts.train)
    _refuse_unknown_labels(parts, labels)
    num_repeats: dict[str, int] = {}
    contradictions: dict[str, _Found] = {}
    for name, part in parts.as_dict().items():
        num_repeats[name], contradictions[name] = _repeats(name, part)
    num_contradictions = {name: found.times for name, found in contradictions.items()}
    return Findings(
        num_repeats=num_repeats,
        num_contradictions=num_contradictions,
        contradictions=tuple(each for found in contradictions.values() for each in found.shown),
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
                "later split, or keep those that are with `--overlap keep`."
            )


def _refuse_one_answer(train: Sequence[Example]) -> None:
    answers = of_kinds(train, _answer_hash)
    only = train[0].target
    what = "answer" if train[0].labels == () else "label"
    is_same = bool((answers == answers[0]).all())
    # The same spans in every row still have to be found.
    if is_same and not any(isinstance(each, Span | Triple) for each in only or ()):
        raise DataError(
            f"All {len(train):,} training rows have the same {what}, {only!r}: there is nothing to "
            f"learn. Give rows of at least two {what}s."
        )


def _answer_hash(example: Example) -> int:
    """Give 64 bits of an answer; equal ones have the same in one process."""
    return hash(example.target) % 2**64


def _refuse_unknown_labels(parts: Parts, labels: Mapping[SplitName, Counter[str]]) -> None:
    known = labels["train"]
    for name, part in parts.as_dict().items():
        if labels[name].keys() <= known.keys():
            continue
        is_unknown = of_kinds(
            part, lambda each: any(label not in known for label in labels_of(each))
        )
        (unknown,) = np.nonzero(is_unknown)
        counts = count_labels(take(part, unknown))
        for label in known:
            del counts[label]
        listed = ", ".join(f"`{label}` ({times:,})" for label, times in counts.most_common(10))
        raise DataError(
            f"The {name} split has {len(counts)} label(s) that training never sees: {listed}; first in "
            f"{part[int(unknown[0])].place}. Known: {_short(sorted(known))}. Add training rows for them, mend "
            "the spelling, or take these rows out."
        )


def _short(labels: Sequence[str]) -> str:
    listed = ", ".join(f"`{label}`" for label in labels[:20])
    return listed + (f" ... ({len(labels)} in all)" if len(labels) > 20 else "")


class _Found(NamedTuple):
    """Contradictions of one split."""

    times: int
    shown: list[Contradiction]


def _repeats(name: str, part: Sequence[Example]) -> tuple[int, _Found]:
    """Count the rows whose text stands earlier, and find those texts that have several labels."""
    if not part:
        return 0, _Found(0, [])
    # Different questions about one text are no repeats.
    questions = of_kinds(part, lambda each: hash_text(_question(each.extra)))
    hashes = hash_of(part, "plain") ^ questions
    # Equal texts stand together, in the order of the rows.
    order = np.argsort(hashes, kind="stable")
    is_first = np.diff(hashes[order], prepend=hashes[order[0]] ^ np.uint64(1)) != 0
    starts = np.append(np.flatnonzero(is_first), len(order))
    answers = of_kinds(part, _answer_hash)[order]
    groups = np.cumsum(is_first) - 1
    (differing,) = np.nonzero(answers != answers[starts[groups]])
    contradicted = np.unique(groups[differing])
    first_rows = order[starts[contradicted]]
    shown = contradicted[np.argsort(first_rows)][:NUM_SHOWN]
    found = [take(part, order[starts[group] : starts[group + 1]]) for group in shown]
    return len(part) - len(starts) + 1, _Found(
        len(contradicted), [_contradiction(name, each) for each in found]
    )


def _question(extra: Mapping[str, Any]) -> str:
    """Write what a row asks of its text."""
    messages: Sequence[Mapping[str, Any]] = extra.get("messages", ())
    systems = [each["content"] for each in messages if each["role"] == "system"]
    return repr([*(extra.get(name) for name in ASKED), *systems])


def _contradiction(name: str, examples: Sequence[Example]) -> Contradiction:
    return Contradiction(
        name,
        text=examples[0].shown,
        labels=tuple(
            sorted({
                " + ".join(labels_of(each)) or str(plain_answer(each.target)) for each in examples
            })
        ),
        places=tuple(each.place for each in examples[:NUM_SHOWN]),
    )


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
