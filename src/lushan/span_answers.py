"""Spans of a text as a model writes them, `Ulm (city); Ada (name)`, and back: only what stands in the text, whole words only."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from lushan.data.spans import first_words
from lushan.data.verbatim import BETWEEN, NOTHING, Names, one_line, one_of, with_reserve
from lushan.records import Example, Span, TaskState


def write_spans(example: Example) -> str:
    """Write the spans of an example's truth, in the order of the text."""
    text = one_line(example.text)
    spans = sorted(spans_of(example), key=lambda each: each.start)
    written = [f"{text[each.start : each.end]} ({each.label})" for each in spans]
    return BETWEEN.join(written) or NOTHING


def bounds(examples: Sequence[Example]) -> tuple[int, int]:
    """Give the most spans of a written answer, and the most characters of one: a quarter more than in these examples."""
    most = max((len(spans_of(each)) for each in examples), default=0)
    longest = max((x.end - x.start for each in examples for x in spans_of(each)), default=0)
    return with_reserve(most), with_reserve(longest)


def grammar(example: Example, state: TaskState) -> str:
    """Give the grammar of what may be written of a text: spans of whole words, each with a known label."""
    names = Names(example)
    return names.grammar(
        "NAME LABEL",
        [f'LABEL: " (" {one_of(state.labels)} ")"'],
        most=min(state.most_items or names.num_words, names.num_words),
        longest=state.longest_name,
    )


def read_written_spans(written: str, example: Example, labels: Sequence[str]) -> tuple[Span, ...]:
    """Give the spans that a model wrote.

    They are written in the order of the text: a name stands for its first free place behind the span before it; where there
    is none, for its first free place. What the text does not have as whole words, what has no free place left, and labels
    that are not known are left out.
    """
    names = Names(example)
    found: list[Span] = []
    behind = 0
    for name, label in _items(written, names, labels):
        free = [
            start
            for start in names.places(name)
            if not any(start < each.end and start + len(name) > each.start for each in found)
        ]
        if not free:
            continue
        start = next((each for each in free if each >= behind), free[0])
        behind = start + len(name)
        found.append(Span(start, behind, label, example.text[start:behind]))
    return tuple(sorted(found, key=lambda each: each.start))


def _items(written: str, names: Names, labels: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Give names of the text with their labels, in the order written; each ends where it is first one of the text."""
    closing = re.compile(rf" \(({'|'.join(map(re.escape, labels))})\)\s*(?:;|$)")
    at = 0
    while closings := list(closing.finditer(written, at)):
        named = ((each, written[at : each.start()].strip()) for each in closings)
        match, name = next((each for each in named if each[1] in names), (closings[0], ""))
        if name:
            yield name, match[1]
        at = match.end()


def spans_of(example: Example) -> list[Span]:
    """Give the spans of an example's truth."""
    return [each for each in example.target or () if isinstance(each, Span)]


def as_read(example: Example, num_characters: int) -> Example:
    """Give the example as who reads no more than the first characters of its text knows it: with the spans there alone."""
    part = first_words(example, num_characters)
    kept = tuple(each for each in spans_of(example) if each.end <= len(part.text))
    return replace(part, target=kept)
