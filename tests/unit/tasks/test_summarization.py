"""Summarization: what is read, how it is asked, and which of several references counts."""

import random
from collections.abc import Sequence

import numpy as np
import pytest

from lushan.errors import DataError
from lushan.records import Example, Prediction, Row, TaskState
from lushan.tasks import Preparation
from lushan.tasks.summarization import Task

TASK = Task()
STATE = TaskState()


def read(**values: object) -> Example:
    return TASK.read(
        Row(
            {"document": "It rained. The road is shut.", "summary": "Road shut", **values},
            "a.csv",
            7,
        )
    )


def test_document_is_asked_about_and_may_be_cut() -> None:
    (found,) = TASK.render(read(), STATE, answer="generate", with_target=True)
    assert (
        found.text
        == "Summarize the text.\n\nText: It rained. The road is shut.\nSummary: Road shut"
    )
    assert found.text[slice(*found.cuttable)] == "It rained. The road is shut."
    assert [found.text[start:end] for start, end in found.supervised] == [" Road shut"]


def test_best_of_several_references_counts() -> None:
    example = read(references=["Road shut", "After rain the road is closed"])
    prediction = Prediction(example.id, "After rain the road is closed")
    assert TASK.score([prediction], [example], STATE).correct[0] == pytest.approx(1)
    assert TASK.score([prediction], [read()], STATE).correct[0] < 0.5


def test_summary_counts_beside_its_references() -> None:
    example = read(references=["After rain the road is closed"])
    for answer in ("Road shut", "After rain the road is closed"):
        scores = TASK.score([Prediction(example.id, answer)], [example], STATE)
        assert scores.correct[0] == pytest.approx(1)


@pytest.mark.parametrize("value", ["one", [], ["a", 3], {}])
def test_references_that_are_no_list_of_texts_are_refused(value: object) -> None:
    with pytest.raises(
        DataError, match=r"a\.csv, row 7: column `references` must hold a list of texts"
    ):
        read(references=value)


def test_summary_longer_than_its_document_is_told() -> None:
    assert TASK.notes([read(), read(document="Rain.")]) == [
        "1 summaries are longer than their documents."
    ]
    assert TASK.notes([read()]) == []


WORDS = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]


def with_lengths(sizes: Sequence[int]) -> list[Example]:
    """Give examples with summaries of so many words."""
    return [read(document=f"Text {n}.", summary=" ".join(WORDS[:n])) for n in sizes]


def controlled(*sizes: int) -> TaskState:
    preparation = Preparation(num_shots=1, length_control=True)
    return TASK.prepare(with_lengths(sizes), preparation, multi_label=False)


def test_short_medium_and_long_are_the_middles_of_the_thirds_of_the_training_summaries() -> None:
    draw = random.Random(0)
    for _ in range(50):
        sizes = [draw.randint(1, 12) for _ in range(draw.randint(1, 40))]
        expected = np.quantile(sizes, [1 / 6, 1 / 2, 5 / 6], method="inverted_cdf")
        assert controlled(*sizes).lengths == tuple(expected)
    plain = TASK.prepare(with_lengths([1, 2]), Preparation(), multi_label=False)
    assert plain.lengths == ()


@pytest.mark.parametrize(
    ("given", "told"),
    [({}, 5), ({"length": "short"}, 2), ({"length": "Long "}, 9), ({"length": "7"}, 7)],
)
def test_wanted_length_is_told_and_the_truth_is_not_looked_at(
    given: dict[str, object], told: int
) -> None:
    state = controlled(2, 5, 9)
    example = read(**given)
    shots = with_lengths([3])
    (found,) = TASK.render(example, state, answer="generate", with_target=False, shots=shots)
    assert found.text == (
        "Summarize the text.\n\nText: Text 3.\nLength: 3 words\nSummary: one two three\n\n"
        f"Text: It rained. The road is shut.\nLength: {told} words\nSummary:"
    )
    assert found.text[slice(*found.cuttable)] == "It rained. The road is shut."


def test_training_tells_the_length_of_the_summary_unless_the_row_wants_another() -> None:
    state = controlled(2, 5, 9)
    for given, told in (({"summary": "Road shut after rain"}, 4), ({"length": 6}, 6)):
        (found,) = TASK.render(read(**given), state, answer="generate", with_target=True)
        assert f"\nLength: {told} words\nSummary: Road shut" in found.text


def test_share_of_summaries_that_keep_to_their_length_is_measured() -> None:
    state = controlled(2, 5, 10)
    examples = [read(), read(length="long"), read(length="long"), read(length=1)]
    answers = [" ".join(WORDS[:size]) for size in (7, 8, 7, 4)]
    predictions = [Prediction(x.id, y) for x, y in zip(examples, answers, strict=True)]
    scores = TASK.score(predictions, examples, state).metrics
    assert scores["length_satisfaction"].value == 0.5  # a fifth, and at least two words
    assert "length_satisfaction" not in TASK.score(predictions, examples, STATE).metrics


def test_length_that_the_model_did_not_learn_or_that_is_none_is_refused() -> None:
    with pytest.raises(DataError, match=r"row 7: column `length` has no effect.*length_control"):
        TASK.render(read(length="short"), STATE, answer="generate", with_target=False)
    for wrong in ("tiny", 0, 2.5, "-3"):
        with pytest.raises(DataError, match=r"row 7: column `length` must hold `short`, `medium`"):
            read(length=wrong)
    assert read(length="short").id != read(length="long").id != read().id
