"""What the page says, one table per language: `languages/CODE.json`, all with the same keys."""

import json
import re
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from lushan.serving.page.messages import translated

LANGUAGES = ("en", "zh")
"""The first is taken where a browser asks for none of them."""


class Texts(NamedTuple):
    """The texts of one language."""

    code: str
    table: dict[str, str]

    def __call__(self, key: str, **values: object) -> str:
        """Give a text, with its `{names}` filled in."""
        return self.table[key].format(**values)

    def message(self, message: str) -> str:
        """Say a finding or an error, which comes in English, in this language."""
        return translated(message, self.code)

    def name_of(self, kind: str, name: str) -> str:
        """Give the text of a `task` or a `column`; its own name where the table does not know it."""
        return self.table.get(f"{kind}.{name}", name)


@cache
def texts_of(language: str) -> Texts:
    """Read the table of a language."""
    file = files("lushan.serving.page") / "languages" / f"{language}.json"
    return Texts(language, json.loads(file.read_text(encoding="utf-8")))


def preferred_language(accepted: str) -> str:
    """Choose the language that a browser likes best: `zh-CN,zh;q=0.9,en;q=0.8` -> `zh`.

    Args:
        accepted: The header `Accept-Language`; may be empty.
    """
    found: list[tuple[float, str]] = []
    for wish in accepted.split(","):
        name, _, rest = wish.strip().partition(";")
        language = name.partition("-")[0].strip().lower()
        quality = re.fullmatch(r"\s*q=([01](?:\.\d{1,3})?)\s*", rest)
        if language in LANGUAGES:
            found.append((float(quality[1]) if quality else 1.0, language))
    return max(found, key=lambda each: each[0], default=(0.0, LANGUAGES[0]))[1]
