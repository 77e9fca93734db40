"""Whether the right tools were called, with the right arguments; with intervals."""

import json
from collections.abc import Sequence

from lushan.metrics.statistics import accuracy
from lushan.records import Call, Interval


def call_intervals(
    truths: Sequence[Sequence[Call]],
    answers: Sequence[Sequence[Call]],
    *,
    may_call: Sequence[bool],
    seed: int,
) -> dict[str, Interval]:
    """Give shares of rows with their 95 % intervals; each only where there are rows that it is about.

    `call_accuracy` and `call_name_accuracy` are of the rows whose truth calls tools: the share whose answer makes the same
    calls (names and arguments; names), each as often, in any order. Of arguments neither spaces nor the order of fields
    count. `needless_calls` is of the rows that offer tools and whose truth calls none: the
    share whose answer calls one.

    Args:
        truths: The right calls of every row.
        answers: The calls of every answer.
        may_call: Whether a row offers tools.
        seed: Draws the resamples.
    """
    rows = list(zip(truths, answers, may_call, strict=True))
    calling = [(truth, answer) for truth, answer, _ in rows if truth]
    silent = [answer for truth, answer, offers in rows if offers and not truth]
    found: dict[str, Interval] = {}
    if calling:
        same = [_written(truth) == _written(answer) for truth, answer in calling]
        found["call_accuracy"] = accuracy(same, seed=seed)
        named = [_names(truth) == _names(answer) for truth, answer in calling]
        found["call_name_accuracy"] = accuracy(named, seed=seed)
    if silent:
        found["needless_calls"] = accuracy([bool(each) for each in silent], seed=seed)
    return found


def _names(calls: Sequence[Call]) -> list[str]:
    return sorted(each.name for each in calls)


def _written(calls: Sequence[Call]) -> list[str]:
    """Write calls so that equal ones are equal texts; to Python, `true` would be 1."""
    return sorted(json.dumps([each.name, each.arguments], sort_keys=True) for each in calls)
