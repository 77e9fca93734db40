"""A list of the triples of the training rows: those of which head and tail both stand in a text are its answer.

The assumption of distant supervision (Mintz et al. 2009, section 1), with what the training rows say in place of a database; kept
are only triples that hold at least every second time that both names stand in a training row.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from lushan.baselines import Baseline
from lushan.data.spans import words_in
from lushan.data.splits import Parts
from lushan.data.verbatim import Names
from lushan.records import Example, Prediction, TaskState, Triple
from lushan.triple_answers import placed, triples_of

TITLE = "List of the training triples"

FEWEST_HELD_FRACTION = 0.5
"""Triples that hold less often than this where both names stand are left out."""

Key = tuple[str, str, str]


def answer(parts: Parts, *, state: TaskState) -> Baseline:
    """Answer every text with the training triples whose names it holds."""
    del state
    held = Counter(_key(each) for example in parts.train for each in triples_of(example))
    known = _by_head(held)
    times = Counter(
        key for example in parts.train for key in _standing(example, Names(example), known)
    )
    kept = _by_head(
        key for key, count in held.items() if count >= FEWEST_HELD_FRACTION * times[key] > 0
    )
    predictions = [Prediction(each.id, _found(each, kept)) for each in parts.test]
    num_kept = sum(map(len, kept.values()))
    return Baseline(
        predictions,
        f"{num_kept:,} triples of the training rows, where head and tail both stand in a text.",
    )


def _key(triple: Triple) -> Key:
    return triple.head.text, triple.label, triple.tail.text


def _by_head(keys: Iterable[Key]) -> dict[str, list[Key]]:
    found: dict[str, list[Key]] = defaultdict(list)
    for key in sorted(keys):
        found[key[0]].append(key)
    return dict(found)


def _found(example: Example, by_head: Mapping[str, Sequence[Key]]) -> tuple[Triple, ...]:
    names = Names(example)
    return tuple(placed(key, names) for key in _standing(example, names, by_head))


def _standing(
    example: Example, names: Names, by_head: Mapping[str, Sequence[Key]]
) -> Iterator[Key]:
    """Give the triples of which both names stand in a text, in the order of the alphabet."""
    words = words_in(example)
    longest = max(map(len, by_head), default=0)
    heads: set[str] = set()
    for number, (start, _) in enumerate(words):
        for _, end in words[number:]:
            if end - start > longest:
                break
            heads.add(names.text[start:end])
    for head in sorted(heads & by_head.keys()):
        yield from (key for key in by_head[head] if key[2] in names)
