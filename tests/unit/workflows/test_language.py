"""Chinese rows for a model of English are told of, and nothing else is."""

import pytest

from lushan.backbones.sources import CATALOG, DEFAULT_MODEL
from lushan.records import Example
from lushan.workflows.language import notes_on_language

ENGLISH, CHINESE = "The soup was warm.", "汤很热、味道也好、下次再来。OK"


def rows(*texts: str, target: str = "a") -> list[Example]:
    return [Example(str(n), text, target) for n, text in enumerate(texts)]


@pytest.mark.parametrize("name", [DEFAULT_MODEL, DEFAULT_MODEL.upper(), "all-MiniLM-L6-v2"])
def test_chinese_texts_are_told_with_a_model_that_reads_them(name: str) -> None:
    (note,) = notes_on_language(name, rows(CHINESE, CHINESE, ENGLISH), writes=False)
    assert note.startswith("Most letters of the training texts are Chinese, and `")
    assert "`--model gemma-3-270m` reads Chinese; `lushan models get gemma-3-270m`" in note


def test_chinese_answers_are_told_where_answers_are_written() -> None:
    train = rows(ENGLISH, target=CHINESE)
    (note,) = notes_on_language(DEFAULT_MODEL, train, writes=True)
    assert note.startswith("Most letters of the training answers are Chinese")
    assert notes_on_language(DEFAULT_MODEL, train, writes=False) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gemma-3-270m", CHINESE),
        ("somewhere/model", CHINESE),
        (DEFAULT_MODEL, ENGLISH),
        (DEFAULT_MODEL, f"{ENGLISH} {ENGLISH} 汤"),
        (DEFAULT_MODEL, "123"),
    ],
)
def test_nothing_is_told_where_the_model_is_for_the_language_or_unknown(
    name: str, text: str
) -> None:
    assert notes_on_language(name, rows(text, text), writes=True) == []


def test_rows_from_all_over_a_long_table_are_looked_at() -> None:
    train = [*rows(*[ENGLISH] * 1_000), *rows(*[CHINESE] * 3_000)]
    assert len(notes_on_language(DEFAULT_MODEL, train, writes=False)) == 1


def test_catalogue_has_a_model_for_chinese() -> None:
    assert "Chinese" in CATALOG["gemma-3-270m"].languages
    assert not CATALOG["gemma-3-270m"].knows_english_alone
