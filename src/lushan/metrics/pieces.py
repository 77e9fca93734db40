"""The pieces of a text that scores of free texts count: whole words, and single characters of scripts without spaces."""

import re
from collections.abc import Iterable, Sequence

HAN = "\u2e80-\u2fdf\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Chinese characters, as the inside of a character class."""
KANA = "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"
"""Japanese syllables."""
THAI_TO_KHMER = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
"""Thai, Lao, Burmese and Khmer."""

UNSPACED_FRACTION = 0.3
"""Above this share of letters from a script, texts count as written in it."""

_UNSPACED = f"{HAN}{KANA}{THAI_TO_KHMER}"
_PIECE = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])[^\W_])+")
_LETTER = re.compile(r"[^\W\d_]")


def pieces(text: str) -> list[str]:
    """Give words and numbers whole, other characters of scripts without spaces one by one; no marks, no capitals."""
    return _PIECE.findall(text.casefold())


def ngrams(parts: Sequence[str], size: int) -> list[tuple[str, ...]]:
    """Give every `size` parts that stand side by side."""
    return [tuple(parts[start : start + size]) for start in range(len(parts) - size + 1)]


def share_of_letters(texts: Iterable[str], characters: str) -> float:
    """Give the share of the letters of all texts that are of a character class; 0 without letters."""
    is_of = re.compile(f"[{characters}]")
    letters = [letter for text in texts for letter in _LETTER.findall(text)]
    return sum(map(bool, map(is_of.match, letters))) / max(len(letters), 1)


def is_unspaced(texts: Iterable[str]) -> bool:
    """Say whether texts are mostly written in scripts that put no spaces between words."""
    return share_of_letters(texts, _UNSPACED) > UNSPACED_FRACTION
