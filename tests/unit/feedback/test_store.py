"""The table of feedback: each thing once, in order, in pages and streams, and which corrections count."""

import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lushan.database.connect import Database
from lushan.errors import ConflictError, DataError
from lushan.feedback import store as store_module
from lushan.feedback.store import Added, FeedbackStore, Tally
from tests.stores import fill, given, new_database


@pytest.fixture
def database(tmp_path: Path) -> Any:  # noqa: ANN401 - a generator fixture
    with new_database(tmp_path) as opened:
        yield opened


def add(database: Database, *, task: str = "classification", **values: object) -> Added:
    return FeedbackStore(database).add(given(**values), task=task)


def test_what_is_stored_comes_back(database: Database) -> None:
    values = {
        "id": "form-7",
        "request_id": "r-1",
        "model_version": "abc123",
        "input": {"text": "Caf\N{LATIN SMALL LETTER E WITH ACUTE}"},
        "prediction": ["a", {"b": 1.5}, None],
        "rating": "bad",
        "correction": [],
        "comment": "no",
        "source": "page",
    }
    added = add(database, task="tagging", **values)
    (stored,) = FeedbackStore(database).stream()
    assert stored == added.feedback
    assert {name: getattr(stored, name) for name in values} == values
    assert (stored.task, stored.model) == ("tagging", "reviews")
    assert timedelta(0) <= datetime.now(UTC) - stored.created_at < timedelta(minutes=1)


def test_same_feedback_with_its_id_is_stored_once(database: Database) -> None:
    first, again = (add(database, id="one", rating="bad", prediction=[1]) for _ in range(2))
    assert (first.is_new, again.is_new) == (True, False)
    assert again.feedback == first.feedback
    assert len(list(FeedbackStore(database).stream())) == 1


def test_version_that_was_not_named_is_that_of_the_first_answer(database: Database) -> None:
    store = FeedbackStore(database)
    first = store.add(given(id="one"), task="classification", version="a")
    again = store.add(given(id="one"), task="classification", version="b")
    assert (first.feedback.model_version, again.is_new) == ("a", False)
    with pytest.raises(ConflictError, match="`model_version` is not the same"):
        store.add(given(id="one", model_version="b"), task="classification")


def test_text_and_the_row_that_holds_it_are_one_input(database: Database) -> None:
    add(database, input="It rained.", correction="a")
    add(database, input={"text": "It rained."}, correction="b")
    corrected = FeedbackStore(database).corrected(task="classification")
    assert [each.correction for each in corrected] == ["b"]


def test_same_feedback_without_an_id_is_stored_each_time(database: Database) -> None:
    first, again = (add(database) for _ in range(2))
    assert first.is_new
    assert again.is_new
    assert first.feedback.id != again.feedback.id


@pytest.mark.parametrize(
    ("values", "field"),
    [({"input": "other"}, "input"), ({"correction": "bad"}, "correction"), ({"task": "x"}, "task")],
    ids=str,
)
def test_id_of_other_feedback_is_refused(
    database: Database, values: dict[str, Any], field: str
) -> None:
    add(database, id="one")
    with pytest.raises(ConflictError, match=f"The id `one` stands for .* `{field}` is not the"):
        add(database, id="one", **values)
    assert len(list(FeedbackStore(database).stream())) == 1


def test_pages_give_every_row_once_in_order(database: Database) -> None:
    fill(database, num_rows=7)
    store = FeedbackStore(database)
    pages = [store.page(limit=3)]
    while pages[-1]:
        pages.append(store.page(after=pages[-1][-1].id, limit=3))
    assert [len(page) for page in pages] == [3, 3, 1, 0]
    assert [each.id for page in pages for each in page] == [f"row-{n}" for n in range(7)]


def test_page_after_an_unknown_id_is_refused(database: Database) -> None:
    with pytest.raises(DataError, match="There is no feedback with the id `none`"):
        FeedbackStore(database).page(after="none")


def test_rows_of_one_model_are_found(database: Database) -> None:
    for model in ("a", "b", "a"):
        add(database, model=model)
    store = FeedbackStore(database)
    assert [each.model for each in store.page(model="a")] == ["a", "a"]
    assert [each.model for each in store.stream(model="b")] == ["b"]
    assert store.page(model="c") == []


def test_stream_reads_on_behind_every_chunk(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database, num_rows=6)
    monkeypatch.setattr(store_module, "PAGE_ROWS", 2)
    found = [each.id for each in FeedbackStore(database).stream()]
    assert found == [f"row-{number}" for number in range(6)]


def test_stream_sees_what_comes_while_it_runs_and_holds_nobody_up(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database, num_rows=2)
    monkeypatch.setattr(store_module, "PAGE_ROWS", 1)
    stream = FeedbackStore(database).stream()
    first = next(stream)
    add(database, id="late")
    assert [first.id, *(each.id for each in stream)] == ["row-0", "row-1", "late"]


def test_stream_keeps_a_chunk_in_memory_not_all(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "PAGE_ROWS", 4)
    for _ in range(60):
        add(database, input="x" * 100_000)
    tracemalloc.start()
    num_characters = sum(len(each.input) for each in FeedbackStore(database).stream())
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_characters == 6_000_000
    assert peak_bytes < 3_000_000


def test_last_correction_of_an_input_counts(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "PAGE_ROWS", 2)
    add(database, input="a", correction="1")
    add(database, input="b", correction="2")
    add(database, input="a", correction="3", model="other")
    add(database, input="a", correction=None, rating="good")
    add(database, input="a", correction="4", task="translation")
    store = FeedbackStore(database)
    found = [(each.input, each.correction) for each in store.corrected(task="classification")]
    assert found == [("b", "2"), ("a", "3")]
    of_model = store.corrected(task="classification", model="reviews")
    assert [(each.input, each.correction) for each in of_model] == [("a", "1"), ("b", "2")]


def test_corrections_that_come_while_others_are_read_count_the_next_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "PAGE_ROWS", 1)
    add(database, input="a", correction="1")
    add(database, input="b", correction="2")
    store = FeedbackStore(database)
    stream = store.corrected(task="classification")
    first = next(stream)
    add(database, input="a", correction="3")
    add(database, input="b", correction="4")
    assert [each.correction for each in (first, *stream)] == ["1", "2"]
    assert [each.correction for each in store.corrected(task="classification")] == ["3", "4"]


def test_tally_until_a_row_leaves_out_what_came_behind_it(database: Database) -> None:
    store = FeedbackStore(database)
    assert store.last_number() == 0
    add(database, rating="bad")
    until = store.last_number()
    add(database, rating="good")
    assert store.tally(until=until) == {"classification": Tally(1, 0, 1, 1)}


def test_tally_counts_each_task(database: Database) -> None:
    add(database, rating="bad")
    add(database, rating="good", correction=None)
    add(database, task="tagging", correction=[], model="other")
    store = FeedbackStore(database)
    counted = {"classification": Tally(2, 1, 1, 1), "tagging": Tally(1, 0, 0, 1)}
    assert store.tally() == counted
    assert store.tally(model="other") == {"tagging": Tally(1, 0, 0, 1)}
