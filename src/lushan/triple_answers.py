"""Triples as a model writes them, `Ada | born in | Ulm; Ada | lives in | Rome`, and back: names of the text, known relations."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from lushan.data.spans import first_words
from lushan.data.verbatim import BETWEEN, NOTHING, Names, one_of, with_reserve
from lushan.records import Example, Mention, TaskState, Triple

_BAR = " | "


def write_triples(example: Example) -> str:
    """Write the triples of an example's truth, in the order in which their heads, then their tails, stand in the text."""
    triples = sorted(triples_of(example), key=lambda each: (each.head.start, each.tail.start))
    written = [_BAR.join((each.head.text, each.label, each.tail.text)) for each in triples]
    return BETWEEN.join(written) or NOTHING


def triples_of(example: Example) -> list[Triple]:
    """Give the triples of an example's truth."""
    return [each for each in example.target or () if isinstance(each, Triple)]


def as_read(example: Example, num_characters: int) -> Example:
    """Give the example as who reads no more than the first characters of its text knows it.

    It keeps the triples of which both names stand there, wherever they were marked.
    """
    part = first_words(example, num_characters)
    names = Names(part)
    kept = tuple(
        triple
        for triple in triples_of(example)
        if all(x.text in names or x.end <= len(part.text) for x in (triple.head, triple.tail))
    )
    return replace(part, target=kept)


def bounds(examples: Sequence[Example]) -> tuple[int, int]:
    """Give the most triples of a written answer, and the most characters of a name: a quarter more than in these examples."""
    triples = [triples_of(each) for each in examples]
    most = max(map(len, triples), default=0)
    names = (part for each in triples for x in each for part in (x.head.text, x.tail.text))
    return with_reserve(most), with_reserve(max(map(len, names), default=0))


def grammar(example: Example, state: TaskState) -> str:
    """Give the grammar of what may be written of a text: two names that it holds around a known relation."""
    return Names(example).grammar(
        "NAME LABEL NAME",
        [f'LABEL: "{_BAR}" {one_of(state.labels)} "{_BAR}"'],
        most=state.most_items,
        longest=state.longest_name,
    )


def read_written_triples(
    written: str, example: Example, labels: Sequence[str]
) -> tuple[Triple, ...]:
    """Give the triples that a model wrote, each once.

    A head stands for its first place in the text, a tail for its first place that is not the head's. Names that the text
    does not hold as whole words, and relations that are not known, are left out.
    """
    names = Names(example)
    found = (placed(item, names) for item in _items(written, names, labels))
    return tuple(dict.fromkeys(found))


def placed(item: tuple[str, str, str], names: Names) -> Triple:
    """Give a triple of which the text holds both names: the first place of the head, the first of the tail beside it."""
    head, label, tail = item
    return Triple(
        _mention(head, names), label, _mention(tail, names, not_at=next(names.places(head)))
    )


def _mention(name: str, names: Names, *, not_at: int = -1) -> Mention:
    places = list(names.places(name))
    start = next((each for each in places if each != not_at), places[0])
    return Mention(name, start, start + len(name))


def _items(written: str, names: Names, labels: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Give head, relation and tail of every triple, in the order written."""
    bar = re.escape(_BAR)
    middle = re.compile(rf"{bar}({'|'.join(map(re.escape, labels))}){bar}")
    at = 0
    while middles := list(middle.finditer(written, at)):
        heads = ((each, written[at : each.start()].strip()) for each in middles)
        match, head = next((each for each in heads if each[1] in names), (middles[0], ""))
        end, tail = _tail(written, match.end(), names, middle)
        if head and tail:
            yield head, match[1], tail
        at = end


def _tail(written: str, start: int, names: Names, middle: re.Pattern[str]) -> tuple[int, str]:
    """Give where a tail ends, with what parts it from the next triple: where it is a name and a head follows, or the end."""
    ends = [
        each.start() for each in re.finditer(re.escape(BETWEEN), written) if each.start() > start
    ]
    for end in (*ends, len(written)):
        tail, behind = written[start:end].strip(), end + len(BETWEEN)
        follows = (
            written[behind : each.start()].strip() for each in middle.finditer(written, behind)
        )
        if tail in names and (end == len(written) or any(each in names for each in follows)):
            return min(behind, len(written)), tail
    if not ends:
        return len(written), ""
    tail = written[start : ends[0]].strip()
    return ends[0] + len(BETWEEN), tail if tail in names else ""
