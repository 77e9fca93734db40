"""Right calls: names and arguments, in any order; and calls where none was due."""

import pytest

from lushan.metrics.tool_calls import call_intervals
from lushan.records import Call

ULM = Call("weather", {"city": "Ulm", "days": [1, 2]})
BONN = Call("weather", {"city": "Bonn", "days": [1]})
ON = Call("light", {"on": True})


@pytest.mark.parametrize(
    ("truth", "answer", "right", "named"),
    [
        ([ULM], [Call("weather", {"days": [1, 2], "city": "Ulm"})], 1, 1),
        ([ULM], [BONN], 0, 1),
        ([ULM], [Call("weather", {"city": "Ulm", "days": [2, 1]})], 0, 1),
        ([ULM], [], 0, 0),
        ([ULM], [ULM, ULM], 0, 0),
        ([ULM, ON], [ON, ULM], 1, 1),
        ([ULM, ULM], [ULM, BONN], 0, 1),
        ([ON], [Call("light", {"on": 1})], 0, 1),
        ([ON], [ULM], 0, 0),
    ],
)
def test_call_is_right_with_its_name_and_arguments(
    truth: list[Call], answer: list[Call], right: float, named: float
) -> None:
    found = call_intervals([truth], [answer], may_call=[True], seed=0)
    assert {name: each.value for name, each in found.items()} == {
        "call_accuracy": right,
        "call_name_accuracy": named,
    }


def test_shares_are_of_the_rows_that_they_are_about() -> None:
    truths = [[ULM], [ON], [], [], []]
    answers = [[ULM], [BONN], [ON], [], [ON]]
    found = call_intervals(truths, answers, may_call=[True, True, True, True, False], seed=0)
    assert {name: each.value for name, each in found.items()} == {
        "call_accuracy": 0.5,
        "call_name_accuracy": 0.5,
        "needless_calls": 0.5,
    }
    assert found["call_accuracy"].low < 0.5 < found["call_accuracy"].high
    assert call_intervals([[]], [[]], may_call=[False], seed=0) == {}
