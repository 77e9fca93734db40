"""ROUGE of summaries, as the rouge-score library counts it, and how they stand to their documents; with intervals.

Shapes: N rows, M metrics, R resamples.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import numpy as np

from lushan.errors import DataError
from lushan.metrics.pieces import OTHER_SCRIPTS, is_unspaced, ngrams, pieces, share_of_letters
from lushan.metrics.statistics import difference_interval, percentile_interval, resampled_totals
from lushan.records import Interval

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

COPIED_SIZE = 3
"""Words (or characters) in a row that count as copied where the document has them too."""

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_THOUSANDS = re.compile(r",(?=\d{3}(?!\d))")


@dataclass(frozen=True, slots=True)
class SummaryScore:
    """How good one summary is."""

    rouge_1: float
    """F1 of words, the best of all references; a fraction in [0, 1]."""
    rouge_2: float
    """F1 of pairs of words, likewise."""
    rouge_l: float
    """F1 of the longest common subsequence, likewise: how good the row is."""
    compression: float
    """Characters of the summary per character of the document; above 1 where it is longer."""
    num_copied: int
    """Different 3-grams of the summary that stand in its document."""
    num_ngrams: int
    """Different 3-grams of the summary."""
    number_support: float
    """1 where every number of the summary stands in the document, or it has none; else 0."""


def score_rows(
    documents: Sequence[str], references: Sequence[Sequence[str]], answers: Sequence[str]
) -> list[SummaryScore]:
    """Compare each summary with those that people wrote, and with its document.

    Words are those of the ROUGE scripts: runs of a to z and digits, stemmed by Porter's rules. Where a row's references
    have a letter of another script, or those of all rows are mostly written in others, words of any letters are taken as
    they are; of scripts without spaces each character is one. Greek letters count only where most letters are none of
    a to z, for English formulas have them too. Of several references the best counts, for each metric by itself.

    Args:
        documents: What was summarised.
        references: The right summaries of each row.
        answers: The given ones.

    Raises:
        DataError: If a row has no reference.
        ValueError: If the sequences differ in length.
    """
    rows: list[SummaryScore] = []
    scorers = _scorers(references)
    for document, right, answer, scorer in zip(
        documents, references, answers, scorers, strict=True
    ):
        if not right:
            raise DataError("A row without a reference cannot be scored by ROUGE.")
        rouge = scorer.score_multi(right, answer)
        rouge_1, rouge_2, rouge_l = (float(rouge[name].fmeasure) for name in scorer.rouge_types)
        against = _against_document(document, answer)
        rows.append(SummaryScore(rouge_1, rouge_2, rouge_l, *against))
    return rows


def intervals(rows: Sequence[SummaryScore], *, seed: int) -> dict[str, Interval]:
    """Give the mean of every metric with its 95 % interval, by a bootstrap over rows.

    `copied_share` is the share of all 3-grams together, so that a summary without any changes nothing.

    Raises:
        DataError: If there are no rows.
    """
    if not rows:
        raise DataError("No rows to score: expected at least one row with a known summary.")
    table_NM = np.array([astuple(each) for each in rows], dtype=np.float64)
    resampled = _means(resampled_totals(table_NM, seed=seed), len(rows))
    values = _means(table_NM.sum(axis=0)[None], len(rows))
    found = {
        name: percentile_interval(float(values[name][0]), resampled_R, num_rows=len(rows))
        for name, resampled_R in resampled.items()
    }
    # Compression has no upper end.
    compression = difference_interval(found["compression"].value, resampled["compression"])
    return {**found, "compression": compression}


def _means(totals_RM: np.ndarray, num_rows: int) -> dict[str, np.ndarray]:
    """Every metric of sums over rows; (R,) each."""
    columns = dict(zip(SummaryScore.__slots__, totals_RM.T, strict=True))
    num_copied, num_ngrams = columns.pop("num_copied"), columns.pop("num_ngrams")
    means = {name: total_R / num_rows for name, total_R in columns.items()}
    means["copied_share"] = num_copied / np.maximum(num_ngrams, 1)
    return means


def _scorers(references: Sequence[Sequence[str]]) -> "list[RougeScorer]":
    """For each row one that cuts words as the ROUGE scripts do, or one for other scripts."""
    # The library imports nltk, which takes seconds that no other task should wait for.
    from rouge_score.rouge_scorer import RougeScorer

    names = ["rouge1", "rouge2", "rougeL"]
    plain = RougeScorer(names, use_stemmer=True)
    by_piece = RougeScorer(names, tokenizer=PieceTokenizer())
    if _is_mostly_other([each for right in references for each in right]):
        return [by_piece] * len(references)
    return [by_piece if _needs_pieces(right) else plain for right in references]


class PieceTokenizer:
    """Cuts texts for ROUGE where its own rule, which keeps a to z and digits alone, would leave nothing."""

    def tokenize(self, text: str) -> list[str]:
        """Give words and numbers whole, and single characters of scripts without spaces."""
        return pieces(text)


def _needs_pieces(references: Sequence[str]) -> bool:
    """Whether the ROUGE scripts would drop whole words, in which answers may differ."""
    return share_of_letters(references, OTHER_SCRIPTS) > 0 or _is_mostly_other(references)


def _is_mostly_other(references: Sequence[str]) -> bool:
    return is_unspaced(references) or share_of_letters(references, "\u0250-\U0003ffff") > 1 / 2


def _against_document(document: str, answer: str) -> tuple[float, int, int, float]:
    """Compression, copied and all 3-grams, and whether the numbers are supported."""
    answered = set(ngrams(pieces(answer), COPIED_SIZE))
    copied = answered & set(ngrams(pieces(document), COPIED_SIZE))
    is_supported = numbers_in(answer) <= numbers_in(document)
    compression = len(answer) / max(len(document), 1)
    return compression, len(copied), len(answered), float(is_supported)


def numbers_in(text: str) -> set[str]:
    """Give the numbers of a text, without commas between thousands: `1,200` is `1200`."""
    found = _NUMBER.findall(unicodedata.normalize("NFKC", text))
    return {_THOUSANDS.sub("", number) for number in found}
