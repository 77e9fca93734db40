"""The baseline that finds nothing."""

from lushan.baselines.nothing import answer
from lushan.data.splits import Parts
from lushan.records import Example, Prediction, TaskState


def test_nothing_is_answered_to_every_test_row_in_order() -> None:
    test = [Example("a", "one", None), Example("b", "two", None)]
    found = answer(Parts([], [], test), state=TaskState())
    assert found.predictions == [Prediction("a", ()), Prediction("b", ())]
