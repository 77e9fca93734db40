"""Words as metrics count them."""

import pytest

from lushan.metrics.words import words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It's 1,200 o'clock!", ["it", "s", "1", "200", "o", "clock"]),
        ("\u6211\u7231 GPT\u3002", ["\u6211", "\u7231", "gpt"]),
        ("caf\u00e9 \u041c\u0438\u0440", ["caf\u00e9", "\u043c\u0438\u0440"]),
        ("", []),
    ],
)
def test_words_are_runs_of_letters_or_single_chinese_characters(
    text: str, found: list[str]
) -> None:
    assert words(text) == found
