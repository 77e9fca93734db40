"""Entities of the training rows are found again, the longest first, and ambiguous ones are left out."""

from lushan.baselines.dictionary import answer
from lushan.data.splits import Parts
from lushan.records import Example, Span, TaskState


def example(text: str, **names: str) -> Example:
    """Mark names in a text; an underscore stands for a space."""
    marked = [(name.replace("_", " "), label) for name, label in names.items()]
    spans = [Span(text.index(n), text.index(n) + len(n), label, n) for n, label in marked]
    return Example(text, text, tuple(spans))


def found(train: list[Example], text: str) -> list[tuple[str, str]]:
    (prediction,) = answer(Parts(train, [], [example(text)]), state=TaskState()).predictions
    return [(each.text, each.label) for each in prediction.answer if isinstance(each, Span)]


TRAIN = [
    example("New York is far from York.", New_York="city", York="city"),
    example("New York Times and York again", New_York_Times="paper", York="city"),
    example("May came in May, not in May.", May="person"),
]


def test_the_longest_entry_is_taken_and_its_parts_are_not() -> None:
    text = "The New York Times of New York, York"
    assert found(TRAIN, text) == [
        ("New York Times", "paper"),
        ("New York", "city"),
        ("York", "city"),
    ]


def test_an_entry_is_found_as_whole_words_only() -> None:
    assert found(TRAIN, "Yorkshire and Newer York") == [("York", "city")]


def test_words_that_are_rarely_an_entity_are_left_out() -> None:
    assert found(TRAIN, "In May") == []


def test_the_most_frequent_label_of_an_entry_is_taken() -> None:
    train = [example("Lima", Lima=label) for label in ("bean", "city", "city")]
    assert found(train, "to Lima") == [("Lima", "city")]


def test_tokens_that_a_row_gave_are_its_words() -> None:
    words = {"words": [[0, 6], [7, 9]]}
    train = [Example("1", "U.S.A. is", (Span(0, 6, "place"),), extra=words)]
    test = Example("2", "U.S.A. is", None, extra=words)
    (prediction,) = answer(Parts(train, [], [test]), state=TaskState()).predictions
    assert prediction.answer == (Span(0, 6, "place"),)


def test_it_says_how_many_entries_it_has() -> None:
    described = answer(Parts(TRAIN, [], []), state=TaskState()).description
    assert described.startswith("3 entities of the training rows")
