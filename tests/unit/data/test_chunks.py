"""Examples become tokens some at a time, and come out as if all had been together."""

from collections.abc import Sequence

import pytest

from lushan.data import chunks
from lushan.data.chunks import encode_all, encoded_in_chunks, in_chunks
from lushan.data.example_store import ExampleStore
from lushan.errors import TooLongError
from lushan.records import Example, Features

EXAMPLES = [Example(str(n), "x" * (n % 4), "a", f"row {n}") for n in range(10)]


def encode(examples: Sequence[Example]) -> list[Features]:
    """Give two documents of every second example."""
    return [
        Features((int(each.id), part), each.place, index)
        for index, each in enumerate(examples)
        for part in range(1 + int(each.id) % 2)
    ]


def sizes(*, more_characters: int = 0) -> list[int]:
    found = list(in_chunks(EXAMPLES, more_characters=more_characters))
    assert [each for _, chunk in found for each in chunk] == EXAMPLES
    assert [EXAMPLES[start] for start, _ in found] == [chunk[0] for _, chunk in found]
    return [len(chunk) for _, chunk in found]


def test_a_chunk_has_few_rows_and_few_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sizes() == [10]
    monkeypatch.setattr(chunks, "ROWS_PER_CHUNK", 4)
    assert sizes() == [4, 4, 2]
    monkeypatch.setattr(chunks, "CHARACTERS_PER_CHUNK", 4)
    assert sizes() == [3, 3, 1, 3]
    assert sizes(more_characters=4) == [1] * 10  # a longer one stands alone


def test_no_examples_make_no_chunk() -> None:
    assert list(in_chunks([])) == encode_all([], encode) == []


@pytest.mark.parametrize("num_rows", [1, 3, 10])
def test_tokens_of_chunks_are_those_of_all(num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "ROWS_PER_CHUNK", num_rows)
    assert encode_all(EXAMPLES, encode) == encode(EXAMPLES)
    assert encode_all(ExampleStore.collect(EXAMPLES), encode) == encode(EXAMPLES)


def test_what_is_too_long_is_counted_in_all_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "ROWS_PER_CHUNK", 2)
    seen: list[str] = []

    def refuse_some(some: Sequence[Example]) -> list[Features]:
        seen.extend(each.id for each in some)
        for each in some:
            if each.id in {"3", "6"}:
                raise TooLongError(f"{each.place}: too long.", each.place, int(each.id))
        return encode(some)

    given: list[int] = []
    with pytest.raises(TooLongError, match=r"^row 3: .* 2 rows .* row 6, has 6 tokens\.$"):
        given.extend(start for start, _ in encoded_in_chunks(EXAMPLES, refuse_some))
    assert seen == [each.id for each in EXAMPLES]
    assert given == [0]
