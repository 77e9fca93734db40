"""Summarization: what is read, how it is asked, and which of several references counts."""

import pytest

from lushan.errors import DataError
from lushan.records import Example, Prediction, Row, TaskState
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
