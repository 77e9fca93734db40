"""Words stay whole, characters of scripts without spaces stand alone, marks count nothing."""

import pytest

from lushan.metrics.pieces import HAN, is_unspaced, ngrams, pieces, share_of_letters


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The GPT-2, in 2019!", ["the", "gpt", "2", "in", "2019"]),
        ("在2024年用GPT学习。", ["在", "2024", "年", "用", "gpt", "学", "习"]),
        ("コーヒー、カップ", ["コ", "ー", "ヒ", "ー", "カ", "ッ", "プ"]),
        ("Über Straße", ["über", "strasse"]),
        ("snake_case  \n", ["snake", "case"]),
        ("", []),
    ],
)
def test_pieces_of_a_text(text: str, expected: list[str]) -> None:
    assert pieces(text) == expected


def test_ngrams_stand_side_by_side() -> None:
    assert ngrams(["a", "b", "c"], 2) == [("a", "b"), ("b", "c")]
    assert ngrams(["a"], 2) == []


def test_scripts_are_told_by_their_letters_alone() -> None:
    assert share_of_letters(["中文 ab 12 !!"], HAN) == 0.5
    assert share_of_letters(["12!"], HAN) == 0
    assert is_unspaced(["我在北京用GPT"])
    assert not is_unspaced(["He lives in 北京 and works there"])
