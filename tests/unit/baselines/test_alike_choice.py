"""The baseline that takes the choice with the words of the question."""

from lushan.baselines.alike_choice import answer
from lushan.data.splits import Parts
from lushan.records import Example
from tests.unit.baselines.questions import STATE, question


def answers(*test: Example) -> list[object]:
    train = [question("the fox is red", ["the hen", "the cow"], 0), *test]
    found = answer(Parts(train, [], list(test)), state=STATE)
    assert [each.id for each in found.predictions] == [each.id for each in test]
    return [each.answer for each in found.predictions]


def test_rare_word_of_the_question_decides() -> None:
    alike = question("Who feeds the FOX", ["the the the", "a keeper of the fox"], 0)
    assert answers(alike) == ["a keeper of the fox"]


def test_characters_are_words_where_a_script_has_no_spaces() -> None:
    chinese = question("\u7269\u54c1\u5f88\u8106", ["\u5b83\u5f88\u5c0f", "\u5b83\u5f88\u8106"], 0)
    assert answers(chinese) == ["\u5b83\u5f88\u8106"]


def test_first_choice_is_taken_where_nothing_is_shared() -> None:
    assert answers(question("why", ["no", "yes"], 1)) == ["no"]
