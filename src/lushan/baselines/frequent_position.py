"""The choice that stands where the right one most often stands in the training rows."""

from collections import Counter

from lushan.baselines import Baseline
from lushan.data.splits import Parts
from lushan.records import Prediction, TaskState

TITLE = "Most frequent position"


def answer(parts: Parts, *, state: TaskState) -> Baseline:
    """Answer every question with the choice at the most frequent position; with the last where there are fewer.

    Of equally frequent positions the first is taken.
    """
    del state
    counts = Counter(each.extra["choices"].index(each.target) for each in parts.train)
    position, times = min(counts.items(), key=lambda item: (-item[1], item[0]))
    predictions: list[Prediction] = []
    for each in parts.test:
        choices = each.extra["choices"]
        predictions.append(Prediction(each.id, choices[min(position, len(choices) - 1)]))
    return Baseline(
        predictions,
        f"Always choice {position + 1}, which is right in {times:,} of {len(parts.train):,} training rows.",
    )
