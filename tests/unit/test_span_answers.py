"""Spans as a model writes them, and back."""

import itertools
import random
import re

import pytest

from lushan.records import Example, Span
from lushan.span_answers import read_written_spans, write_spans

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
