"""The token ledger: what became of every row and every token, per split and per class."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lushan.data.example_store import counted, numbered
from lushan.data.feature_store import columns_of
from lushan.data.overlap import PairCounts
from lushan.data.splits import Parts, labels_of
from lushan.errors import DataError
from lushan.records import Example, Features, SplitName

CUT_OFF = "answer cut off"
"""Why a row is left out that has nothing to learn in the part of its text that is read."""
NO_LABEL = "(none)"
"""The class under which rows without any label are counted."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What reaches the model."""

    num_examples: int = 0
    num_cut_examples: int = 0
    """Examples of which some tokens were left out."""
    num_cut_truths: int = 0
    """Examples of which the truth, or a part of it, was left out with them: it is not learned, and cannot be found."""
    num_documents: int = 0
    """What the examples became: several windows or questions per example are possible."""
    num_tokens: int = 0
    """Tokens that the model reads."""
    num_supervised: int = 0
    """What the loss is taken on: tokens of the answer, or one class per document."""
    num_masked_tokens: int = 0
    """Tokens that are read but not supervised, where the answer is text; 0 where a layer answers."""
    num_cut_tokens: int = 0
    """Tokens left out of documents that were too long."""
    num_padding_tokens: int = 0
    """Tokens without content; batches are packed, so there are none."""


@dataclass(frozen=True, slots=True)
class SplitLedger:
    """The rows and tokens of one split."""

    num_read: int
    """Rows of the file, or of the part that was cut off for this split."""
    num_dropped: dict[str, int]
    """Reason to number of rows."""
    total: Counts
    per_class: dict[str, Counts]
    """Label to what its examples give; an example with several labels counts for each."""
    num_added: int = 0
    """How many of the examples were written or labelled by a model (`data.added`)."""
    trains_stop_token: bool | None = None
    """Whether every document ends with a stop token that is supervised; None where a layer answers."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """The rows and tokens of a run."""

    splits: dict[SplitName, SplitLedger]
    overlap: tuple[PairCounts, ...] = ()
    """Rows that two splits had in common before any was taken out."""

    def as_dict(self) -> dict[str, Any]:
        """Give it as plain values for JSON."""
        return asdict(self)


def count_rows(
    parts: Parts,
    num_dropped: Mapping[SplitName, Mapping[str, int]],
    *,
    overlap: Sequence[PairCounts] = (),
    num_added: int = 0,
) -> Ledger:
    """Start a ledger with what is known before there are tokens.

    Args:
        parts: What is left.
        num_dropped: Split to reason to number of rows that were left out.
        overlap: What was found in two splits.
        num_added: How many of the training rows were written or labelled by a model.
    """
    splits: dict[SplitName, SplitLedger] = {
        name: _count_split(part, num_dropped.get(name, {}))
        for name, part in parts.as_dict().items()
    }
    splits["train"] = replace(splits["train"], num_added=num_added)
    return Ledger(splits, overlap=tuple(overlap))


def count_tokens(
    ledger: Ledger,
    split: SplitName,
    *,
    examples: Sequence[Example],
    features: Sequence[Features],
    stop_ids: Collection[int] = (),
) -> Ledger:
    """Give the ledger with the tokens of one split.

    Args:
        ledger: The ledger so far.
        split: Which split was encoded.
        examples: Its examples.
        features: What they became; `example_index` points into `examples`.
        stop_ids: Tokens that end an answer.
    """
    columns = _count_examples(features, len(examples))
    numbers, keys = numbered(examples, labels_of)
    totals = [np.bincount(numbers, weights=each, minlength=len(keys)) for each in columns]
    times = np.bincount(numbers, minlength=len(keys))
    total, per_class = Counts(), dict[str, Counts]()
    for number, labels in enumerate(keys):
        counts = Counts(int(times[number]), *(int(each[number]) for each in totals))
        total = _sum(total, counts)
        for label in labels or (NO_LABEL,):
            per_class[label] = _sum(per_class.get(label, Counts()), counts)
    before = ledger.splits[split]
    after = replace(
        before,
        total=total,
        per_class=dict(sorted(per_class.items())),
        trains_stop_token=_trains_stop_token(features, stop_ids),
    )
    return replace(ledger, splits={**ledger.splits, split: after})


def without_rows(
    ledger: Ledger, split: SplitName, *, reason: str, num_rows: int, num_added: int
) -> Ledger:
    """Give the ledger with some rows of a split counted as left out; what is left is still to be counted anew.

    Args:
        ledger: The ledger so far.
        split: Which split loses rows.
        reason: Why.
        num_rows: How many.
        num_added: How many of the rest were written or labelled by a model.
    """
    before = ledger.splits[split]
    dropped = {**before.num_dropped, reason: num_rows}
    after = replace(before, num_dropped=dropped, num_added=num_added)
    return replace(ledger, splits={**ledger.splits, split: after})


def notes_on_cuts(ledger: Ledger) -> list[str]:
    """Tell of rows that lost their truth, or a part of it, because the end of the text was cut off."""
    notes: list[str] = []
    if num_rows := ledger.splits["train"].num_dropped.get(CUT_OFF):
        notes.append(
            f"{num_rows:,} training rows are left out: the answer stands in what was cut off their text."
        )
    for name, split in ledger.splits.items():
        if num_rows := split.total.num_cut_truths:
            outcome = "it is not learned" if name == "train" else "it counts as missed"
            notes.append(
                f"{name}: of {num_rows:,} rows the truth, or a part of it, stands in what was cut off their text: {outcome}."
            )
    return notes


def refuse_without_signal(ledger: Ledger) -> None:
    """Stop before a run that could not learn anything.

    Raises:
        DataError: If nothing of the training split, or of one of its classes, is supervised, or if the
            model would not learn to stop.
    """
    train = ledger.splits["train"]
    if not train.total.num_supervised:
        raise DataError(
            f"Zero training signal: of {train.total.num_tokens:,} training tokens none is supervised. "
            "Nothing would be learned; look at the labels and at `data.over_length`."
        )
    silent = sorted(name for name, each in train.per_class.items() if not each.num_supervised)
    if silent:
        raise DataError(
            f"Zero training signal for `{silent[0]}`: none of its tokens is supervised. "
            "Look at its rows and at `data.over_length`."
        )
    if train.trains_stop_token is False:
        raise DataError(
            "The stop token is not supervised in every training document: the model would not learn "
            "to stop. Raise `model.max_length`, use `--answer head`, or, for conversations, a model "
            "whose chat template ends what the assistant says with a special token."
        )


def _count_split(part: Sequence[Example], num_dropped: Mapping[str, int]) -> SplitLedger:
    per_class: Counter[str] = Counter()
    for labels, times in counted(part, labels_of):
        for label in labels or (NO_LABEL,):
            per_class[label] += times
    return SplitLedger(
        num_read=len(part) + sum(num_dropped.values()),
        num_dropped={reason: times for reason, times in num_dropped.items() if times},
        total=Counts(num_examples=len(part)),
        per_class={label: Counts(num_examples=times) for label, times in sorted(per_class.items())},
    )


def _count_examples(features: Sequence[Features], num_examples: int) -> list[NDArray[Any]]:
    """Count for each example what follows `num_examples` in `Counts`, up to the tokens that were cut."""
    columns = columns_of(features)

    def per_example(values: NDArray[Any]) -> NDArray[Any]:
        return np.bincount(columns.example_indices, weights=values, minlength=num_examples)

    num_tokens = per_example(columns.lengths)
    num_supervised = per_example(columns.num_supervised())
    num_cut_tokens = per_example(columns.of_kinds(lambda kind: kind.num_cut_tokens))
    num_cut_items = per_example(columns.of_kinds(lambda kind: kind.num_cut_items))
    is_text = per_example(columns.of_kinds(_is_written)) > 0
    return [
        (num_cut_tokens > 0).astype(np.float64),
        (num_cut_items > 0).astype(np.float64),
        per_example(np.ones(len(features))),
        num_tokens,
        num_supervised,
        np.where(is_text, num_tokens - num_supervised, 0.0),
        num_cut_tokens,
    ]


def _is_written(kind: Features) -> bool:
    """Whether tokens of a document are learned, all from one on or here and there, and not what a head says of them."""
    here_and_there = kind.positions is not None and kind.target == -1 and not kind.branches
    return kind.targets_from >= 0 or here_and_there


def _sum(one: Counts, other: Counts) -> Counts:
    return Counts(
        num_examples=one.num_examples + other.num_examples,
        num_cut_examples=one.num_cut_examples + other.num_cut_examples,
        num_cut_truths=one.num_cut_truths + other.num_cut_truths,
        num_documents=one.num_documents + other.num_documents,
        num_tokens=one.num_tokens + other.num_tokens,
        num_supervised=one.num_supervised + other.num_supervised,
        num_masked_tokens=one.num_masked_tokens + other.num_masked_tokens,
        num_cut_tokens=one.num_cut_tokens + other.num_cut_tokens,
    )


def _trains_stop_token(features: Sequence[Features], stop_ids: Collection[int]) -> bool | None:
    columns = columns_of(features)
    targets_from = columns.of_kinds(lambda kind: kind.targets_from)
    last_learned = columns.of_kinds(_last_learned)
    if (np.maximum(targets_from, last_learned) < 0).all():
        return None
    last = columns.lengths - 1
    is_within = (targets_from >= 0) & (targets_from <= last)
    is_stop = np.isin(columns.last_tokens, list(stop_ids))
    return bool(((is_within | (last_learned == last)) & is_stop).all())


def _last_learned(kind: Features) -> int:
    """Index of the last token that is learned, where that is told by positions; -1 elsewhere."""
    return kind.positions[-1] + 1 if kind.positions and _is_written(kind) else -1
