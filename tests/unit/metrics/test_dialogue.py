"""Likelihood, variety and length of answers."""

import math

import numpy as np
import pytest

from lushan.metrics.dialogue import likelihood_metrics, score


def test_perplexity_is_taken_over_all_tokens_not_over_rows() -> None:
    found = likelihood_metrics([(-2.0, 1), (-3.0, 9)], seed=0)
    assert found["answer_log_likelihood"].value == pytest.approx(-0.5)
    assert found["perplexity"].value == pytest.approx(math.exp(0.5))
    assert found["perplexity"].low == pytest.approx(math.exp(-found["answer_log_likelihood"].high))


def test_interval_covers_the_mean_of_the_source() -> None:
    generator = np.random.default_rng(0)
    num_covered = 0
    for trial in range(200):
        logs = generator.normal(-2.0, 0.5, size=50)
        found = likelihood_metrics([(each, 1) for each in logs], seed=trial)[
            "answer_log_likelihood"
        ]
        num_covered += found.low <= -2.0 <= found.high
    assert 180 <= num_covered <= 198


def test_distinct_counts_runs_of_words_and_of_chinese_characters() -> None:
    found = score(["i do not know", "I do not know!"], None, seed=0)
    assert found.metrics["distinct_1"].value == 4 / 8
    assert found.metrics["distinct_2"].value == 3 / 6
    assert found.metrics["reply_length"].value == 4
    chinese = score(["\u6211\u4e0d\u77e5\u9053\u3002"], None, seed=0)
    assert chinese.metrics["reply_length"].value == 4
    assert "perplexity" not in chinese.metrics
    assert found.row_scores == []


def test_row_score_is_the_geometric_mean_of_its_tokens_probabilities() -> None:
    found = score(["a"], [(math.log(0.5) + math.log(0.125), 2)], seed=0)
    assert found.row_scores == pytest.approx([0.25])


def test_empty_answers_have_no_variety() -> None:
    assert score(["", ""], None, seed=0).metrics["distinct_2"].value == 0
