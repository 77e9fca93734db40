"""Exact match and F1 of answers that are parts of a text, as the official scripts of the field count them.

Words: SQuAD v2.0's script, which agrees with v1.1's wherever there is an answer. Characters: CMRC 2018's script, for
scripts that put no spaces between words. Shapes: N rows, P distinct patterns of scores.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lushan.errors import DataError
from lushan.metrics.statistics import NUM_RESAMPLES, percentile_interval, resample
from lushan.records import Interval

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ASCII_MARKS = str.maketrans("", "", string.punctuation)
# The marks that CMRC 2018's script leaves out; its list has no others.
_MARKS = frozenset(
    "-:_*^/\\~`+=\uff0c\u3002\uff1a\uff1f\uff01\u201c\u201d\uff1b\u2019\u300a\u300b\u00b7\u3001"
    "\u300c\u300d\uff08\uff09\uff0d\uff5e\u300e\u300f"
)
_PIECE = re.compile(r"[\u4e00-\u9fa5]|[^\W\u4e00-\u9fa5]+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked: its right answers, any of which will do."""

    answers: tuple[str, ...]
    """Empty where the text has no answer."""
    by_characters: bool = False
    """Whether answers are compared by characters, as CMRC 2018 does, not by words."""


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """How good one answer is; fractions in [0, 1]."""

    exact_match: float
    f1: float


def score_answer(question: Question, answer: str) -> AnswerScore:
    """Compare one answer with those that are right; the best counts.

    Args:
        question: The right answers.
        answer: The answer; empty where none was given.
    """
    if question.by_characters and not question.answers:
        is_right = float(not answer)
        return AnswerScore(is_right, is_right)
    if question.by_characters:
        scores = [_score_characters(each, answer) for each in question.answers]
    else:
        right = [each for each in question.answers if normalized(each)]
        scores = [_score_words(each, answer) for each in right or [""]]
    return AnswerScore(max(each.exact_match for each in scores), max(each.f1 for each in scores))


def intervals(
    scores: Sequence[AnswerScore], *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> dict[str, Interval]:
    """Give mean F1 and exact match with their 95 % intervals, by a bootstrap over questions.

    Raises:
        DataError: If there are no rows.
    """
    if not scores:
        raise DataError("No rows to score: expected at least one question with known answers.")
    table_N2 = np.array([(each.f1, each.exact_match) for each in scores], dtype=np.float64)
    patterns_P2, count_P = np.unique(table_N2, axis=0, return_counts=True)
    weight_RP = resample(count_P, seed=seed, num_resamples=num_resamples)
    resampled_R2: NDArray[np.float64] = weight_RP @ patterns_P2 / len(scores)
    return {
        name: percentile_interval(
            float(table_N2[:, place].mean()), resampled_R2[:, place], num_rows=len(scores)
        )
        for place, name in enumerate(("f1", "exact_match"))
    }


def intervals_by_kind(
    questions: Sequence[Question], scores: Sequence[AnswerScore], *, seed: int = 0
) -> dict[str, Interval]:
    """Give the means of the questions with and of those without an answer, as SQuAD v2.0's script does.

    Nothing where all are of one kind. Without an answer F1 and exact match are one number: the share where none was given.
    """
    has_answer = [
        score for question, score in zip(questions, scores, strict=True) if question.answers
    ]
    no_answer = [x for question, x in zip(questions, scores, strict=True) if not question.answers]
    if not has_answer or not no_answer:
        return {}
    answered, withheld = intervals(has_answer, seed=seed), intervals(no_answer, seed=seed)
    return {
        "has_answer_f1": answered["f1"],
        "has_answer_exact_match": answered["exact_match"],
        "no_answer_accuracy": withheld["exact_match"],
    }


def normalized(answer: str) -> str:
    """Give the form in which SQuAD compares: lower case, no punctuation of ASCII, no articles, single spaces."""
    bare = answer.lower().translate(_ASCII_MARKS)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def _score_words(right: str, answer: str) -> AnswerScore:
    right, answer = normalized(right), normalized(answer)
    right_words, answer_words = right.split(), answer.split()
    if not right_words or not answer_words:
        return AnswerScore(float(right == answer), float(right == answer))
    num_same = (Counter(right_words) & Counter(answer_words)).total()
    return AnswerScore(float(right == answer), _f1(num_same, len(right_words), len(answer_words)))


def _score_characters(right: str, answer: str) -> AnswerScore:
    right, answer = _without_marks(right), _without_marks(answer)
    right_pieces, answer_pieces = _PIECE.findall(right), _PIECE.findall(answer)
    num_same = _longest_common_run(right_pieces, answer_pieces)
    return AnswerScore(float(right == answer), _f1(num_same, len(right_pieces), len(answer_pieces)))


def _without_marks(answer: str) -> str:
    return "".join(each for each in answer.lower().strip() if each not in _MARKS)


def _f1(num_same: int, num_right: int, num_answered: int) -> float:
    if not num_same:
        return 0.0
    precision, recall = num_same / num_answered, num_same / num_right
    return 2 * precision * recall / (precision + recall)


def _longest_common_run(one: Sequence[str], other: Sequence[str]) -> int:
    longest = 0
    before = [0] * (len(other) + 1)
    for piece in one:
        here = [0]
        here += [before[place] + 1 if piece == each else 0 for place, each in enumerate(other)]
        longest = max(longest, *here)
        before = here
    return longest
