"""Examples in a file are the examples that were put there, and take little memory."""

import datetime
import itertools
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import psutil
import pytest

from lushan.data import example_store
from lushan.data.example_store import (
    ContentHashes,
    ExampleStore,
    HashName,
    counted,
    hash_of,
    hashes_of,
    numbered,
    of_kinds,
    take,
)
from lushan.data.near import comparable, plain
from lushan.errors import RunError
from lushan.records import Answer, Example, Mention, Span, Triple

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
ROOM_FOR_ONE = 100
"""Characters: one kind of these examples is kept in memory, and no two are."""
CALL = {"type": "function", "function": {"name": "book", "arguments": {"at": [8.5, 10**20, True]}}}
MESSAGES = [
    {"role": "user", "content": "half \ud800 a\0 table?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL], "weight": 0},
]


@pytest.fixture(
    params=[(2, 2**20), (4096, 2**20), (2, ROOM_FOR_ONE), (4096, ROOM_FOR_ONE), (4096, 0)]
)
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ExampleStore:
    """All examples, read two at a time or at once, with room in memory for all that they share, or for less."""
    num_rows, num_characters = request.param
    monkeypatch.setattr(example_store, "_ROWS_PER_READ", num_rows)
    monkeypatch.setattr(example_store, "_MOST_KIND_CHARACTERS", num_characters)
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


def test_what_examples_have_is_numbered_and_counted_as_in_a_list(store: ExampleStore) -> None:
    for part in (store, store[3:], store[::-1], store[:0]):
        numbers, targets = numbered(part, lambda each: each.target)
        assert [targets[number] for number in numbers] == [each.target for each in part]
        assert targets == list(dict.fromkeys(each.target for each in part))
        assert counted(part, lambda each: each.target) == counted(
            list(part), lambda each: each.target
        )
    assert counted(store, lambda each: each.target)[0] == ("good", 4)


def test_numbers_of_64_bits_are_given_to_each_example(store: ExampleStore) -> None:
    def number(example: Example) -> int:
        return 2**64 - 1 - len(example.target or "")

    assert of_kinds(store[1:], number).tolist() == [number(each) for each in EXAMPLES[1:]]


def test_what_many_examples_share_is_looked_at_once() -> None:
    asked: list[Answer | None] = []

    def look(example: Example) -> int:
        asked.append(example.target)
        return len(asked)

    numbers = of_kinds(ExampleStore.collect(EXAMPLES * 3), look)
    assert numbers.tolist() == [1, 2, 1, 3, 4, 5, 6, 1] * 3
    assert asked == ["good", "bad", ("x", "y"), None, "good", ("x",)]


@pytest.mark.parametrize("num_characters", [2**20, 0])
@pytest.mark.parametrize(
    "target",
    [
        None,
        "",
        "half \ud800 a\0 character",
        (),
        ("good", "bad"),
        (Span(0, 3, "PER", "Ada"), Span(7, 10, "LOC", "Ulm", 0.25)),
        ("an answer of its own", Span(0, 3, "answer", "Ada")),
        (Triple(Mention("Ada", 0, 3), "born in", Mention("Ulm", 7, 10)),),
    ],
)
def test_every_kind_of_answer_comes_back_with_all_that_stands_beside_it(
    target: Answer | None, num_characters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra: dict[str, Any] = {
        "messages": MESSAGES,
        "numbers": (-1, 0.1, float("inf"), 2**70, True, None),
        "none": {},
    }
    examples = [
        Example("1", "Ada in Ulm", target, "a.json, row 1", given, labels, "Ada\x1fUlm")
        for given in ({}, extra)
        for labels in (None, (), ("a", "b"))
    ]
    monkeypatch.setattr(example_store, "_MOST_KIND_CHARACTERS", num_characters)
    # Two spans are equal where their texts are not: what is written of them tells.
    assert list(map(repr, ExampleStore.collect(examples))) == list(map(repr, examples))


def test_what_json_does_not_know_stays_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example_store, "_MOST_KIND_CHARACTERS", 0)
    dated = Example("9", "text", "a", extra={"call": {"when": datetime.date(2026, 3, 1)}})
    examples = [*EXAMPLES, dated, *EXAMPLES, dated]
    store = ExampleStore.collect(examples)
    assert list(store) == examples
    assert of_kinds(store, lambda each: "call" in each.extra).tolist() == ([0] * 8 + [1]) * 2


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


def test_one_of_the_hashes_is_read_alone(
    store: ExampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, found = store[1:], hashes_of(store[1:])
    num_bytes: list[int] = []
    read = example_store._NamelessFile.read

    def counted(file: Any, start: int, size: int) -> bytes:  # noqa: ANN401 - of the module
        num_bytes.append(size)
        return read(file, start, size)

    monkeypatch.setattr(example_store._NamelessFile, "read", counted)
    for name in get_args(HashName):
        assert np.array_equal(hash_of(part, name), getattr(found, name))
    assert num_bytes == [8 * len(store)] * 4
    assert np.array_equal(hash_of(list(part), "group"), found.group)


def test_hashes_are_named_as_they_stand_in_the_file() -> None:
    assert get_args(HashName) == tuple(each.name for each in fields(ContentHashes))


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


def labelled() -> Iterator[Example]:
    for number in range(20_000):
        yield Example(f"{number:016x}", f"{number} " * 40, "good", f"a.csv, row {number}")


def conversations() -> Iterator[Example]:
    for each in itertools.islice(labelled(), 8_000):
        extra = {"messages": [{"role": "user", "content": each.text} for _ in range(3)]}
        yield Example(each.id, each.text, each.text * 2, each.place, extra, ())


@pytest.mark.parametrize(
    ("examples", "most_shared_bytes"),
    [(labelled, 0), (conversations, 4 * example_store._MOST_KIND_CHARACTERS)],
)
def test_an_example_takes_less_than_30_bytes_of_memory(
    examples: Callable[[], Iterator[Example]], most_shared_bytes: int
) -> None:
    ExampleStore.collect(EXAMPLES)
    tracemalloc.start()
    store = ExampleStore.collect(examples())
    num_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_bytes < 30 * len(store) + most_shared_bytes
