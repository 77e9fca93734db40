"""BLEU and chrF are sacrebleu's to the last digit, in every language, with intervals that hold them."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from lushan.errors import DataError
from lushan.metrics import translation

ENGLISH = [
    "The committee met again on Tuesday, and nothing was decided.",
    "Prices rose by 3.5% (from $1,200 to $1,242) last year.",
    "He said: \"I don't know &amp; I don't care!\"",
    "A well-known author of short stories died .",
    "Yes.",
]
CHINESE = [
    "委员会星期二又开了会\uff0c什么也没有决定。",
    "去年价格上涨了3.5%\uff08从1,200美元到1,242美元\uff09。",
    "他说\uff1a\u201c我不知道\uff0cGPT-4也不知道\uff01\u201d",
    "一位著名的短篇小说作家去世了。",
    "是的。",
]


def _edited(text: str, generator: random.Random, *, by_characters: bool) -> str:
    """Leave out, double, swap and replace some words or characters."""
    parts = list(text) if by_characters else text.split()
    for _ in range(generator.randrange(6)):
        place = generator.randrange(len(parts) + 1)
        change = generator.choice([
            [],
            ["的" if by_characters else "and"],
            parts[place : place + 1] * 2,
        ])
        parts[place : place + 1] = change
    return ("" if by_characters else " ").join(parts)


def _set(seed: int, texts: Sequence[str], *, by_characters: bool) -> tuple[list[str], list[str]]:
    generator = random.Random(seed)
    truth = generator.choices(texts, k=generator.randint(1, 6))
    return truth, [_edited(each, generator, by_characters=by_characters) for each in truth]


def _points(truth: list[str], answers: list[str], language: str | None) -> dict[str, float]:
    found = translation.score(truth, answers, languages=[language] * len(truth), seed=0)
    return {name: interval.value for name, interval in found.items()}


@pytest.mark.parametrize("language", ["en", "zh", None])
def test_scores_of_500_random_sets_are_those_of_sacrebleu(
    language: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lushan.metrics.statistics.NUM_RESAMPLES", 2)
    texts, tokenizer = (ENGLISH, "13a") if language == "en" else (CHINESE, "zh")
    sets = [_set(seed, texts, by_characters=tokenizer == "zh") for seed in range(500)]
    expected = [
        {
            "bleu": BLEU(tokenize=tokenizer).corpus_score(answers, [truth]).score,
            "chrf": CHRF().corpus_score(answers, [truth]).score,
        }
        for truth, answers in sets
    ]
    assert [_points(*each, language) for each in sets] == expected
    assert len({each["bleu"] for each in expected}) > 300


@pytest.mark.parametrize(
    ("language", "tokenizer"),
    [
        ("zh", "zh"), ("zh-CN", "zh"), ("zho_Hans", "zh"), ("Chinese (Simplified)", "zh"), ("cmn", "zh"),
        ("Simplified Chinese", "zh"), ("Traditional Chinese", "zh"), ("Chinese(Taiwan)", "zh"), ("cn", "zh"),
        ("ja", "char"), ("Japanese", "char"), ("th", "char"), ("jp", "char"), ("Central Khmer", "char"),
        ("en", "13a"), ("de_DE", "13a"), ("Czech", "13a"), ("ko", "13a"), ("ms-MY", "13a"), ("??", "13a"),
    ],
)  # fmt: skip
def test_language_decides_how_words_are_cut(language: str, tokenizer: str) -> None:
    assert translation.tokenizers(["anything"], [language]) == [tokenizer]


@pytest.mark.parametrize(
    ("truth", "tokenizer"),
    [
        (CHINESE, "zh"),
        (ENGLISH, "13a"),
        (["私はコーヒーが好きです。"], "char"),
        (["ฉันชอบกาแฟ"], "char"),
    ],
)
def test_script_of_all_rows_decides_where_no_language_is_given(
    truth: list[str], tokenizer: str
) -> None:
    assert set(translation.tokenizers([*truth, "OK"], [None] * (len(truth) + 1))) == {tokenizer}


@pytest.mark.parametrize(
    ("language", "truth", "tokenizer"),
    [
        ("中文", CHINESE, "zh"),
        ("简体中文", CHINESE, "zh"),
        ("汉语", CHINESE, "zh"),
        ("Putonghua", CHINESE, "zh"),
        ("日本語", ["私はコーヒーが好きです。"], "char"),
        ("Deutsch", ["Die Tür ist offen."], "13a"),
        ("한국어", ["나는 커피를 좋아한다."], "13a"),
    ],
)
def test_script_of_its_own_rows_decides_where_the_name_of_a_language_is_not_known(
    language: str, truth: list[str], tokenizer: str
) -> None:
    names = [language] * len(truth) + ["Svenska"] * len(ENGLISH)
    expected = [tokenizer] * len(truth) + ["13a"] * len(ENGLISH)
    assert translation.tokenizers([*truth, *ENGLISH], names) == expected


def test_rows_of_two_languages_are_each_cut_in_their_own_way() -> None:
    truth, answers = [ENGLISH[0], CHINESE[0]], [ENGLISH[0], CHINESE[3]]
    found = translation.score(truth, answers, languages=["en", "zh"], seed=0)["bleu"].value
    parts = [
        BLEU(tokenize=name, effective_order=True).sentence_score(answer, [right])
        for name, answer, right in zip(("13a", "zh"), answers, truth, strict=True)
    ]
    counts = [
        np.sum([getattr(each, name) for each in parts], axis=0).tolist()
        for name in ("counts", "totals")
    ]
    lengths = [sum(getattr(each, name) for each in parts) for name in ("sys_len", "ref_len")]
    assert found == BLEU.compute_bleu(*counts, *lengths, smooth_method="exp").score
    assert "tok:13a+zh" in translation.signatures(truth, ["en", "zh"])["bleu"]


def test_signatures_are_those_of_sacrebleu() -> None:
    bleu, chrf = BLEU(tokenize="zh"), CHRF()
    for metric in (bleu, chrf):
        metric.corpus_score(CHINESE, [CHINESE])
    found = translation.signatures(CHINESE, ["zh"] * len(CHINESE))
    assert found == {"bleu": str(bleu.get_signature()), "chrf": str(chrf.get_signature())}


def test_row_scores_are_chrf_of_each_sentence_as_a_fraction() -> None:
    answers = ["", "Prices rose.", ENGLISH[2], "x", "Yes."]
    expected = [
        CHRF().sentence_score(a, [t]).score / 100 for a, t in zip(answers, ENGLISH, strict=True)
    ]
    found = translation.row_scores(ENGLISH, answers)
    assert found == pytest.approx(expected)
    assert (found[0], found[-1]) == (0, 1)


def test_interval_is_close_to_that_of_sacrebleus_own_bootstrap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SACREBLEU_SEED", "1")
    sets = [_set(seed, ENGLISH, by_characters=False) for seed in range(60)]
    truth, answers = [t for each in sets for t in each[0]], [a for each in sets for a in each[1]]
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        found = translation.score(truth, answers, languages=["en"] * len(truth), seed=0)[name]
        reference = metric.corpus_score(answers, [truth], n_bootstrap=1_000)
        half = (found.high - found.low) / 2
        assert half == pytest.approx(vars(reference)["_ci"], rel=0.15)
        assert found.low < found.value < found.high


def test_few_perfect_rows_are_not_certainty() -> None:
    found = translation.score(ENGLISH, ENGLISH, languages=["en"] * 5, seed=0)
    for interval in found.values():
        assert interval.value == pytest.approx(100)
        assert interval.low < 60


def test_no_rows_and_rows_that_do_not_match_are_refused() -> None:
    with pytest.raises(DataError, match="No rows to score"):
        translation.score([], [], languages=[], seed=0)
    with pytest.raises(ValueError, match="1 truths, 2 answers and 1 languages"):
        translation.score(["a"], ["a", "b"], languages=["en"], seed=0)
