"""From tokens to words: weights of tokens are shared among the words that their characters belong to."""

import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from lushan.data.words import words_of

Place = tuple[int, int]

_ZERO_WIDTH_JOINER = "\u200d"
_SKIN_TONE = "EMOJI MODIFIER"


@dataclass(frozen=True, slots=True)
class Weight:
    """What a part of the text adds to the score."""

    start: int
    """First character, from 0."""
    end: int
    """Character behind the last."""
    text: str
    """The characters themselves."""
    weight: float
    """Above 0 it speaks for the answer, below 0 against it; the unit is that of the score."""


def visible_words(text: str) -> list[Place]:
    """Give the characters [start, end) of every word; an emoji that is made of several characters is one."""
    words: list[Place] = []
    for start, end in words_of(text):
        if words and words[-1][1] == start and _joins(text, start):
            words[-1] = (words[-1][0], end)
        else:
            words.append((start, end))
    return words


def _joins(text: str, start: int) -> bool:
    is_tone = unicodedata.name(text[start], "").startswith(_SKIN_TONE)
    return is_tone or text[start - 1] == _ZERO_WIDTH_JOINER


def word_weights(text: str, tokens: Sequence[tuple[Place, float]]) -> list[Weight]:
    """Give the weight of every word; their sum is that of the tokens.

    A token that stands for characters of several words is shared among them by their number. One that stands for white
    space alone counts to the word behind it, or to the last.

    Args:
        text: The user's text, with at least one word if there are tokens.
        tokens: Characters [start, end) and weight of each.
    """
    words = visible_words(text)
    totals = [0.0] * len(words)
    for place, weight in tokens:
        for word, share in word_shares(words, place):
            totals[word] += weight * share
    return [
        Weight(start, end, text[start:end], total)
        for (start, end), total in zip(words, totals, strict=True)
    ]


def word_shares(words: Sequence[Place], place: Place) -> list[tuple[int, float]]:
    """Give the numbers of the words that a token stands for, and how much of it is each one's; the shares sum to 1."""
    first = bisect_right(words, place[0], key=lambda word: word[1])
    behind = bisect_left(words, place[1], key=lambda word: word[0])
    if first >= behind:
        return [(min(first, len(words) - 1), 1.0)]
    sizes = [
        min(words[number][1], place[1]) - max(words[number][0], place[0])
        for number in range(first, behind)
    ]
    return [(first + number, size / sum(sizes)) for number, size in enumerate(sizes)]
