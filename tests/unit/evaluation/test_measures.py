"""Metrics in words, each in its own scale."""

import pytest

from lushan.evaluation.measures import measure


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("accuracy", 0.9414, "94.1\u00a0%"),
        ("rouge_l", 0.2, "20.0\u00a0%"),
        ("chrf", 36.24, "36.2"),
        ("perplexity", 12.0, "12.0"),
        ("answer_log_likelihood", -1.5314, "\u22121.531"),
    ],
)
def test_value_is_written_in_the_scale_of_its_metric(metric: str, value: float, text: str) -> None:
    assert measure(metric).text(value) == text


def test_metric_that_is_not_known_is_a_fraction_with_its_name() -> None:
    assert measure("some_share").name == "Some share"
    assert measure("some_share").text(0.5) == "50.0\u00a0%"
    assert measure("some_share").span == measure("compression").span == 1
    assert measure("bleu").span == 100
