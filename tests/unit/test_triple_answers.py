"""Triples as a model writes them, and back."""

import random

import pytest

from lushan import triple_answers
from lushan.backbones.tokenizer import Tokenizer
from lushan.records import Example, Mention, TaskState, Triple
from lushan.triple_answers import read_written_triples, write_triples
from tests.conftest import MakeTiny
from tests.written import Drawn, cut, drawn_answer, drawn_texts, is_allowed

LABELS = ("born in", "has", "is | in")
TEXT = "Ada was born in Ulm. Adam; Ada lives in Ulm."


@pytest.fixture
def tokenizer(tiny_folder: MakeTiny) -> Tokenizer:
    return Tokenizer.load(tiny_folder("llama"))


def triple(head: str, label: str, tail: str, text: str = TEXT) -> Triple:
    parts = [Mention(each, text.index(each), text.index(each) + len(each)) for each in (head, tail)]
    return Triple(parts[0], label, parts[1])


def drawn_triples(one: Drawn, dice: random.Random) -> Example:
    parts = [one.name(dice)[1] for _ in range(2 * dice.randint(0, 3))]
    names = [Mention(cut(one.example, each), *each) for each in parts]
    found = [
        Triple(x, dice.choice(LABELS), y) for x, y in zip(names[::2], names[1::2], strict=True)
    ]
    return Example("id", one.example.text, tuple(dict.fromkeys(found)))


def test_triples_are_written_in_the_order_of_their_heads_and_tails() -> None:
    target = (
        triple("Ulm", "has", "Ada"),
        triple("Ada", "has", "Ulm"),
        triple("Ada", "has", "born"),
    )
    written = "Ada | has | born; Ada | has | Ulm; Ulm | has | Ada"
    assert write_triples(Example("id", TEXT, target)) == written
    assert write_triples(Example("id", TEXT, ())) == "none"


@pytest.mark.parametrize(
    ("written", "triples"),
    [
        ("none", []),
        ("Ada | born in | Ulm", [("Ada", "born in", "Ulm")]),
        ("Ada | knows | Ulm", []),
        ("Ad | born in | Ulm", []),
        ("Ada | born in | Ul", []),
        ("Ada | born in | Ulm; Ada | has", [("Ada", "born in", "Ulm")]),
        ("Ada | born in | Ulm; Ada | born in | Ulm", [("Ada", "born in", "Ulm")]),
        ("Eve | has | Ulm; Ulm | has | Ada", [("Ulm", "has", "Ada")]),
        ("Adam; Ada | is | in | Ulm", [("Adam; Ada", "is | in", "Ulm")]),
        ("Ulm | has | Adam; Ada", [("Ulm", "has", "Adam; Ada")]),
        (
            "Ulm | has | Adam; Ada | has | Ulm",
            [("Ulm", "has", "Adam"), ("Ada", "has", "Ulm")],
        ),
    ],
)
def test_only_names_of_the_text_with_known_relations_are_answers(
    written: str, triples: list[tuple[str, str, str]]
) -> None:
    found = read_written_triples(written, Example("id", TEXT, None), LABELS)
    assert [(each.head.text, each.label, each.tail.text) for each in found] == triples


def test_head_stands_for_its_first_place_and_tail_for_one_that_is_not_the_heads() -> None:
    text = "Ada saw Ada and Bo"
    (one, other) = read_written_triples(
        "Ada | has | Ada; Bo | has | Bo", Example("id", text, None), LABELS
    )
    assert (one.head, one.head.start, one.tail.start, one.tail.end) == (one.tail, 0, 8, 11)
    assert other.head.start == other.tail.start == 16


def test_every_truth_may_be_written_and_comes_back(tokenizer: Tokenizer) -> None:
    dice = random.Random(0)
    for one in drawn_texts(5, most=150):
        example = drawn_triples(one, dice)
        state = TaskState(labels=LABELS, most_items=3)
        written = write_triples(example)
        assert is_allowed(f" {written}", triple_answers.grammar(example, state), tokenizer)
        found = read_written_triples(written, example, LABELS)
        assert set(found) == set(example.target or ())
        for each in found:
            for part in (each.head, each.tail):
                assert part.text == cut(example, (part.start, part.end))


def test_whatever_may_be_written_is_an_answer(tokenizer: Tokenizer) -> None:
    dice = random.Random(1)
    for one in drawn_texts(6, most=80):
        state = TaskState(labels=LABELS, most_items=2)
        written = drawn_answer(triple_answers.grammar(one.example, state), tokenizer, dice).strip()
        found = read_written_triples(written, one.example, LABELS)
        assert (written == "none") is (not found)


def test_bounds_are_those_of_the_examples_and_a_quarter_more(tokenizer: Tokenizer) -> None:
    example = Example("id", TEXT, (triple("Ada", "has", "was born"),))
    assert triple_answers.bounds([example, Example("id", TEXT, ())]) == (2, 11)
    state = TaskState(labels=LABELS, most_items=2, longest_name=11)
    grammar = triple_answers.grammar(example, state)
    assert is_allowed(" Ada | has | Ulm; Ada | has | Ada", grammar, tokenizer)
    assert not is_allowed(" Ada | has | Ulm; Ada | has | Ada; Ulm | has | Ada", grammar, tokenizer)
    assert not is_allowed(" Ada | has | Ada lives in", grammar, tokenizer)


@pytest.mark.parametrize(
    ("num_characters", "written"),
    [(44, "Ada | born in | Ulm; Ada | has | Ulm; Adam | has | Ada"), (20, "Ada | born in | Ulm; Ada | has | Ulm"), (18, "none")],
)  # fmt: skip
def test_of_a_text_that_is_cut_the_triples_of_names_that_stand_there_are_left(
    num_characters: int, written: str
) -> None:
    later = Triple(Mention("Ada", 27, 30), "has", Mention("Ulm", 40, 43))
    target = (triple("Ada", "born in", "Ulm"), later, triple("Adam", "has", "Ada"))
    part = triple_answers.as_read(Example("id", TEXT, target), num_characters)
    assert {*write_triples(part).split("; ")} == {*written.split("; ")}
