"""Names of a text: where they stand, and that a grammar lets nothing else pass."""

import pytest

from lushan.backbones.tokenizer import Tokenizer
from lushan.data.verbatim import Names, one_line, one_of, with_reserve
from lushan.records import Example
from tests.conftest import MakeTiny
from tests.written import is_allowed

TEXT = "Ada met Adam; Ada\nByron \u5317\u4eac\u57ce"


@pytest.fixture
def tokenizer(tiny_folder: MakeTiny) -> Tokenizer:
    return Tokenizer.load(tiny_folder("llama"))


def names(text: str = TEXT, **extra: object) -> Names:
    return Names(Example("id", text, None, "", extra))


def test_names_stand_where_words_begin_and_end() -> None:
    assert list(names().places("Ada")) == [0, 14]
    assert "Ada Byron" in names()
    assert "\u4eac\u57ce" in names()
    assert not any(each in names() for each in ("Ad", "da", "dam", "", " Ada", "Rome"))


def test_tokens_that_a_row_gave_are_its_words() -> None:
    given = names("Adam came", words=[[0, 3], [3, 4], [5, 9]])
    assert "Ada" in given
    assert given.num_words == 3


def test_every_character_keeps_its_place_on_one_line() -> None:
    assert one_line("a\r\nb\n") == "a  b "


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        (" none", True),
        (" none\n", True),
        ("none", False),
        (" none\n\n\n", False),
        (" Ada!", True),
        (" Ada!; Adam!\n\n", True),
        (" Ada!; Adam!; met!", False),
        (" Ada Byron!", True),
        (" Ada\nByron!", False),
        (" Byron Ada!", False),
        (" Ad!", False),
        (" \u4eac\u57ce!", True),
        (" \u5317\u57ce!", False),
        (" Ada met Adam!", True),
        (" Ada met Adam;!", False),
        (" !", False),
        (" Ada !", False),
    ],
)
def test_only_lists_of_names_may_be_written(
    answer: str, passes: bool, tokenizer: Tokenizer
) -> None:
    grammar = names().grammar('NAME "!"', [], most=2, longest=12)
    assert is_allowed(answer, grammar, tokenizer) is passes


def test_without_a_bound_names_are_as_long_as_the_text(tokenizer: Tokenizer) -> None:
    text = "word " * 50
    for longest, passes in ((0, True), (249, True), (248, False)):
        grammar = names(text).grammar('NAME "!"', [], most=1, longest=longest)
        assert is_allowed(f" {text.strip()}!", grammar, tokenizer) is passes


def test_text_without_words_has_no_names(tokenizer: Tokenizer) -> None:
    grammar = names("").grammar("NAME", [], most=1, longest=0)
    assert is_allowed(" none", grammar, tokenizer)
    assert not is_allowed(" x", grammar, tokenizer)


def test_long_texts_have_a_grammar_too(tokenizer: Tokenizer) -> None:
    text = " ".join(f"w{number}" for number in range(5_000))
    grammar = names(text).grammar('NAME "!"', [], most=3, longest=0)
    assert is_allowed(" w17 w18!; w4999!", grammar, tokenizer)
    assert not is_allowed(" w17 w19!", grammar, tokenizer)


def test_marks_in_texts_mean_themselves(tokenizer: Tokenizer) -> None:
    marks = one_of(('"', ".*"))
    grammar = names().grammar("NAME MARK", [f"MARK: {marks}"], most=1, longest=0)
    assert is_allowed(' Ada"', grammar, tokenizer)
    assert is_allowed(" Ada.*", grammar, tokenizer)
    assert not is_allowed(" Adaxx", grammar, tokenizer)


def test_answers_may_have_a_quarter_more_than_those_that_were_learned_from() -> None:
    assert [with_reserve(most) for most in (0, 1, 4, 8)] == [1, 2, 6, 11]
