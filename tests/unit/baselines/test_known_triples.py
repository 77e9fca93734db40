"""Triples of the training rows are found where both of their names stand."""

from lushan.baselines.known_triples import answer
from lushan.data.splits import Parts
from lushan.records import Example, Mention, TaskState, Triple


def example(text: str, *triples: tuple[str, str, str]) -> Example:
    found = [
        Triple(
            Mention(head, text.index(head), text.index(head) + len(head)),
            label,
            Mention(tail, text.index(tail), text.index(tail) + len(tail)),
        )
        for head, label, tail in triples
    ]
    return Example(text, text, tuple(found))


def found(train: list[Example], text: str) -> list[tuple[str, str, str]]:
    (prediction,) = answer(Parts(train, [], [example(text)]), state=TaskState()).predictions
    triples = [each for each in prediction.answer if isinstance(each, Triple)]
    for each in triples:
        for part in (each.head, each.tail):
            assert text[part.start : part.end] == part.text
    return [(each.head.text, each.label, each.tail.text) for each in triples]


TRAIN = [
    example("Ada left New York.", ("Ada", "left", "New York")),
    example("Ada is in Ulm.", ("Ada", "is in", "Ulm"), ("Ulm", "has", "Ada")),
    example("Ada, not Bo, saw Ulm."),
    example("Ada or Ulm?"),
]


def test_triple_is_answered_where_both_names_stand_as_whole_words() -> None:
    assert found(TRAIN, "In New York, Ada") == [("Ada", "left", "New York")]
    assert found(TRAIN, "In New Yorkshire, Ada") == []
    assert found(TRAIN, "Adam in New York") == []


def test_triple_that_holds_in_fewer_than_half_of_its_texts_is_left_out() -> None:
    assert found(TRAIN, "Ada, Ulm") == []
    assert found(TRAIN[:3], "Ada, Ulm") == [("Ada", "is in", "Ulm"), ("Ulm", "has", "Ada")]


def test_chinese_names_are_found_by_their_characters() -> None:
    train = [example("\u5f20\u4e09\u5230\u5317\u4eac", ("\u5f20\u4e09", "x", "\u5317\u4eac"))]
    assert found(train, "\u5317\u4eac\u7684\u5f20\u4e09\u3002") == [
        ("\u5f20\u4e09", "x", "\u5317\u4eac")
    ]


def test_description_counts_what_is_kept() -> None:
    told = answer(Parts(TRAIN, [], [example("x")]), state=TaskState()).description
    assert told.startswith("1 triples of the training rows")
