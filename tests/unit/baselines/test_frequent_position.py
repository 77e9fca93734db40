"""The baseline that always takes the same position."""

from lushan.baselines.frequent_position import answer
from tests.unit.baselines.questions import STATE, parts, question


def test_most_frequent_position_is_taken_and_the_last_where_there_are_fewer() -> None:
    train = [question(str(n), ["a", "b", "c"], right) for n, right in enumerate((2, 0, 2, 1))]
    test = [question("x", ["a", "b", "c", "d"], 0), question("y", ["e", "f"], 0)]
    found = answer(parts(train, test), state=STATE)
    assert [each.answer for each in found.predictions] == ["c", "f"]
    assert [each.id for each in found.predictions] == [each.id for each in test]
    assert found.description == "Always choice 3, which is right in 2 of 4 training rows."


def test_of_equally_frequent_positions_the_first_is_taken() -> None:
    train = [question("1", ["a", "b"], 1), question("2", ["a", "b"], 0)]
    (only,) = answer(parts(train, train[:1]), state=STATE).predictions
    assert only.answer == "a"
