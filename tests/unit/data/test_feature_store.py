"""Tokens in files are the tokens that were put there, are found again, and do not fill the disk."""

import dataclasses
import os
import shutil
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from lushan.data import chunks, feature_store
from lushan.data.feature_store import (
    EncodedCache,
    FeatureStore,
    Joined,
    columns_of,
    distinct_tokens,
    example_indices_of,
    lengths_of,
)
from lushan.errors import RunError
from lushan.records import Example, Features, ToolForm

EXAMPLES = [Example(str(number), f"text {number}", "a", f"row {number}") for number in range(7)]


def encode(examples: Sequence[Example], *, largest: int = 65_535) -> list[Features]:
    """Give two documents of every second example, with all kinds of values."""
    return [
        Features(
            (largest, *range(number + window)),
            example.place,
            index,
            target=(0, 1, number) if number % 3 else number,
            targets_from=number - 2,
            positions=(0, number) if number % 2 else None,
            units=((0, 1), (number, number)) if number % 2 else (),
            branches=((1, 7), (2, number)) if number % 2 else (),
            candidate=window,
            num_cut_tokens=number,
            num_cut_items=number,
            weight=1 / (number + 1),
            grammar=f'start: "{number}"' if number % 2 else "",
            tool_form=ToolForm("<", ">", "name", "arguments", number) if number % 2 else None,
        )
        for index, example in enumerate(examples)
        for number in [int(example.id)]
        for window in range(1 + number % 2)
    ]


def refuse(_: Sequence[Example]) -> list[Features]:
    raise AssertionError("encoded again")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EncodedCache:
    """An empty folder, written three examples at a time."""
    monkeypatch.setattr(chunks, "ROWS_PER_CHUNK", 3)
    return EncodedCache(tmp_path / "tokens", 1e9)


def stored(cache: EncodedCache, name: str = "one") -> Sequence[Features]:
    return cache.features(name, EXAMPLES, encode, vocabulary_size=65_536)


def names(cache: EncodedCache) -> list[str]:
    return sorted(each.name for each in cache.folder.iterdir())


def test_what_is_read_is_what_was_stored(cache: EncodedCache) -> None:
    found, expected = stored(cache), encode(EXAMPLES)
    assert isinstance(found, FeatureStore)
    assert list(found) == expected
    assert found[-1] == expected[-1]
    assert found[2:5] == expected[2:5]
    assert names(cache) == ["one"]


def test_every_field_of_features_was_tried() -> None:
    usual = Features((1,), "", 0)
    fields = {each.name for each in dataclasses.fields(Features)}
    assert fields == {
        name
        for name in fields
        if any(getattr(each, name) != getattr(usual, name) for each in encode(EXAMPLES))
    }


def test_equal_examples_are_read_and_not_encoded_again(cache: EncodedCache) -> None:
    first = list(stored(cache))
    moved = [dataclasses.replace(each, place=f"moved {each.place}") for each in EXAMPLES]
    found = cache.features("one", moved, refuse, vocabulary_size=65_536)
    assert list(found) == [dataclasses.replace(each, place=f"moved {each.place}") for each in first]
    assert cache.notes == []


def test_tokens_of_a_large_vocabulary_are_whole(cache: EncodedCache) -> None:
    found = cache.features(
        "one", EXAMPLES, lambda some: encode(some, largest=262_143), vocabulary_size=262_144
    )
    assert found[0].token_ids[0] == 262_143


@pytest.mark.parametrize("num_bytes", [2**20, 300, 0])
def test_what_documents_have_in_common_is_written_once_however_little_stays_in_memory(
    num_bytes: int, cache: EncodedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_store, "_MOST_KEPT_BYTES", num_bytes)
    examples = EXAMPLES * 3
    found = cache.features("one", examples, encode, vocabulary_size=65_536)
    assert list(found) == list(found) == encode(examples)
    assert len(columns_of(found).kinds) == len(columns_of(encode(EXAMPLES)).kinds)


def test_kinds_that_are_all_different_are_not_in_memory_at_once(
    cache: EncodedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_store, "_MOST_KEPT_BYTES", 2**13)

    def encode_long(some: Sequence[Example]) -> list[Features]:
        starts = [1000 * int(each.id) for each in some]
        return [
            Features((1,), "", index, positions=tuple(range(start, start + 500)))
            for index, start in enumerate(starts)
        ]

    examples = [Example(str(number), "", "a") for number in range(200)]
    tracemalloc.start()
    found = columns_of(cache.features("one", examples, encode_long, vocabulary_size=10))
    lengths = found.of_kinds(lambda kind: kind.num_supervised)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert lengths.tolist() == [500] * 200
    assert most_bytes < 2**20


def test_columns_are_those_of_a_list(cache: EncodedCache) -> None:
    documents = encode(EXAMPLES)
    for found in (columns_of(stored(cache)), columns_of(documents)):
        assert found.lengths.tolist() == [len(each.token_ids) for each in documents]
        assert found.num_supervised().tolist() == [each.num_supervised for each in documents]
        assert found.of_kinds(lambda kind: kind.weight).tolist() == [
            each.weight for each in documents
        ]
        assert found.last_tokens.tolist() == [each.token_ids[-1] for each in documents]


def test_lengths_and_examples_are_those_of_a_list(cache: EncodedCache) -> None:
    found = stored(cache)
    assert np.array_equal(lengths_of(found), lengths_of(encode(EXAMPLES)))
    tokens = sorted({token for each in encode(EXAMPLES) for token in each.token_ids})
    assert distinct_tokens(found).tolist() == distinct_tokens(list(found)).tolist() == tokens
    assert np.array_equal(example_indices_of(found), example_indices_of(encode(EXAMPLES)))


def test_what_was_not_used_for_longest_makes_room(cache: EncodedCache) -> None:
    for age_seconds, name in ((3, "old"), (2, "older"), (1, "young")):
        stored(cache, name)
        used_at = time.time() - 1000 * age_seconds
        os.utime(cache.folder / name, (used_at, used_at))
    stored(cache, "old")  # is used again
    num_bytes = sum(file.stat().st_size for file in (cache.folder / "old").iterdir())
    small = EncodedCache(cache.folder, 3.5 * num_bytes)
    stored(small, "new")
    assert names(cache) == ["new", "old", "young"]
    assert "1 earlier data set" in small.notes[0]


def test_what_is_larger_than_the_limit_is_not_kept(cache: EncodedCache) -> None:
    small = EncodedCache(cache.folder, 10)
    assert list(stored(small)) == encode(EXAMPLES)
    assert names(small) == []
    assert "`data.cache_gigabytes`" in small.notes[0]


def test_a_full_disk_is_told(cache: EncodedCache, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=2**29)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert list(stored(cache)) == encode(EXAMPLES)
    assert "less than 1 GB" in cache.notes[0]
    assert names(cache) == []


def test_a_disk_that_fills_up_while_it_is_written_is_told_by_name_and_left_clean(
    cache: EncodedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_up(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_store._Writer, "add", fill_up)
    with pytest.raises(
        RunError, match=r"^The tokens cannot be written to `.*tokens`.*LUSHAN_CACHE"
    ):
        stored(cache)
    assert names(cache) == []


def test_without_a_limit_above_zero_nothing_is_kept_and_nothing_told(cache: EncodedCache) -> None:
    without = EncodedCache(cache.folder, 0)
    assert list(stored(without)) == encode(EXAMPLES)
    assert names(without) == without.notes == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = EncodedCache(tmp_path / "file" / "tokens", 1e9)
    assert list(stored(cache)) == encode(EXAMPLES)
    assert "cannot be written" in cache.notes[0]


def test_an_entry_that_cannot_be_named_is_told_and_used(
    cache: EncodedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_name(*_: object) -> None:
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse_name)
    assert list(stored(cache)) == encode(EXAMPLES)
    assert "Permission denied" in cache.notes[0]
    assert names(cache) == []


def test_a_failure_leaves_nothing_and_what_a_killed_run_left_is_removed(
    cache: EncodedCache,
) -> None:
    with pytest.raises(AssertionError, match="encoded again"):
        cache.features("one", EXAMPLES, refuse, vocabulary_size=10)
    assert names(cache) == []
    for age_seconds, name in ((10, "a.unfinished"), (100_000, "b.unfinished")):
        (cache.folder / name).mkdir()
        used_at = time.time() - age_seconds
        os.utime(cache.folder / name, (used_at, used_at))
    stored(cache)
    assert names(cache) == ["a.unfinished", "one"]


@pytest.mark.parametrize("broken", ["tokens", "ends", "about.json"])
def test_an_entry_that_lost_a_piece_is_made_again(cache: EncodedCache, broken: str) -> None:
    stored(cache)
    if broken == "about.json":
        (cache.folder / "one" / broken).unlink()
    else:
        os.truncate(cache.folder / "one" / broken, 4)
    assert list(stored(cache)) == encode(EXAMPLES)
    assert list(cache.features("one", EXAMPLES, refuse, vocabulary_size=65_536)) == encode(EXAMPLES)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"\xff"])
def test_an_entry_whose_description_is_broken_is_made_again(
    cache: EncodedCache, content: bytes
) -> None:
    stored(cache)
    (cache.folder / "one" / "about.json").write_bytes(content)
    assert list(stored(cache)) == encode(EXAMPLES)
    assert list(cache.features("one", EXAMPLES, refuse, vocabulary_size=65_536)) == encode(EXAMPLES)
    assert cache.notes == []


def test_an_entry_of_another_user_that_cannot_be_read_is_told_and_left(
    cache: EncodedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(cache)
    read = Path.read_text

    def read_own(file: Path, **options: str) -> str:
        if file.parent.name == "one":
            raise PermissionError(13, "Permission denied", str(file))
        return read(file, **options)

    monkeypatch.setattr(Path, "read_text", read_own)
    assert list(stored(cache)) == encode(EXAMPLES)
    assert "Permission denied" in cache.notes[0]
    assert names(cache) == ["one"]


def test_an_entry_that_another_process_removes_before_it_is_opened_is_made_again(
    cache: EncodedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(cache)
    monkeypatch.setattr(os, "utime", shutil.rmtree)
    assert list(stored(cache)) == encode(EXAMPLES)
    assert names(cache) == ["one"]


def test_two_processes_that_write_the_same_do_not_meet(cache: EncodedCache) -> None:
    def encode_behind_another(examples: Sequence[Example]) -> list[Features]:
        if not (cache.folder / "one").exists():
            stored(cache)
        return encode(examples)

    found = cache.features("one", EXAMPLES, encode_behind_another, vocabulary_size=65_536)
    assert list(found) == list(stored(cache)) == encode(EXAMPLES)
    assert names(cache) == ["one"]


def test_joined_lists_are_as_one(cache: EncodedCache) -> None:
    documents = encode(EXAMPLES)
    joined = Joined(stored(cache), documents[:2])
    assert list(joined) == documents + documents[:2]
    assert joined[-1] == documents[1]
    assert joined[-4:] == documents[-2:] + documents[:2]
