"""What a grammar lets pass, with the tokens of a tiny model; and random texts that make offsets hard."""

import random
from collections.abc import Sequence
from typing import NamedTuple

from lushan.backbones.tokenizer import Tokenizer
from lushan.data.spans import words_in
from lushan.data.verbatim import one_line
from lushan.inference.grammar import Constraint, GrammarState
from lushan.records import Example
from tests.tiny import TINY_VOCABULARY

STOP = 2
PIECES = (
    *(
        "Ada",
        "Ulm",
        "O'Hara",
        "a",
        "ab",
        "city",
        "none",
        " ",
        " ",
        "(",
        ")",
        ";",
        " | ",
        "x|y",
        '"',
    ),
    *("\\", "/", "#", "\t", "\n", "\r\n", "\x1c", "\xa0", "\u200b", "\U0001f680", "e\u0301"),
    *("\u5317\u4eac", "\u57ce", "\u0939\u093f", "\uff08", "\U00020000"),
)
"""Separators, emoji, accents, ideographs, vowel signs, zero-width and control characters."""

Place = tuple[int, int]


class Drawn(NamedTuple):
    """A random text and where its words are."""

    example: Example
    words: list[Place]

    def name(self, dice: random.Random, first: int = 0) -> tuple[int, Place]:
        """Draw a run of words behind word `first`; its last word and its place."""
        begin = dice.randrange(first, len(self.words))
        last = min(len(self.words) - 1, begin + dice.randint(0, 3))
        return last, (self.words[begin][0], self.words[last][1])


def drawn_texts(seed: int, *, most: int) -> list[Drawn]:
    """Draw texts that have a word."""
    dice = random.Random(seed)
    texts = ("".join(dice.choices(PIECES, k=dice.randint(1, 25))) for _ in range(most))
    examples = [Example("id", text, None) for text in texts]
    return [Drawn(each, words_in(each)) for each in examples if words_in(each)]


def cut(example: Example, place: Place) -> str:
    """Give the characters at a place as an answer writes them."""
    return one_line(example.text[slice(*place)])


def _start(grammar: str, tokenizer: Tokenizer) -> GrammarState:
    constraint = Constraint.lark(grammar)
    return GrammarState.start(
        constraint, tokenizer, vocabulary_size=TINY_VOCABULARY, stop_ids=frozenset({STOP})
    )


def is_allowed(answer: str, grammar: str, tokenizer: Tokenizer) -> bool:
    """Whether an answer may be written token by token, and end."""
    before, whole = (each.ids for each in tokenizer.encode(["x:", f"x:{answer}"]))
    state = _start(grammar, tokenizer)
    for token in (*whole[len(before) :], STOP):
        if not state.allowed(TINY_VOCABULARY)[token]:
            return False
        if token != STOP:
            state.push(token)
    return True


def drawn_answer(grammar: str, tokenizer: Tokenizer, dice: random.Random) -> str:
    """Write any allowed token until the end is allowed."""
    state, tokens = _start(grammar, tokenizer), list[int]()
    while True:
        allowed: Sequence[int] = state.allowed(TINY_VOCABULARY).nonzero().flatten().tolist()
        if STOP in allowed:
            return tokenizer.decode(tokens)
        tokens.append(dice.choice(allowed))
        state.push(tokens[-1])
