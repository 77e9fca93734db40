"""The most frequent label (or set of labels) of the training rows, for every text."""

import math
from collections import Counter
from typing import Any

from lushan.baselines import Baseline
from lushan.data.splits import Parts
from lushan.errors import DataError
from lushan.records import Prediction, TaskState

TITLE = "Most frequent label"


def answer(parts: Parts, *, state: TaskState) -> Baseline:
    """Answer every text with the most frequent label (or set of labels) of the training rows.

    Of equally frequent ones the first in class order is taken. Probabilities are the shares of the
    training rows that have a label.

    Raises:
        DataError: If a training row has no label; names its place.
    """
    train = parts.train
    for each in train:
        if each.target is None:
            raise DataError(f"{each.place}: no label, but baselines learn from labels.")
    targets: list[Any] = [example.target for example in train]
    order = {label: place for place, label in enumerate(state.labels)}
    most = min(Counter(targets).items(), key=lambda item: (-item[1], _places(item[0], order)))
    chosen, count = most
    having = Counter(label for example in train for label in example.classes)
    shares = {label: having[label] / len(train) for label in state.labels}
    log_likelihood = math.log(count / len(train))
    predictions = [Prediction(each.id, chosen, shares, log_likelihood) for each in parts.test]
    shown = ", ".join(_labels_of(chosen)) or "no label"
    return Baseline(predictions, f"Always `{shown}`, as {count:,} of {len(train):,} training rows.")


def _labels_of(target: str | tuple[str, ...]) -> tuple[str, ...]:
    return (target,) if isinstance(target, str) else target


def _places(target: str | tuple[str, ...], order: dict[str, int]) -> tuple[int, ...]:
    return tuple(order[label] for label in _labels_of(target))
