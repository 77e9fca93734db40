"""Words are places in a text: nothing but white space is left out, and no accent is cut off."""

import random
from itertools import pairwise

import pytest

from lushan.data.words import chinese_fraction, is_unspaced, join_words, words_of

PIECES = ("a", "Z", "9", "_", "é", "e\u0301", "山", "の", "ส", "ั", "नि", "👩", "\u200d", "\ufe0f", " ", "\t", ".", "$", "'", "\uff0c")  # fmt: skip


def cut(text: str) -> list[str]:
    return [text[start:end] for start, end in words_of(text)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Ada's U.S. trip", ["Ada", "'", "s", "U", ".", "S", ".", "trip"]),
        ("cafe\u0301s are", ["cafe\u0301s", "are"]),
        ("我在2024年Python好", ["我", "在", "2024", "年", "Python", "好"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("สวัสดี", ["ส", "วั", "ส", "ดี"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("a\u200db", ["a\u200db"]),
        ("$100 @user_x", ["$", "100", "@", "user_x"]),
        (" \t\n", []),
    ],
)
def test_words_are_runs_of_letters_marks_and_characters(text: str, words: list[str]) -> None:
    assert cut(text) == words


@pytest.mark.parametrize("seed", range(20))
def test_words_follow_each_other_and_leave_nothing_but_space(seed: int) -> None:
    text = "".join(random.Random(seed).choices(PIECES, k=60))
    places = words_of(text)
    assert all(one[1] <= other[0] for one, other in pairwise(places))
    covered = {index for start, end in places for index in range(start, end)}
    assert all(text[index].isspace() == (index not in covered) for index in range(len(text)))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["New", "York", "."], "New York ."),
        (["a", "b"], "a b"),
        (["中", "国", "1", "9", "P"], "中国19P"),
        (["我", "爱", "北京", "。"], "我爱北京。"),
        (["我", "爱", "New", "York"], "我爱 New York"),
    ],
)
def test_joined_words_have_spaces_where_their_script_has(words: list[str], text: str) -> None:
    joined, places = join_words(words)
    assert joined == text
    assert [joined[start:end] for start, end in places] == words


@pytest.mark.parametrize(
    ("text", "expected"),
    [("plain English", False), ("这家店很好吃", True), ("iPhone 手机壳很好用", True),
     ("the word 山 means mountain", False), ("とてもおいしい", True), ("한국어 문장입니다", False), ("123 :-)", False)],
)  # fmt: skip
def test_scripts_without_spaces_are_recognised(text: str, *, expected: bool) -> None:
    assert is_unspaced([text]) is expected


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["山 and hill"], 1 / 8),
        (["山水", "a b"], 1 / 2),
        (["㐀豈𠀀"], 1.0),
        (["とても", "한국어", "hill"], 0.0),
        (["123 :-)", ""], 0.0),
        ([], 0.0),
    ],
)
def test_share_of_chinese_letters(texts: list[str], expected: float) -> None:
    assert chinese_fraction(texts) == expected
