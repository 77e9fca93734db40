"""The token ledger: what became of every row and every token, per split and per class."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lushan.data.overlap import PairCounts
from lushan.data.splits import Parts, labels_of
from lushan.errors import DataError
from lushan.records import Example, Features, SplitName

NO_LABEL = "(none)"
"""The class under which rows without any label are counted."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What reaches the model."""

    num_examples: int = 0
    num_cut_examples: int = 0
    """Examples of which some tokens were left out."""
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
    trains_stop_token: bool | None = None
    """Whether every document ends with the supervised stop token; None where a layer answers."""


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
) -> Ledger:
    """Start a ledger with what is known before there are tokens.

    Args:
        parts: What is left.
        num_dropped: Split to reason to number of rows that were left out.
        overlap: What was found in two splits.
    """
    splits: dict[SplitName, SplitLedger] = {
        name: _count_split(part, num_dropped.get(name, {}))
        for name, part in parts.as_dict().items()
    }
    return Ledger(splits, overlap=tuple(overlap))


def count_tokens(
    ledger: Ledger,
    split: SplitName,
    *,
    examples: Sequence[Example],
    features: Sequence[Features],
    stop_id: int | None = None,
) -> Ledger:
    """Give the ledger with the tokens of one split.

    Args:
        ledger: The ledger so far.
        split: Which split was encoded.
        examples: Its examples.
        features: What they became; `example_index` points into `examples`.
        stop_id: The model's stop token.
    """
    documents: dict[int, list[Features]] = defaultdict(list)
    for each in features:
        documents[each.example_index].append(each)
    total, per_class = Counts(), dict.fromkeys(_classes(examples), Counts())
    for index, example in enumerate(examples):
        counts = _of_documents(documents.get(index, []))
        total = _sum(total, counts)
        for label in labels_of(example) or (NO_LABEL,):
            per_class[label] = _sum(per_class[label], counts)
    before = ledger.splits[split]
    after = replace(
        before,
        total=total,
        per_class=per_class,
        trains_stop_token=_trains_stop_token(features, stop_id),
    )
    return replace(ledger, splits={**ledger.splits, split: after})


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
            "to stop. Raise `model.max_length`, or use `--answer head`."
        )


def _count_split(part: Sequence[Example], num_dropped: Mapping[str, int]) -> SplitLedger:
    per_class = dict.fromkeys(_classes(part), 0)
    for example in part:
        for label in labels_of(example) or (NO_LABEL,):
            per_class[label] += 1
    return SplitLedger(
        num_read=len(part) + sum(num_dropped.values()),
        num_dropped={reason: times for reason, times in num_dropped.items() if times},
        total=Counts(num_examples=len(part)),
        per_class={label: Counts(num_examples=times) for label, times in per_class.items()},
    )


def _classes(examples: Sequence[Example]) -> list[str]:
    return sorted({label for each in examples for label in labels_of(each) or (NO_LABEL,)})


def _of_documents(documents: Sequence[Features]) -> Counts:
    """Count what one example became."""
    num_tokens = sum(len(each.token_ids) for each in documents)
    num_supervised = sum(each.num_supervised for each in documents)
    num_cut_tokens = sum(each.num_cut_tokens for each in documents)
    is_text = any(each.targets_from >= 0 for each in documents)
    return Counts(
        num_examples=1,
        num_cut_examples=int(num_cut_tokens > 0),
        num_documents=len(documents),
        num_tokens=num_tokens,
        num_supervised=num_supervised,
        num_masked_tokens=num_tokens - num_supervised if is_text else 0,
        num_cut_tokens=num_cut_tokens,
    )


def _sum(one: Counts, other: Counts) -> Counts:
    return Counts(
        num_examples=one.num_examples + other.num_examples,
        num_cut_examples=one.num_cut_examples + other.num_cut_examples,
        num_documents=one.num_documents + other.num_documents,
        num_tokens=one.num_tokens + other.num_tokens,
        num_supervised=one.num_supervised + other.num_supervised,
        num_masked_tokens=one.num_masked_tokens + other.num_masked_tokens,
        num_cut_tokens=one.num_cut_tokens + other.num_cut_tokens,
    )


def _trains_stop_token(features: Sequence[Features], stop_id: int | None) -> bool | None:
    if all(each.targets_from < 0 for each in features):
        return None
    return all(
        0 <= each.targets_from < len(each.token_ids) and each.token_ids[-1] == stop_id
        for each in features
    )
