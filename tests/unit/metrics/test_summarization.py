"""ROUGE is the rouge-score library's, also of several references and of Chinese; the rest is counted by hand."""

import random
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from scipy import stats

from lushan.errors import DataError
from lushan.metrics.summarization import SummaryScore, intervals, numbers_in, score_rows

NAMES = ["rouge1", "rouge2", "rougeL"]
WORDS = ["The", "3.5", "runners", "were", "running,", "ran", "and", "run", "again", "--", "he's"]
WORDS += ["well-known", "in", "Paris;", "dogs", "barked", "U.S."]
CHARACTERS = [
    *"\u5e90\u5c71\u5728\u6c5f\u897f\u4e5d\u6c5f\uff0c\u98ce\u666f\u597d\u3002",
    " GPT ",
    "2024",
    " Open-AI ",
]


def _random_rows(parts: list[str], glue: str) -> tuple[list[list[str]], list[str]]:
    """500 answers, each with one to three references that share much with it."""
    generator = random.Random(0)
    answers = [glue.join(generator.choices(parts, k=generator.randint(0, 15))) for _ in range(500)]
    references = [
        [
            glue.join(generator.choices(parts, k=generator.randint(4, 15))) + glue + answer[:20]
            for _ in range(generator.randint(1, 3))
        ]
        for answer in answers
    ]
    return references, answers


def _rouge(rows: list[SummaryScore]) -> list[tuple[float, ...]]:
    return [(each.rouge_1, each.rouge_2, each.rouge_l) for each in rows]


def _scored(document: str, answer: str) -> SummaryScore:
    return score_rows([document], [["a reference"]], [answer])[0]


def test_500_random_summaries_score_as_rouge_score_says() -> None:
    references, answers = _random_rows(WORDS, " ")
    scorer = RougeScorer(NAMES, use_stemmer=True)
    expected = [
        tuple(scorer.score_multi(right, answer)[name].fmeasure for name in NAMES)
        for right, answer in zip(references, answers, strict=True)
    ]
    assert _rouge(score_rows(answers, references, answers)) == expected
    assert len(set(expected)) > 300


def test_500_random_chinese_summaries_score_as_rouge_score_says_of_their_characters() -> None:
    mixed, answers = _random_rows(CHARACTERS, "")
    references = [["\u98ce\u666f" * 6 + each for each in right] for right in mixed]
    letters = sorted({*"".join(CHARACTERS)} - {*" -,GPT2024OpenAI\uff0c\u3002"})
    # The library's own rule keeps a to z and digits alone: each character becomes a word of them.
    words = {letter: f" {number + 9_000}x " for number, letter in enumerate(letters)}
    spelled = str.maketrans(words)
    scorer = RougeScorer(NAMES)
    expected = [
        tuple(
            scorer.score_multi([each.translate(spelled) for each in right], answer.translate(spelled))[name].fmeasure
            for name in NAMES
        )
        for right, answer in zip(references, answers, strict=True)
    ]  # fmt: skip
    assert _rouge(score_rows(answers, references, answers)) == expected
    assert len(set(expected)) > 200


@pytest.mark.parametrize(
    ("right", "answer"),
    [
        ("OpenAI\u53d1\u5e03GPT-4o", "OpenAI\u8d77\u8bc9GPT-4o"),
        ("OpenAI \uacf5\uac1c \ucd9c\uc2dc GPT-4o", "OpenAI \uacf5\uc2dd \uace0\uc18c GPT-4o"),
        ("OpenAI \u0431\u0435\u0440\u0435\u0442 \u043a\u043e\u0434 GPT-4o", "OpenAI \u0436\u0434\u0435\u0442 \u0441\u0443\u0434 GPT-4o"),
    ],
)  # fmt: skip
def test_words_of_other_scripts_between_latin_names_count(right: str, answer: str) -> None:
    (found,) = score_rows(["d"], [[right]], [answer])
    # Of five pieces openai, gpt and 4o are the same, and of four pairs `gpt 4o`.
    assert (found.rouge_1, found.rouge_2, found.rouge_l) == pytest.approx((3 / 5, 1 / 4, 3 / 5))


def test_latin_name_alone_is_counted_as_the_chinese_set_that_it_stands_in() -> None:
    references = [["ChatGPT"], ["\u98ce\u666f\u597d" * 4]]
    found = score_rows(["d", "d"], references, ["ChatGPT\u5d29\u6e83", "\u98ce\u666f\u597d" * 4])
    assert [each.rouge_1 for each in found] == pytest.approx([1 / 2, 1])


def test_chinese_row_of_an_english_set_is_counted_by_characters() -> None:
    references = [["The runners ran again and again"]] * 9 + [["\u98ce\u666f\u597d"]]
    found = score_rows(["d"] * 10, references, ["runner"] * 9 + ["\u98ce\u666f"])
    assert [each.rouge_1 for each in found] == pytest.approx([2 / 7] * 9 + [4 / 5])


def test_500_english_summaries_with_signs_of_other_letters_score_as_rouge_score_says() -> None:
    signs = [
        "\u03b1-helix",
        "caf\u00e9",
        "\ufb01ne",
        "nai\u0308ve",
        "Hawai\u02bbi",
        "\U0001d465\u00b2",
    ]
    references, answers = _random_rows([*WORDS, *signs], " ")
    answers = [f"{each} \u5fae\u4fe1 running" for each in answers]
    scorer = RougeScorer(NAMES, use_stemmer=True)
    expected = [
        tuple(scorer.score_multi(right, answer)[name].fmeasure for name in NAMES)
        for right, answer in zip(references, answers, strict=True)
    ]
    assert _rouge(score_rows(answers, references, answers)) == expected


def test_hindi_and_loose_accents_are_words_for_what_is_copied_too() -> None:
    text = "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e caf\u00e9"
    found = _scored(text, unicodedata.normalize("NFD", text))
    assert (found.num_copied, found.num_ngrams) == (1, 1)


def test_best_reference_counts_for_each_metric_by_itself() -> None:
    (found,) = score_rows(["d"], [["a b c x", "c b a"]], ["a b c"])
    assert found.rouge_1 == 1.0
    assert found.rouge_l == pytest.approx(6 / 7)


def test_letters_that_the_rouge_scripts_drop_are_words_of_their_own() -> None:
    russian = "\u0432\u0447\u0435\u0440\u0430 \u0448\u0451\u043b \u0434\u043e\u0436\u0434\u044c"
    (found,) = score_rows(["d"], [[russian]], [russian[:9]])
    assert found.rouge_1 == pytest.approx(0.8)


def test_copied_ngrams_are_counted_once_each() -> None:
    found = _scored("The cat sat on the mat. A dog ran.", "the cat sat on the cat sat down")
    # the cat sat, cat sat on, sat on the | on the cat, cat sat down
    assert (found.num_copied, found.num_ngrams) == (3, 5)


def test_compression_counts_characters() -> None:
    assert _scored("x" * 40, "y" * 10).compression == 0.25


@pytest.mark.parametrize(
    ("summary", "is_supported"),
    [
        ("It cost 1,200 euros, 3.5% more.", True),
        ("It cost 1200 euros.", True),
        ("It cost many euros.", True),
        ("It cost 120 euros.", False),
        ("It cost 1,200 euros, 3.6% more.", False),
        ("\uff13.\uff15", True),
    ],
)
def test_numbers_must_stand_whole_in_the_document(summary: str, is_supported: bool) -> None:
    assert bool(_scored("A price of 1,200 (up 3.5%).", summary).number_support) == is_supported


def test_numbers_are_read_without_marks_around_them() -> None:
    assert numbers_in("In 1,234,567 of 12,5 cases, 2020.") == {"1234567", "12,5", "2020"}


def test_means_of_all_rows_with_intervals_near_scipys() -> None:
    references, answers = _random_rows(WORDS, " ")
    rows = score_rows(answers, references, answers)
    found = intervals(rows, seed=0)
    values = np.array([each.rouge_l for each in rows])
    reference = stats.bootstrap(
        (values,), np.mean, n_resamples=3_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert found["rouge_l"].value == pytest.approx(values.mean())
    ends = (found["rouge_l"].low, found["rouge_l"].high)
    assert ends == pytest.approx((reference.low, reference.high), abs=0.003)


def test_summaries_longer_than_their_documents_are_told_as_they_are() -> None:
    rows = [_scored("x", "y" * 3), _scored("x", "y")]
    compression = intervals(rows, seed=0)["compression"]
    assert (compression.value, compression.low, compression.high) == (2, 1, 3)
    copies = intervals([_scored("x", "x")] * 3, seed=0)["compression"]
    assert (copies.low, copies.high) == (1, 1)


def test_copied_share_is_that_of_all_ngrams_together() -> None:
    rows = [_scored("a b c d", "a b c x"), _scored("a b c d", "a"), _scored("a b c d", "a b c d")]
    assert set(intervals(rows, seed=0)) == {
        "rouge_1", "rouge_2", "rouge_l", "compression", "copied_share", "number_support"
    }  # fmt: skip
    assert intervals(rows, seed=0)["copied_share"].value == 3 / 4


def test_importing_the_metric_does_not_wait_for_its_library() -> None:
    code = "import sys, lushan.metrics.summarization; sys.exit('rouge_score' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_no_rows_and_rows_without_reference_are_refused() -> None:
    with pytest.raises(DataError, match="No rows to score"):
        intervals([], seed=0)
    with pytest.raises(DataError, match="without a reference"):
        score_rows(["d"], [[]], ["a"])
