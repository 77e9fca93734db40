"""Examples in chunks that become tokens together: on the way a token takes some 0.3 kB, of which few rows at once have room."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from lushan.errors import TooLongError
from lushan.records import Example, Features

ROWS_PER_CHUNK = 4096
CHARACTERS_PER_CHUNK = 2**22
"""Rows that are longer than that, all together, become several chunks."""

Encode = Callable[[Sequence[Example]], Sequence[Features]]


def in_chunks(
    examples: Sequence[Example], *, more_characters: int = 0
) -> Iterator[tuple[int, list[Example]]]:
    """Give examples in lists, each with the place of its first.

    Args:
        examples: Any examples.
        more_characters: What each has beside its text, such as worked examples.
    """
    chunk: list[Example] = []
    start = num_characters = 0
    for place, each in enumerate(examples):
        size = len(each.text) + more_characters
        is_full = len(chunk) == ROWS_PER_CHUNK or num_characters + size > CHARACTERS_PER_CHUNK
        if chunk and is_full:
            yield start, chunk
            chunk, start, num_characters = [], place, 0
        chunk.append(each)
        num_characters += size
    if chunk:
        yield start, chunk


def encoded_in_chunks(
    examples: Sequence[Example], encode: Encode, *, more_characters: int = 0
) -> Iterator[tuple[int, Sequence[Features]]]:
    """Encode examples chunk by chunk; gives the tokens of each with the place of its first example.

    Args:
        examples: What to encode.
        encode: Encodes some of them.
        more_characters: As for `in_chunks`.

    Raises:
        TooLongError: If any of all examples is too long; behind the first one they are only counted.
    """
    refused: TooLongError | None = None
    for start, some in in_chunks(examples, more_characters=more_characters):
        try:
            features = encode(some)
        except TooLongError as error:
            refused = error.behind(refused)
            continue
        if refused is None:
            yield start, features
    if refused is not None:
        raise refused


def encode_all(
    examples: Sequence[Example], encode: Encode, *, more_characters: int = 0
) -> list[Features]:
    """Encode examples chunk by chunk, and give the tokens of all; arguments and errors are those of `encoded_in_chunks`."""
    found: list[Features] = []
    for start, features in encoded_in_chunks(examples, encode, more_characters=more_characters):
        # Each chunk counts its examples from 0.
        found += (
            [replace(each, example_index=each.example_index + start) for each in features]
            if start
            else features
        )
    return found
