"""BLEU and chrF of translations, as sacrebleu counts them, with intervals; from 0 to 100.

Shapes: N rows, K counts of a row, R resamples.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU, MAX_NGRAM_ORDER
from sacrebleu.metrics.chrf import CHRF

from lushan.errors import DataError
from lushan.metrics.pieces import HAN, KANA, THAI_TO_KHMER, UNSPACED_FRACTION, share_of_letters
from lushan.metrics.statistics import percentile_interval, resampled_totals
from lushan.records import Interval

Languages = Sequence[str | None]
"""Target language of each row, as its code or its name; None where it is not known."""

_CHINESE = frozenset({
    "zh", "zho", "chi", "chs", "cht", "cmn", "cn", "yue", "lzh", "wuu", "chinese", "mandarin", "cantonese",
})  # fmt: skip
_BY_CHARACTER = frozenset({
    "ja", "jp", "jpn", "japanese", "th", "tha", "thai", "lo", "lao",
    "km", "khm", "khmer", "my", "mya", "bur", "burmese",
})  # fmt: skip
_LONGEST_CODE = 3
"""Letters of a language code of ISO 639."""


def score(
    truth: Sequence[str], answers: Sequence[str], *, languages: Languages, seed: int
) -> dict[str, Interval]:
    """Give `bleu` and `chrf` of a whole set, with their 95 % intervals by a bootstrap over rows.

    BLEU cuts words by the target language: `zh` for Chinese, `char` for Japanese, Thai and their neighbours, `13a`
    for all other codes. Where a language has another name, such as one in its own script, or none, the script of the truth
    decides, of all rows of that name together. Rows of several languages are each cut in their own way, and their counts
    are summed.

    Args:
        truth: The right translation of each row.
        answers: The given ones.
        languages: One of each row.
        seed: Of the bootstrap.

    Raises:
        DataError: If there are no rows.
        ValueError: If the sequences differ in length.
    """
    _check(truth, answers, languages)
    bleu_NK, chrf_NK = _bleu_counts(truth, answers, languages), _counts(CHRF(), truth, answers)
    return {
        "bleu": _interval(bleu_NK, _bleu_of, seed=seed),
        "chrf": _interval(chrf_NK, _chrf_of, seed=seed),
    }


def row_scores(truth: Sequence[str], answers: Sequence[str]) -> list[float]:
    """Give chrF of each sentence by itself, as a fraction in [0, 1].

    Raises:
        ValueError: If there are not as many answers as truths.
    """
    metric = CHRF()
    rows = zip(truth, answers, strict=True)
    scores = [metric.sentence_score(answer, [right]).score / 100 for right, answer in rows]
    return [min(each, 1.0) for each in scores]


def signatures(truth: Sequence[str], languages: Languages) -> dict[str, str]:
    """Give what sacrebleu prints to say how `bleu` and `chrf` were counted; several cuts of words joined by `+`.

    Raises:
        DataError: If there are no rows.
        ValueError: If the sequences differ in length.
    """
    _check(truth, truth, languages)
    bleu = BLEU()
    bleu.tokenizer_signature = "+".join(sorted(set(tokenizers(truth, languages))))
    chrf = CHRF()
    for metric in (bleu, chrf):
        # A signature tells the number of references, which a metric knows once it has scored.
        metric.corpus_score(["a"], [["a"]])
    return {"bleu": str(bleu.get_signature()), "chrf": str(chrf.get_signature())}


def tokenizers(truth: Sequence[str], languages: Languages) -> list[str]:
    """Give sacrebleu's name of the way in which each row is cut into words.

    Raises:
        ValueError: If there are not as many languages as truths.
    """
    texts: dict[str | None, list[str]] = {}
    for right, language in zip(truth, languages, strict=True):
        texts.setdefault(language or None, []).append(right)
    found = {
        language: (language and _tokenizer_of(language)) or _tokenizer_of_script(rows)
        for language, rows in texts.items()
    }
    return [found[language or None] for language in languages]


def _tokenizer_of(language: str) -> str | None:
    """None where a language is named in a way that is not known here, such as in its own script."""
    first, *others = re.findall(r"[^\W_]+", language.casefold()) or [""]
    # A code stands first; behind it `MY` in `ms-MY` is Malaysia, and not Burmese. A name stands anywhere.
    words = {first, *(each for each in others if len(each) > _LONGEST_CODE)}
    if words & _CHINESE:
        return "zh"
    if words & _BY_CHARACTER:
        return "char"
    return "13a" if re.fullmatch(f"[a-z]{{2,{_LONGEST_CODE}}}", first) else None


def _tokenizer_of_script(texts: Sequence[str]) -> str:
    # Japanese mixes its syllables with Chinese characters, so they are looked for first.
    if share_of_letters(texts, f"{KANA}{THAI_TO_KHMER}") > UNSPACED_FRACTION / 2:
        return "char"
    return "zh" if share_of_letters(texts, HAN) > UNSPACED_FRACTION else "13a"


def _bleu_counts(
    truth: Sequence[str], answers: Sequence[str], languages: Languages
) -> NDArray[np.int64]:
    """Lengths, matches and n-grams of each row, (N, K)."""
    names = np.array(tokenizers(truth, languages))
    counts_NK = np.zeros((len(truth), 2 + 2 * MAX_NGRAM_ORDER), dtype=np.int64)
    for name in set(names.tolist()):
        rows = np.flatnonzero(names == name).tolist()
        # `force` leaves out a warning on stderr about answers that end in a space and a full stop.
        metric = BLEU(tokenize=name, force=True)
        counts_NK[rows] = _counts(metric, [truth[n] for n in rows], [answers[n] for n in rows])
    return counts_NK


def _counts(metric: BLEU | CHRF, truth: Sequence[str], answers: Sequence[str]) -> NDArray[np.int64]:
    """What each row adds to the counts of the set, (N, K)."""
    # sacrebleu's own bootstrap sums these rows too (sacrebleu/significance.py), but its seed is one of the process.
    counts = metric._extract_corpus_statistics(list(answers), [list(truth)])
    return np.array(counts, dtype=np.int64)


def _bleu_of(totals: list[int]) -> float:
    length, right_length, *counts = totals
    matches, all_ngrams = counts[:MAX_NGRAM_ORDER], counts[MAX_NGRAM_ORDER:]
    return BLEU.compute_bleu(matches, all_ngrams, length, right_length, smooth_method="exp").score


def _chrf_of(totals: list[int]) -> float:
    return CHRF()._compute_score_from_stats(totals).score


def _interval(
    counts_NK: NDArray[np.int64], value_of: Callable[[list[int]], float], *, seed: int
) -> Interval:
    value = value_of(counts_NK.sum(axis=0).tolist())
    totals_RK = resampled_totals(counts_NK, seed=seed).astype(np.int64)
    resampled_R = np.array([value_of(totals) for totals in totals_RK.tolist()])
    # The last digit of a perfect score must not hide that it is perfect.
    share = round(value / 100, 12)
    found = percentile_interval(share, resampled_R.round(9) / 100, num_rows=len(counts_NK))
    return Interval(value, min(value, 100 * found.low), max(value, 100 * found.high))


def _check(truth: Sequence[str], answers: Sequence[str], languages: Languages) -> None:
    if not truth:
        raise DataError("No rows to score: expected at least one row with a known translation.")
    if not len(truth) == len(answers) == len(languages):
        raise ValueError(
            f"{len(truth)} truths, {len(answers)} answers and {len(languages)} languages."
        )
