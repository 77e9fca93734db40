"""The words of a text, as places in it: runs of letters and digits, single marks, single characters of unspaced scripts."""

import re
import unicodedata
from collections.abc import Sequence

# Thai to Myanmar, Khmer, kana, Han with its extensions and compatibility forms.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
"""Scripts that put no spaces between words, as the inside of a character class."""

# Their punctuation, and full-width forms: no space stands beside them either.
_WIDE = re.compile(f"[{UNSPACED}\u3000-\u303f\uff00-\uffef\u2018-\u201d\u2026\u2014]")
_UNSPACED = re.compile(f"[{UNSPACED}]")
_WORD = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])\w)+|[^\w\s]")
_LETTER = re.compile(r"[^\W\d_]")
_CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
UNSPACED_FRACTION = 0.3
"""Above this share of letters from scripts without spaces, characters are counted, not words."""
_JOINERS = {"Mn", "Mc", "Me", "Cf"}
"""Categories of characters that belong to what stands before them: accents, vowel signs, joiners."""


def is_unspaced(texts: Sequence[str]) -> bool:
    """Say whether texts are mostly written in scripts that put no spaces between words."""
    num_letters = sum(len(_LETTER.findall(text)) for text in texts)
    num_unspaced = sum(len(_UNSPACED.findall(text)) for text in texts)
    return num_unspaced > UNSPACED_FRACTION * max(num_letters, 1)


def chinese_fraction(texts: Sequence[str]) -> float:
    """Give the share of letters that are Chinese characters; 0 where there are no letters."""
    num_letters = sum(len(_LETTER.findall(text)) for text in texts)
    return sum(len(_CHINESE.findall(text)) for text in texts) / max(num_letters, 1)


def words_of(text: str) -> list[tuple[int, int]]:
    """Give the characters [start, end) of every word; every character but white space is in one."""
    words: list[tuple[int, int]] = []
    for match in _WORD.finditer(text):
        start, end = match.span()
        follows = bool(words) and words[-1][1] == start
        if follows and _continues(text, start):
            words[-1] = (words[-1][0], end)
        else:
            words.append((start, end))
    return words


def _continues(text: str, start: int) -> bool:
    """Whether a character goes on with the word before it."""
    if unicodedata.category(text[start]) in _JOINERS:
        return True
    # A letter behind an accent goes on with the accent's word, which began with a letter.
    is_letter = text[start].isalnum() and not _UNSPACED.match(text[start])
    return is_letter and unicodedata.category(text[start - 1]) in _JOINERS


def join_words(words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Write words as one text, and say where each is: a space between two, but none where a script has none.

    Words that are all single characters, some of an unspaced script, are a text cut into its characters.
    """
    is_cut = all(len(word) == 1 for word in words) and any(map(_UNSPACED.match, words))
    text, places = "", list[tuple[int, int]]()
    for word in words:
        if text and not (is_cut or (_WIDE.match(text[-1]) and _WIDE.match(word[0]))):
            text += " "
        places.append((len(text), len(text) + len(word)))
        text += word
    return text, places
