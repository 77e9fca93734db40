"""Answers cut out of a text: when none is given, and how likely that is said to be."""

import numpy as np
import pytest
from scipy.special import softmax

from lushan.cut_answers import Found, cut_prediction, likeliest
from lushan.records import Example, Features

TEXT = "Ada left"
EXAMPLE = Example("id", TEXT, None)
UNITS = ((0, 0), (0, 3), (4, 8), (0, 0))
FEATURES = Features((1, 2, 3, 4), "a", 0, units=UNITS)
SCORES_K2 = np.array([[2.0, 0.5], [0.0, 1.0], [1.0, 0.25]], dtype=np.float32)


def test_probability_of_no_answer_weighs_the_best_part_against_the_last_token() -> None:
    found = likeliest(SCORES_K2, FEATURES)
    starts, ends = softmax(SCORES_K2.astype(float), axis=0).T
    best, absent = starts[0] * ends[1], starts[2] * ends[2]
    told = cut_prediction(EXAMPLE, [found], threshold=1.0, may_abstain=True)
    assert told.no_answer_probability == pytest.approx(absent / (absent + best))
    assert [each.text for each in told.answer] == ["Ada left"]  # pyright: ignore[reportAttributeAccessIssue]


def test_no_answer_is_given_above_the_threshold_only() -> None:
    found = likeliest(SCORES_K2, FEATURES)
    absence = 1 / (1 + np.exp(found.log_odds))
    for threshold, is_given in ((absence, True), (absence - 1e-9, False), (0.0, False)):
        told = cut_prediction(EXAMPLE, [found], threshold=threshold, may_abstain=True)
        assert bool(told.answer) is is_given
        assert told.no_answer_probability == pytest.approx(absence)
    always = cut_prediction(EXAMPLE, [found], threshold=0.0, may_abstain=False)
    assert always.answer


def test_without_a_threshold_the_likelier_of_both_is_taken_and_no_probability_told() -> None:
    for log_odds, is_given in ((0.1, True), (-0.1, False)):
        found = Found((0, 3), log_odds, -1.0, -1.0 - log_odds)
        told = cut_prediction(EXAMPLE, [found], threshold=None, may_abstain=True)
        assert bool(told.answer) is is_given
        assert told.no_answer_probability is None


def test_window_without_any_of_the_text_has_no_answer() -> None:
    nothing = likeliest(SCORES_K2[-1:], Features((1,), "a", 0, units=((0, 0),)))
    told = cut_prediction(EXAMPLE, [nothing], threshold=1.0, may_abstain=True)
    assert told.answer == ()
    assert told.no_answer_probability == 1
