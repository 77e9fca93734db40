"""A list of the entities of the training rows, looked up in every text: the longest entry from the left.

The baseline of the CoNLL-2003 shared task (Tjong Kim Sang and De Meulder 2003, section 3.1), which also keeps only
entries that are not ambiguous: here, those that are entities at least every second time they stand in the training rows.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from lushan.baselines import Baseline
from lushan.data.spans import words_in
from lushan.data.splits import Parts
from lushan.records import Example, Prediction, Span, TaskState

TITLE = "Dictionary of the training entities"

FEWEST_ENTITY_FRACTION = 0.5
"""Entries that are an entity less often than this where they occur are left out."""

Words = tuple[str, ...]


def answer(parts: Parts, *, state: TaskState) -> Baseline:
    """Answer every text with the training entities that stand in it, with their most frequent label."""
    del state
    entries = _entries(parts.train)
    predictions = [Prediction(each.id, tuple(_found(each, entries))) for each in parts.test]
    return Baseline(
        predictions,
        f"{len(entries):,} entities of the training rows, looked up word by word, the longest first.",
    )


def _entries(train: Sequence[Example]) -> dict[Words, str]:
    """Give the words of every entry and its label."""
    labels: dict[Words, Counter[str]] = defaultdict(Counter)
    for example in train:
        words = words_in(example)
        for span in example.target or ():
            if isinstance(span, Span):
                inside = [each for each in words if each[0] < span.end and each[1] > span.start]
                labels[_cut(example.text, inside)][span.label] += 1
    times = Counter(found for each in train for _, _, found in _occurrences(each, labels))
    return {
        words: min(counts, key=lambda label: (-counts[label], label))
        for words, counts in labels.items()
        if counts.total() >= FEWEST_ENTITY_FRACTION * times[words]
    }


def _found(example: Example, entries: Mapping[Words, str]) -> Iterator[Span]:
    free_from = 0
    for start, end, words in _occurrences(example, entries):
        if start >= free_from:
            yield Span(start, end, entries[words], example.text[start:end])
            free_from = end


def _occurrences(
    example: Example, entries: Mapping[Words, object]
) -> Iterator[tuple[int, int, Words]]:
    """Give the place and words of every entry in a text: by where it begins, then the longest."""
    longest = max(map(len, entries), default=0)
    places = words_in(example)
    words = _cut(example.text, places)
    for first in range(len(words)):
        for size in range(min(longest, len(words) - first), 0, -1):
            candidate = words[first : first + size]
            if candidate in entries:
                yield places[first][0], places[first + size - 1][1], candidate


def _cut(text: str, places: Sequence[tuple[int, int]]) -> Words:
    return tuple(text[start:end] for start, end in places)
