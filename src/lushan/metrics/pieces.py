"""The pieces of a text that scores of free texts count: whole words, and single characters of scripts without spaces."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache

HAN = "\u2e80-\u2fdf\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Chinese characters, as the inside of a character class."""
KANA = "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"
"""Japanese syllables."""
THAI_TO_KHMER = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
"""Thai, Lao, Burmese and Khmer."""
OTHER_SCRIPTS = "\u0400-\u1cff\u2e80-\ufaff\ufb1d-\ufeff\uff66-\uffdc\U00020000-\U0003ffff"
"""Living scripts but Latin, and Greek, whose letters stand in English texts too."""

UNSPACED_FRACTION = 0.3
"""Above this share of letters from a script, texts count as written in it."""

_UNSPACED = f"{HAN}{KANA}{THAI_TO_KHMER}"
_ASCII_WORD = re.compile("[a-z0-9]+")
_LETTER = re.compile(r"[^\W\d_]")
# Soft hyphen, zero-width non-joiner and joiner, word joiner: they stand inside of words, and nobody sees them.
_JOINERS = "\u00ad\u200c\u200d\u2060"
_BLOCK_SIZE = 128


def pieces(text: str) -> list[str]:
    """Give words and numbers whole, other characters of scripts without spaces one by one; no punctuation, no capitals.

    Accents and vowel signs belong to what they follow, whether a text has them as characters of their own or not.
    """
    if text.isascii():  # the same, several times as fast
        return _ASCII_WORD.findall(text.lower())
    text = unicodedata.normalize("NFC", text.casefold())
    blocks = {ord(each) // _BLOCK_SIZE for each in set(text) if _is_mark(each)}
    return _piece(frozenset(blocks)).findall(text)


@cache
def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "M" or character in _JOINERS


@cache
def _piece(blocks: frozenset[int]) -> re.Pattern[str]:
    """Match a piece of a text with marks of some blocks; looking for those of all blocks takes twice as long."""
    codes = (block * _BLOCK_SIZE + place for block in blocks for place in range(_BLOCK_SIZE))
    marks = "".join(filter(_is_mark, map(chr, codes)))
    in_word = rf"[^\W_{_UNSPACED}]+"
    if not marks:
        return re.compile(f"[{_UNSPACED}]|{in_word}")
    return re.compile(f"[{_UNSPACED}][{marks}]*|{in_word}(?:[{marks}]+(?:{in_word})?)*")


def ngrams(parts: Sequence[str], size: int) -> list[tuple[str, ...]]:
    """Give every `size` parts that stand side by side."""
    return [tuple(parts[start : start + size]) for start in range(len(parts) - size + 1)]


def share_of_letters(texts: Iterable[str], characters: str) -> float:
    """Give the share of the letters of all texts that are of a character class; 0 without letters."""
    joined = "".join(texts)
    of_class = re.compile(rf"[{characters}](?<![\W\d_])")
    return len(of_class.findall(joined)) / max(len(_LETTER.findall(joined)), 1)


def is_unspaced(texts: Iterable[str]) -> bool:
    """Say whether texts are mostly written in scripts that put no spaces between words."""
    return share_of_letters(texts, _UNSPACED) > UNSPACED_FRACTION
