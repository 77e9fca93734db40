"""Variety is counted as Li et al. do, likelihoods as their definitions say, and intervals are of the right width."""

import math

import numpy as np
import pytest
from scipy import stats

from lushan.errors import DataError
from lushan.metrics.dialogue import likelihood_intervals, reply_intervals, row_scores

LIKELIHOODS = [(-3.0, 2), (-1.0, 1), (-12.0, 9)]


def test_distinct_is_different_words_and_pairs_over_all_words() -> None:
    found = reply_intervals(["I do not know.", "I do not care!"], seed=0)
    assert found["distinct_1"].value == 5 / 8
    assert found["distinct_2"].value == 4 / 8
    assert found["reply_length"].value == 4


def test_pairs_do_not_reach_from_one_reply_into_the_next() -> None:
    assert reply_intervals(["a", "b"], seed=0)["distinct_2"].value == 0


def test_chinese_is_counted_by_characters() -> None:
    found = reply_intervals(["\u6211\u4e0d\u77e5\u9053\u3002", "\u6211\u77e5\u9053GPT"], seed=0)
    # wo bu zhi dao | wo zhi dao gpt
    assert found["distinct_1"].value == 5 / 8
    assert found["distinct_2"].value == 5 / 8
    assert found["reply_length"].value == 4


def _replies(num_rows: int, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    return [
        " ".join(f"w{n}" for n in generator.zipf(1.5, size=8) if n < 10_000)
        for _ in range(num_rows)
    ]


def test_interval_of_distinct_is_about_as_wide_as_new_samples_are_spread() -> None:
    values = [reply_intervals(_replies(80, seed), seed=0)["distinct_1"] for seed in range(40)]
    half = 1.96 * np.std([each.value for each in values])
    widths = [(each.high - each.low) / 2 for each in values]
    assert half * 0.8 < np.mean(widths) < half * 1.5
    assert all(each.low < each.value < each.high for each in values)


def test_one_reply_says_nothing_about_others() -> None:
    found = reply_intervals(["one and one"], seed=0)["distinct_1"]
    assert (found.value, found.low, found.high) == (2 / 3, 0, 1)


def test_replies_without_a_word_are_zeros_not_errors() -> None:
    found = reply_intervals(["", "..."], seed=0)
    assert {name: each.value for name, each in found.items()} == {
        "distinct_1": 0, "distinct_2": 0, "reply_length": 0
    }  # fmt: skip


def test_likelihood_is_the_mean_of_all_tokens_and_perplexity_its_exponential() -> None:
    found = likelihood_intervals(LIKELIHOODS, seed=0)
    assert found["answer_log_likelihood"].value == pytest.approx(-16 / 12)
    assert found["perplexity"].value == pytest.approx(math.exp(16 / 12))


def test_interval_of_the_likelihood_is_close_to_scipys_bootstrap_of_rows() -> None:
    generator = np.random.default_rng(0)
    num_tokens = generator.integers(1, 30, size=150)
    total = -generator.gamma(2.0, 1.0, size=150) * num_tokens
    reference = stats.bootstrap(
        (total, num_tokens),
        lambda sums, counts, axis: sums.sum(axis=axis) / counts.sum(axis=axis),
        paired=True, n_resamples=3_000, method="percentile", rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    rows = list(zip(total.tolist(), num_tokens.tolist(), strict=True))
    found = likelihood_intervals(rows, seed=0)
    interval = found["answer_log_likelihood"]
    assert (interval.low, interval.high) == pytest.approx((reference.low, reference.high), abs=0.04)
    assert found["perplexity"].low == pytest.approx(math.exp(-interval.high))
    assert found["perplexity"].high == pytest.approx(math.exp(-interval.low))


def test_row_scores_are_geometric_means_of_probabilities() -> None:
    assert row_scores([(math.log(0.25), 2), (0.0, 3)]) == pytest.approx([0.5, 1.0])


@pytest.mark.parametrize("strange", [(-1.0, 0), (0.5, 1), (-math.inf, 2), (math.nan, 2)])
def test_likelihoods_that_cannot_be_are_refused(strange: tuple[float, int]) -> None:
    with pytest.raises(ValueError, match="Row 2 of the scored rows"):
        row_scores([(-1.0, 1), strange])


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="No rows"):
        reply_intervals([], seed=0)
    with pytest.raises(DataError, match="No rows"):
        likelihood_intervals([], seed=0)
