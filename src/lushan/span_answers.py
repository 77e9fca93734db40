"""Spans of a text as a model writes them, `Ulm (city); Ada (name)`, and back: only what stands in the text, whole words only."""

import re
from collections.abc import Sequence

from lushan.data.spans import words_in
from lushan.records import Example, Span

NOTHING = "none"
"""What is written where a text has no span."""
_WRITTEN = re.compile(r"\s*(.+?) \(([^()]*)\)\s*(?:;|$)")


def write_spans(example: Example) -> str:
    """Write the spans of an example's truth, in the order of the text."""
    spans = [each for each in example.target or () if isinstance(each, Span)]
    spans.sort(key=lambda each: each.start)
    written = [f"{example.text[each.start : each.end]} ({each.label})" for each in spans]
    return "; ".join(written) or NOTHING


def read_written_spans(written: str, example: Example, labels: Sequence[str]) -> tuple[Span, ...]:
    """Give the spans that a model wrote.

    A name stands for its first place behind the one before it with the same letters. What the text does not have as whole
    words, what overlaps an earlier span, and labels that are not known are left out.
    """
    words = words_in(example)
    starts, ends = {start for start, _ in words}, {end for _, end in words}
    found: list[Span] = []
    searched: dict[str, int] = {}
    for match in _WRITTEN.finditer(written):
        name, label = match[1].strip(), match[2].strip()
        start = example.text.find(name, searched.get(name, 0)) if label in labels else -1
        while start >= 0 and not (start in starts and start + len(name) in ends):
            start = example.text.find(name, start + 1)
        end = start + len(name)
        if start < 0 or any(start < each.end and end > each.start for each in found):
            continue
        searched[name] = end
        found.append(Span(start, end, label, name))
    return tuple(sorted(found, key=lambda each: each.start))
