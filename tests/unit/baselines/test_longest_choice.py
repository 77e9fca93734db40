"""The baseline that takes the longest choice."""

from lushan.baselines.longest_choice import answer
from tests.unit.baselines.questions import STATE, parts, question


def test_longest_choice_is_taken_of_equal_ones_the_first() -> None:
    test = [question("x", ["a", "bbb", "cc"], 0), question("y", ["ee", "ff"], 1)]
    found = answer(parts([], test), state=STATE)
    assert [(each.id, each.answer) for each in found.predictions] == [
        (test[0].id, "bbb"),
        (test[1].id, "ee"),
    ]
