"""Both languages say the same things, and a browser gets the one that it prefers."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import lushan.serving.page as page
from lushan.serving.page.texts import LANGUAGES, preferred_language, texts_of

FOLDER = Path(page.__file__).parent


def keys_in_code() -> Iterator[str]:
    """Give every key that the code or a template asks for by its full name."""
    for file in [*FOLDER.glob("*.py"), *FOLDER.glob("templates/*.html")]:
        yield from re.findall(r"""texts\(\s*['"]([\w.]+)['"]\s*[,)]""", file.read_text("utf-8"))


def test_languages_have_the_same_keys_in_the_same_order() -> None:
    first, *others = (list(texts_of(language).table) for language in LANGUAGES)
    assert [others_keys == first for others_keys in others] == [True] * len(others)


def test_texts_of_a_key_have_the_same_places_for_values() -> None:
    english, chinese = (texts_of(language).table for language in LANGUAGES)
    places = {
        key: [sorted(re.findall(r"{(\w+)}", table[key])) for table in (english, chinese)]
        for key in english
    }
    assert {key: found for key, found in places.items() if found[0] != found[1]} == {}


def test_every_key_that_the_page_asks_for_is_there() -> None:
    assert set(keys_in_code()) - set(texts_of("en").table) == set()
    assert "try.ask" in keys_in_code()


def test_no_text_is_empty_or_left_in_the_other_language() -> None:
    chinese, english = texts_of("zh").table, texts_of("en").table
    same = {key for key in english if chinese[key] == english[key]}
    assert same == {"title"}  # a name
    assert all(text.strip() for text in (*chinese.values(), *english.values()))


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-US,en;q=0.9,zh;q=0.8", "en"),
        ("de-DE,zh;q=0.3,en;q=0.2", "zh"),
        ("de", "en"),
        ("", "en"),
        ("zh;q=nonsense", "zh"),
    ],
)
def test_preferred_language_is_that_of_the_highest_quality(accepted: str, language: str) -> None:
    assert preferred_language(accepted) == language


def test_unknown_column_is_called_by_its_own_name() -> None:
    assert texts_of("zh").name_of("column", "mood") == "mood"
