"""Taking words out, checked with a score whose drops are known."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from lushan.explain.faithfulness import check
from lushan.explain.gradients import Point, Scorer
from lushan.explain.questions import Piece, Question
from lushan.explain.settings import ExplainSettings
from lushan.explain.words import Weight
from lushan.records import Features

TEXT = "one two three four five"
WORTH = (1.0, -2.0, 8.0, 4.0, 0.5)
PLACES = ((0, 3), (3, 7), (7, 13), (13, 18), (18, 23))
WORDS = [
    Weight(start, end, TEXT[start:end].strip(), worth)
    for (start, end), worth in zip(PLACES, WORTH, strict=True)
]


class Additive:
    """A model in which every token adds what it is worth, and the template's first token 100."""

    def scores(self, points: Sequence[Point]) -> np.ndarray:
        return np.array([each.presence_T @ np.array([100.0, *WORTH]) for each in points])


def checked(settings: ExplainSettings, *shares: float) -> Any:  # noqa: ANN401
    pieces = [
        Piece(
            Features(tuple(range(6)), "", 0),
            (None, *PLACES),
            ("", *TEXT.split()),
            np.ones(6, dtype=bool),
            share,
        )
        for share in shares or (1.0,)
    ]
    question = Question("good", None, TEXT, tuple(pieces))
    (found,) = check(cast("Scorer", Additive()), [question], [WORDS], settings)
    return found


def test_drops_are_those_of_the_top_words_and_of_all_others() -> None:
    found = checked(ExplainSettings(top_fraction=0.4))
    assert found.num_words == 2
    assert found.comprehensiveness == pytest.approx(8 + 4)
    assert found.sufficiency == pytest.approx(1 - 2 + 0.5)


def test_random_words_are_as_many_and_the_mean_of_the_draws() -> None:
    many = checked(ExplainSettings(top_fraction=0.4, num_draws=3000))
    assert many.random_comprehensiveness == pytest.approx(0.4 * sum(WORTH), abs=0.3)
    assert many.random_sufficiency == pytest.approx(0.6 * sum(WORTH), abs=0.3)
    assert checked(ExplainSettings(seed=1)) == checked(ExplainSettings(seed=1))
    assert checked(ExplainSettings(seed=1)) != checked(ExplainSettings(seed=2))


def test_pieces_count_their_share() -> None:
    whole, halves = checked(ExplainSettings()), checked(ExplainSettings(), 0.5, 0.5)
    assert halves.comprehensiveness == pytest.approx(whole.comprehensiveness)
    assert replace(halves, num_draws=5) == replace(whole, num_draws=5)


def test_at_least_one_word_is_taken_out() -> None:
    assert checked(ExplainSettings(top_fraction=0.01)).num_words == 1
