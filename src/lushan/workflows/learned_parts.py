"""What is learned of a text whose end was cut off: of its parts that are to be written, those that are left."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from lushan.backbones.encoding import characters_read, watch_encoding
from lushan.records import Example, Features

Encode = Callable[[Sequence[Example]], list[Features]]
"""Encodes examples with their truth: one document each."""
AsRead = Callable[[Example, int], Example]
"""Gives an example of whose text only the first characters are read; see `Quotes`."""


def count_cut_off(
    examples: Sequence[Example], *, encode: Encode, as_read: AsRead
) -> list[Features]:
    """Token ids with the whole truth, and the number of its parts that were cut off with the text.

    Raises:
        DataError: If what surrounds a text is too long by itself.
    """
    found, lengths = _encoded(encode, examples)
    return [
        replace(each, num_cut_items=_num_lost(example, as_read(example, length)))
        if each.num_cut_tokens
        else each
        for each, example, length in zip(found, examples, lengths, strict=True)
    ]


def leave_out_cut_off(
    examples: Sequence[Example], *, encode: Encode, as_read: AsRead
) -> list[Features]:
    """Token ids with the truth that stands in what is read of each text; no weight where none is left.

    Raises:
        DataError: If what surrounds a text is too long by itself.
    """
    whole = list(examples)
    told, lengths = _encoded(encode, whole)
    cut = [place for place, each in enumerate(told) if each.num_cut_tokens]
    if not cut:
        return told
    # What is not written leaves more room to the text: as much as there is where nothing is.
    _, most = _encoded(encode, [replace(whole[place], target=()) for place in cut])
    open_rows = {
        place: as_read(whole[place], max(lengths[place], length))
        for place, length in zip(cut, most, strict=True)
    }
    while open_rows:
        rows = list(open_rows.items())
        found, lengths = _encoded(encode, [example for _, example in rows])
        for (place, example), each, length in zip(rows, found, lengths, strict=True):
            if each.num_cut_tokens:
                open_rows[place] = as_read(example, _next_length(example, each, length))
            else:
                del open_rows[place]
                part = replace(each, example_index=place)
                told[place] = _with_cut(part, told[place], whole=whole[place], read=example)
    return told


def _encoded(encode: Encode, examples: Sequence[Example]) -> tuple[list[Features], list[int]]:
    """Encode examples, and tell how many characters of each text are read."""
    with watch_encoding() as watched:
        found = encode(examples)
    lengths: list[int] = []
    for example, (document, (window,)) in zip(examples, watched, strict=True):
        length = len(example.text)
        if window.num_cut_tokens:
            # Of a character that has several tokens some may be left: it is not read for all that.
            length = min(length - 1, characters_read(document, window))
        lengths.append(length)
    return found, lengths


def _next_length(example: Example, told: Features, length: int) -> int:
    """Guess how much of a text fits where what is written of it becomes shorter in proportion.

    Args:
        example: Its text is too long.
        told: It, cut.
        length: Characters that are read where as much is written.
    """
    num_asked = told.targets_from + told.num_cut_tokens
    num_written = len(told.token_ids) - told.targets_from
    num_lost = (len(example.text) - length) * num_asked // (num_asked + num_written)
    return len(example.text) - max(1, num_lost)


def _with_cut(part: Features, before: Features, *, whole: Example, read: Example) -> Features:
    """Tell what a document lost that was made of the rest of a text; `before` is what the limit alone makes of it."""
    num_asked = before.targets_from + before.num_cut_tokens
    return replace(
        part,
        num_cut_tokens=max(1, num_asked - part.targets_from),
        num_cut_items=_num_lost(whole, read),
        weight=0.0 if read.target is None else part.weight,
    )


def _num_lost(whole: Example, read: Example) -> int:
    """Parts of the truth that are not there any more."""
    return len(whole.target or ()) - len(read.target or ())
