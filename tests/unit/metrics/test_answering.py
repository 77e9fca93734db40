"""Exact match and F1 equal the official scripts of SQuAD and CMRC 2018, on answers made up at random."""

import random
import re
import string
from collections import Counter

import pytest

from lushan.errors import DataError
from lushan.metrics.answering import AnswerScore, Question, intervals, normalized, score_answer

WORDS = ("The", "an", "a", "cat", "Cat.", "it's", "1,000", "\u00fcber", "U.S.", "-", "", "the cat", "\u201cso\u201d")  # fmt: skip
CHARACTERS = ("\u5317", "\u4eac", "\u4e0a", "\u6d77", "\uff0c", "\u3002", "-", " ", "iPhone", "12", "\u300a", "\u2014")  # fmt: skip


def squad_normalized(answer: str) -> str:
    """Normalise as SQuAD's script does, step by step."""
    lower = answer.lower()
    bare = "".join(each for each in lower if each not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def squad(right: list[str], answer: str) -> tuple[float, float]:
    """Score as SQuAD v2.0's script does."""
    golds = [each for each in right if squad_normalized(each)] or [""]
    exact, f1 = [], []
    for gold in golds:
        exact.append(float(squad_normalized(gold) == squad_normalized(answer)))
        gold_tokens, tokens = squad_normalized(gold).split(), squad_normalized(answer).split()
        same = sum((Counter(gold_tokens) & Counter(tokens)).values())
        if not gold_tokens or not tokens:
            f1.append(float(gold_tokens == tokens))
        elif same == 0:
            f1.append(0.0)
        else:
            precision, recall = same / len(tokens), same / len(gold_tokens)
            f1.append(2 * precision * recall / (precision + recall))
    return max(exact), max(f1)


CMRC_MARKS = "-:_*^/\\~`+=\uff0c\u3002\uff1a\uff1f\uff01\u201c\u201d\uff1b\u2019\u300a\u300b\u00b7\u3001\u300c\u300d\uff08\uff09\uff0d\uff5e\u300e\u300f"  # fmt: skip


def cmrc_pieces(answer: str) -> list[str]:
    """Cut as CMRC 2018's script does, with white space for NLTK's tokenizer."""
    pieces, waiting = [], ""
    for each in answer.lower().strip():
        if each in CMRC_MARKS:
            continue
        if re.search(r"[\u4e00-\u9fa5]", each) or each == "\u2014":
            pieces += [*waiting.split(), each]
            waiting = ""
        else:
            waiting += each
    return [*pieces, *waiting.split()]


def cmrc(right: list[str], answer: str) -> tuple[float, float]:
    """Score as CMRC 2018's script does, over every common run."""
    exact, f1 = [], []
    for gold in right:
        one, other = (
            "".join(x for x in a.lower().strip() if x not in CMRC_MARKS) for a in (gold, answer)
        )
        exact.append(float(one == other))
        golds, pieces = cmrc_pieces(gold), cmrc_pieces(answer)
        runs = {tuple(golds[i:j]) for i in range(len(golds)) for j in range(i, len(golds) + 1)}
        same = max(
            (
                j - i
                for i in range(len(pieces))
                for j in range(i, len(pieces) + 1)
                if tuple(pieces[i:j]) in runs
            ),
            default=0,
        )
        f1.append(2 * same / (len(golds) + len(pieces)) if same else 0.0)
    return max(exact), max(f1)


def test_scores_by_words_equal_the_script_of_squad() -> None:
    draw = random.Random(0)
    for _ in range(1000):
        right = [
            " ".join(draw.choices(WORDS, k=draw.randint(0, 4))) for _ in range(draw.randint(0, 3))
        ]
        answer = " ".join(draw.choices(WORDS, k=draw.randint(0, 4)))
        found = score_answer(Question(tuple(right)), answer)
        assert (found.exact_match, found.f1) == pytest.approx(squad(right, answer)), (right, answer)
        assert normalized(answer) == squad_normalized(answer)


def test_scores_by_characters_equal_the_script_of_cmrc() -> None:
    draw = random.Random(0)
    for _ in range(1000):
        right = [
            "".join(draw.choices(CHARACTERS, k=draw.randint(1, 6)))
            for _ in range(draw.randint(1, 3))
        ]
        answer = "".join(draw.choices(CHARACTERS, k=draw.randint(0, 6)))
        found = score_answer(Question(tuple(right), by_characters=True), answer)
        assert (found.exact_match, found.f1) == pytest.approx(cmrc(right, answer)), (right, answer)


@pytest.mark.parametrize("by_characters", [False, True])
def test_question_without_an_answer_is_right_when_none_is_given(*, by_characters: bool) -> None:
    question = Question((), by_characters)
    assert score_answer(question, "") == AnswerScore(1.0, 1.0)
    assert score_answer(question, "\u5317") == AnswerScore(0.0, 0.0)
    assert score_answer(Question(("\u5317",), by_characters), "") == AnswerScore(0.0, 0.0)


def test_intervals_hold_the_means_and_grow_with_fewer_rows() -> None:
    scores = [
        AnswerScore(1.0, 1.0),
        AnswerScore(0.0, 0.5),
        AnswerScore(0.0, 0.0),
        AnswerScore(1.0, 1.0),
    ]
    few, many = intervals(scores), intervals(scores * 100)
    assert list(few) == ["f1", "exact_match"]
    assert (few["f1"].value, few["exact_match"].value) == (0.625, 0.5)
    assert few["f1"].low < many["f1"].low < 0.625 < many["f1"].high < few["f1"].high
    with pytest.raises(DataError, match="No rows to score"):
        intervals([])
