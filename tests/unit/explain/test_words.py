"""From tokens to words, in every script."""

import pytest

from lushan.explain.words import visible_words, word_shares, word_weights


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a great film!", ["a", "great", "film", "!"]),
        ("很好看。", ["很", "好", "看", "。"]),
        ("cafe\u0301 au lait", ["cafe\u0301", "au", "lait"]),
        (
            "ok \U0001f469\u200d\U0001f4bb\U0001f44d\U0001f3fd\u2764\ufe0f",
            ["ok", "\U0001f469\u200d\U0001f4bb", "\U0001f44d\U0001f3fd", "\u2764\ufe0f"],
        ),
    ],
)
def test_words_are_what_people_see_as_words(text: str, words: list[str]) -> None:
    assert [text[start:end] for start, end in visible_words(text)] == words


def test_tokens_inside_a_word_and_with_the_space_before_it_count_to_it() -> None:
    found = word_weights(
        "a great film", [((0, 1), 1.0), ((1, 5), 2.0), ((5, 7), 4.0), ((7, 12), 8.0)]
    )
    assert [(each.text, each.weight) for each in found] == [
        ("a", 1.0),
        ("great", 6.0),
        ("film", 8.0),
    ]


def test_token_of_several_words_is_shared_by_characters() -> None:
    found = word_weights("很好看ok", [((0, 2), 3.0), ((2, 5), 3.0)])
    assert [each.weight for each in found] == pytest.approx([1.5, 1.5, 1.0, 2.0])


def test_tokens_that_are_parts_of_one_character_all_count_to_its_word() -> None:
    found = word_weights(
        "a \U0001f600", [((0, 1), 1.0), ((1, 3), 2.0), ((2, 3), 4.0), ((2, 3), 8.0)]
    )
    assert [each.weight for each in found] == [1.0, 14.0]


def test_white_space_alone_counts_to_the_word_behind_it_or_to_the_last() -> None:
    words = [(2, 3), (6, 7)]
    assert word_shares(words, (0, 2)) == [(0, 1.0)]
    assert word_shares(words, (3, 6)) == [(1, 1.0)]
    assert word_shares(words, (7, 9)) == [(1, 1.0)]


def test_no_weight_is_lost() -> None:
    text = "  ok \U0001f44d\U0001f3fd 很好 cafe\u0301\n"
    tokens = [((start, min(start + 3, len(text))), 0.1 * start + 1) for start in range(len(text))]
    total = sum(each.weight for each in word_weights(text, tokens))
    assert total == pytest.approx(sum(weight for _, weight in tokens))
