"""What checks and errors say, in the language of the page.

They are written in English where they arise. `messages/LANGUAGE.json` has each of them, with `{}` for what is filled in,
and beside it the same in that language, with `{0}`, `{1}` ... for the same parts.
"""

import json
import re
from functools import cache
from importlib.resources import files
from typing import NamedTuple

_PLACE = re.compile(r"(.+), row (\d+)")
_ROW = {"zh": "{0} \u7b2c {1} \u884c"}
"""`reviews.csv, row 12`."""


class _Pattern(NamedTuple):
    """One message of a language."""

    english: re.Pattern[str]
    told: str


def translated(message: str, language: str) -> str:
    """Say a message in a language; one that its table does not know stays English."""
    text = message.strip()
    if place := _PLACE.fullmatch(text):
        return _ROW[language].format(*place.groups()) if language in _ROW else message
    for pattern in _patterns(language):
        if found := pattern.english.fullmatch(text):
            parts = (translated(part, language) if part else "" for part in found.groups())
            return pattern.told.format(*parts)
    return message


@cache
def _patterns(language: str) -> list[_Pattern]:
    """Read the table of a language, the messages with most words of their own first; empty where there is none."""
    file = files("lushan.serving.page") / "messages" / f"{language}.json"
    if not file.is_file():
        return []
    table: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    return [
        _Pattern(re.compile(_expression(english), re.DOTALL), _with_braces(told))
        for english, told in sorted(table.items(), key=lambda each: -len(each[0]))
    ]


def _expression(english: str) -> str:
    return "(.*?)".join(re.escape(part) for part in english.split("{}"))


def _with_braces(told: str) -> str:
    """Double braces that stand for nothing, as those of an object."""
    doubled = told.replace("{", "{{").replace("}", "}}")
    return re.sub(r"\{\{(\d+)\}\}", r"{\1}", doubled)
