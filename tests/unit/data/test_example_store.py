"""Examples in a file are the examples that were put there, and take little memory."""

import tracemalloc
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from lushan.data import example_store
from lushan.data.example_store import (
    ExampleStore,
    count_kinds,
    hashes_of,
    kinds_of,
    take,
)
from lushan.data.near import comparable, plain
from lushan.errors import RunError
from lushan.records import Example

EXAMPLES = [
    Example("1", "a warm film", "good", "a.csv, row 1"),
    Example("2", "A warm film!", "bad", "a.csv, row 2"),
    Example("3", "a warm  FILM", "good", "a.csv, row 3"),
    Example("4", "two\nlines and\0a NUL", ("x", "y"), "odd place"),
    Example("5", "half \ud800 a character", None, ""),
    Example("6", "\u5e90\u5c71", "good", "b.csv, row 1", {"question": [1, {"a": None}]}),
    Example("7", "a dull film", ("x",), "a.csv, row 9"),
    Example("8", "", "good", "a.csv, row 10"),
]


@pytest.fixture(params=[2, 4096])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ExampleStore:
    """All examples, read two at a time or at once."""
    monkeypatch.setattr(example_store, "_ROWS_PER_READ", request.param)
    return ExampleStore.collect(iter(EXAMPLES))


def test_what_is_read_is_what_was_stored(store: ExampleStore) -> None:
    assert list(store) == EXAMPLES
    assert [store[place] for place in range(-8, 8)] == EXAMPLES * 2


def test_parts_of_a_store_are_those_of_the_list(store: ExampleStore) -> None:
    assert list(store[2:]) == EXAMPLES[2:]
    assert list(store[::-3][1:]) == EXAMPLES[::-3][1:]
    places = np.array([6, 0, 5])
    assert list(take(store[1:], places)) == take(EXAMPLES[1:], places)
    assert list(take(store, np.array([], dtype=int))) == []


def test_a_place_that_is_not_there_is_refused(store: ExampleStore) -> None:
    with pytest.raises(IndexError):
        store[8]


def test_examples_far_apart_in_a_large_file_are_read_one_by_one(
    store: ExampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example_store, "_MOST_READ_BYTES", 10)
    assert list(store) == EXAMPLES


def test_kinds_are_counted_as_in_a_list(store: ExampleStore) -> None:
    for part in (store, store[3:]):
        assert count_kinds(part) == count_kinds(list(part))
    targets = [kind.target for kind, times in count_kinds(store) if times > 1]
    assert targets == ["good"]
    codes, kinds = kinds_of(store[1:4])
    assert [kinds[code].target for code in codes] == ["bad", "good", ("x", "y")]


def test_where_all_targets_differ_they_are_kept_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(example_store, "_MOST_SHARED_KINDS", 1)
    assert list(ExampleStore.collect(EXAMPLES)) == EXAMPLES


def test_hashes_are_equal_where_the_texts_are(store: ExampleStore) -> None:
    found = hashes_of(store)
    for form, hashes in ((plain, found.plain), (comparable, found.comparable)):
        forms = [form(each.text) for each in EXAMPLES]
        firsts = [hashes.tolist().index(each) for each in hashes]
        assert firsts == [forms.index(each) for each in forms]
    assert len(set(found.whole.tolist())) == len(EXAMPLES)
    of_list = hashes_of(list(store[1:]))
    assert np.array_equal(of_list.whole, found.whole[1:])
    assert np.array_equal(of_list.comparable, found.comparable[1:])


def test_the_place_of_an_example_does_not_change_its_hash() -> None:
    one, other = (hashes_of([Example("1", "a", "b", place)]).whole for place in "xy")
    assert one == other
    assert one != hashes_of([Example("1", "a", "c")]).whole
    assert one != hashes_of([Example("1", "a", "b", extra={"c": 1})]).whole


def test_the_file_is_closed_with_the_last_part() -> None:
    process = psutil.Process()
    num_open = process.num_fds()
    part = ExampleStore.collect(EXAMPLES)[3:]
    assert process.num_fds() == num_open + 1
    assert part[0] == EXAMPLES[3]
    del part
    assert process.num_fds() == num_open


def test_a_full_temporary_folder_is_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    full = partial(Path("/dev/full").open, "wb")
    monkeypatch.setattr(example_store._NamelessFile, "writer", lambda _: full())
    with pytest.raises(RunError, match=r"^The rows cannot be written to `.*TMPDIR"):
        ExampleStore.collect(EXAMPLES)


def test_an_example_takes_less_than_30_bytes_of_memory() -> None:
    def drawn() -> Iterator[Example]:
        for number in range(20_000):
            yield Example(f"{number:016x}", f"{number} " * 40, "good", f"a.csv, row {number}")

    ExampleStore.collect(EXAMPLES)
    tracemalloc.start()
    store = ExampleStore.collect(drawn())
    num_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_bytes < 30 * len(store)
