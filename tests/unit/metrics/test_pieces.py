"""Words stay whole, characters of scripts without spaces stand alone, marks count nothing."""

import random
import unicodedata

import pytest

from lushan.metrics.pieces import (
    HAN,
    OTHER_SCRIPTS,
    is_unspaced,
    ngrams,
    pieces,
    share_of_letters,
)


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e!",
            ["\u0928\u092e\u0938\u094d\u0924\u0947", "\u0926\u0941\u0928\u093f\u092f\u093e"],
        ),
        ("\u0ba4\u0bae\u0bbf\u0bb4\u0bcd", ["\u0ba4\u0bae\u0bbf\u0bb4\u0bcd"]),
        ("\u09ac\u09be\u0982\u09b2\u09be", ["\u09ac\u09be\u0982\u09b2\u09be"]),
        ("\u0645\u064e\u0631\u0652\u062d\u064e\u0628\u0627", ["\u0645\u064e\u0631\u0652\u062d\u064e\u0628\u0627"]),
        ("\u05e9\u05b8\u05dc\u05d5\u05b9\u05dd.", ["\u05e9\u05b8\u05dc\u05d5\u05b9\u05dd"]),
        ("\u0645\u06cc\u200c\u0631\u0648\u0645", ["\u0645\u06cc\u200c\u0631\u0648\u0645"]),
        ("Vie\u0323\u0302t Nam", ["vi\u1ec7t", "nam"]),
        ("\u0130stanbul", ["i\u0307stanbul"]),
        ("Zusam\u00admen", ["zusam\u00admen"]),
        ("\u0e27\u0e31\u0e14GPT", ["\u0e27\u0e31", "\u0e14", "gpt"]),
        ("\U0001e921\U0001e944\U0001e925", ["\U0001e943\U0001e944\U0001e925"]),
        ("a \u0301 _\u0301b \U0001f469\u200d\u2764\ufe0f", ["a", "b"]),
    ],
)  # fmt: skip
def test_accents_vowel_signs_and_joiners_belong_to_what_they_follow(
    text: str, expected: list[str]
) -> None:
    assert pieces(text) == expected


def test_texts_in_ascii_are_cut_as_all_others() -> None:
    text = "".join(map(chr, range(128))) + " Snake_case, 3.5 U.S."
    assert pieces(f"{text} \u00e9") == [*pieces(text), "\u00e9"]


@pytest.mark.parametrize("seed", range(20))
def test_texts_with_loose_accents_are_cut_as_those_without(seed: int) -> None:
    parts = [
        *"aZ9_ ., \u00e9\u1ec7\u014d\u304c\ud55c\u4e2d\u0e27\u0e31\u093f\u0928",
        "\u0958",
        "\u0301",
    ]
    text = "".join(random.Random(seed).choices(parts, k=60))
    loose = unicodedata.normalize("NFD", text)
    assert loose != unicodedata.normalize("NFC", text)
    assert pieces(loose) == pieces(text)


def test_ngrams_stand_side_by_side() -> None:
    assert ngrams(["a", "b", "c"], 2) == [("a", "b"), ("b", "c")]
    assert ngrams(["a"], 2) == []


def test_scripts_are_told_by_their_letters_alone() -> None:
    assert share_of_letters(["中文 ab 12 !!"], HAN) == 0.5
    assert share_of_letters(["12!"], HAN) == 0
    assert is_unspaced(["我在北京用GPT"])
    assert not is_unspaced(["He lives in 北京 and works there"])


@pytest.mark.parametrize(
    "text", ["\u4e2d", "\u30ab", "\ud55c", "\u0416", "\u05d0", "\u0628", "\u0928", "\u0e01", "\u10d0"]
)  # fmt: skip
def test_letters_of_other_scripts_are_told_from_what_english_texts_have(text: str) -> None:
    english = "Caf\u00e9 \u03b1-helix, \ufb01ne \U0001d465\u00b2 \u0301 \u3002 \u2126 Vi\u1ec7t \U0001f469 Hawai\u02bbi"
    assert share_of_letters([english], OTHER_SCRIPTS) == 0
    assert share_of_letters([english, text], OTHER_SCRIPTS) > 0
