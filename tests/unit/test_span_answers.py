"""Spans as a model writes them, and back."""

import itertools
import random
import re

import pytest

from lushan import span_answers
from lushan.backbones.tokenizer import Tokenizer
from lushan.records import Example, Span, TaskState
from lushan.span_answers import read_written_spans, write_spans
from tests.conftest import MakeTiny
from tests.written import Drawn, cut, drawn_answer, drawn_texts, is_allowed

LABELS = ("city", "name")


def example(text: str, *spans: tuple[str, str]) -> Example:
    found, start = [], 0
    for name, label in spans:
        start = text.index(name, start)
        found.append(Span(start, start + len(name), label, name))
        start += len(name)
    return Example("id", text, tuple(found))


@pytest.mark.parametrize(
    "one",
    [
        example("Ada left Ulm.", ("Ada", "name"), ("Ulm", "city")),
        example("Nobody came."),
        example("Ulm is in Ulm.", ("Ulm", "city"), ("Ulm", "city")),
        example(
            "\u5f20\u4e09\u5230\u5317\u4eac\U0001f680",
            ("\u5f20\u4e09", "name"),
            ("\u5317\u4eac", "city"),
        ),
        example("O'Hara (Cork) met e\u0301va.", ("O'Hara", "name"), ("e\u0301va", "name")),
    ],
)
def test_truth_comes_back_as_it_was_written(one: Example) -> None:
    assert read_written_spans(write_spans(one), one, LABELS) == one.target


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("none", []),
        ("", []),
        ("Ulm (city", []),
        ("Ulm (planet)", []),
        ("Rome (city); Ulm (city)", ["Ulm"]),
        ("Ul (city)", []),
        ("Da (name)", []),
        ("Ulm (city); Ulm (city)", ["Ulm"]),
        ("Ada left (name); Ada (name)", ["Ada left"]),
        ("Ulm (city) and Ada (name)", []),
        ("Ulm (city);Ada (name)", ["Ada", "Ulm"]),
    ],
)
def test_only_whole_words_of_the_text_with_known_labels_are_answers(
    written: str, names: list[str]
) -> None:
    one = example("Ada left Ulm.")
    assert [each.text for each in read_written_spans(written, one, LABELS)] == names


def test_no_answer_begins_or_ends_inside_a_word_or_overlaps_another() -> None:
    draw = random.Random(2)
    text = "Ada and Adam saw Ulm, Ulmen and \u5317\u4eac\u57ce today; (Ulm)"
    for _ in range(500):
        start = draw.randrange(len(text))
        parts = [
            f"{text[start : start + draw.randint(1, 8)]} ({draw.choice(LABELS)})" for _ in range(3)
        ]
        found = read_written_spans("; ".join(parts), Example("id", text, None), LABELS)
        for one, other in itertools.pairwise(found):
            assert one.end <= other.start
        for each in found:
            assert text[each.start : each.end] == each.text
            around = text[each.start - 1 : each.start + 1], text[each.end - 1 : each.end + 1]
            assert not any(re.fullmatch("[A-Za-z]{2}", pair) for pair in around)


@pytest.fixture
def tokenizer(tiny_folder: MakeTiny) -> Tokenizer:
    return Tokenizer.load(tiny_folder("llama"))


STRANGE = ("city", "na (me)")
"""Labels of which one has the marks that part a name from its label."""


def drawn_spans(one: Drawn, dice: random.Random) -> Example:
    spans: list[Span] = []
    first = 0
    while first < len(one.words) and dice.random() < 0.8:
        last, place = one.name(dice, first)
        spans.append(Span(*place, dice.choice(STRANGE)))
        first = last + 1
    return Example("id", one.example.text, tuple(spans))


def test_every_truth_may_be_written_and_comes_back(tokenizer: Tokenizer) -> None:
    dice = random.Random(0)
    for one in drawn_texts(7, most=150):
        example = drawn_spans(one, dice)
        written = write_spans(example)
        grammar = span_answers.grammar(example, TaskState(labels=STRANGE))
        assert is_allowed(f" {written}", grammar, tokenizer)
        found = read_written_spans(written, example, STRANGE)
        true = [(cut(example, (x.start, x.end)), x.label) for x in span_answers.spans_of(example)]
        # Which of several equal names is meant is a rule, so that the places may differ.
        assert sorted((cut(example, (x.start, x.end)), x.label) for x in found) == sorted(true)


def test_whatever_may_be_written_is_an_answer(tokenizer: Tokenizer) -> None:
    dice = random.Random(1)
    for one in drawn_texts(8, most=80):
        grammar = span_answers.grammar(one.example, TaskState(labels=STRANGE))
        written = drawn_answer(grammar, tokenizer, dice).strip()
        found = read_written_spans(written, one.example, STRANGE)
        assert (written == "none") is (not found)


@pytest.mark.parametrize(
    ("written", "places"),
    [
        ("Paris Hilton (name); Paris (city)", [0, 21]),
        ("Paris (city); Paris Hilton (name)", [0]),
        ("Paris (city); Paris (city)", [0, 21]),
        ("Paris (city); Paris (city); Paris (city); Paris (city)", [0, 21, 34]),
        ("saw (name); Paris (city)", [13, 21]),
        ("Rome (city); Paris (city); saw (name)", [13, 28, 34]),
    ],
)
def test_name_stands_for_its_first_free_place_behind_the_one_before_it(
    written: str, places: list[int]
) -> None:
    one = example("Paris Hilton saw all Paris, Rome, Paris")
    found = read_written_spans(written, one, LABELS)
    assert [each.start for each in found] == places


def test_bounds_are_those_of_the_examples_and_of_the_text(tokenizer: Tokenizer) -> None:
    one = example("Ada left Ulm.", ("Ada", "name"), ("Ulm", "city"))
    assert span_answers.bounds([one, example("Ulm")]) == (3, 4)
    assert span_answers.bounds([]) == (1, 1)
    state = TaskState(labels=LABELS, most_items=2, longest_name=4)
    text = "Ada, Ada, Ada, Ada"
    grammar = span_answers.grammar(example(text), state)
    assert is_allowed(" Ada (name); Ada (name)", grammar, tokenizer)
    assert not is_allowed(" Ada (name); Ada (name); Ada (name)", grammar, tokenizer)
    assert not is_allowed(" Ada, Ada (name)", grammar, tokenizer)
    loose = span_answers.grammar(example("Ada"), TaskState(labels=LABELS))
    assert not is_allowed(" Ada (name); Ada (name)", loose, tokenizer)


@pytest.mark.parametrize(
    ("num_characters", "written"),
    [(18, "Ada (name); New York (city)"), (17, "Ada (name); New York (city)"), (16, "Ada (name)"), (2, "none")],
)  # fmt: skip
def test_of_a_text_that_is_cut_the_spans_of_its_whole_words_are_left(
    num_characters: int, written: str
) -> None:
    whole = example("Ada left New York.", ("Ada", "name"), ("New York", "city"))
    assert write_spans(span_answers.as_read(whole, num_characters)) == written
