"""What metrics count in a text: words, and single characters of scripts that put no spaces between words."""

import re

UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Characters of Chinese and Japanese, as ranges inside of a regular expression's brackets."""
_WORD = re.compile(f"[{UNSPACED}]|[^\\W{UNSPACED}]+")


def words(text: str) -> list[str]:
    """Give the words of a text in lower case, without marks."""
    return _WORD.findall(text.lower())
