"""Marks stand where their values are."""

import math
import re
from typing import Any

import pytest

from lushan.evaluation import charts
from lushan.evaluation.phrases import metric_scale

STEPS = [{"step": step, "loss": 2.0 / step} for step in range(1, 1_001)]
VALIDATION = [
    {"epoch": 1, "step": 500, "score": 0.7, "loss": 0.4},
    {"epoch": 2, "step": 1_000, "score": 0.9, "loss": 0.3},
]


def _points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.83, 0.96, [0.8, 0.85, 0.9, 0.95, 1.0]),
        (0, 300, [0, 100, 200, 300]),
        (0, 2.7, [0, 1, 2, 3]),
    ],
)
def test_ticks_are_round_and_cover(low: float, high: float, expected: list[float]) -> None:
    assert charts.nice_ticks(low, high) == pytest.approx(expected)


def test_scale_places_values_in_percent_and_keeps_them_inside() -> None:
    scale = charts.Scale(0.2, 0.7)
    assert [scale.place(value) for value in (0.2, 0.45, 0.7, 0.9)] == [0, 50, 100, 100]
    mark = scale.mark({"value": 0.45, "low": 0.4, "high": 0.5})
    assert (mark.low, mark.at, mark.high) == (40, 50, 60)


def test_score_axis_holds_every_interval_and_stays_a_fraction() -> None:
    scores = [{"value": 0.97, "low": 0.95, "high": 0.99}, {"value": 0.6, "low": 0.55, "high": 0.64}]
    scale, ticks = charts.score_scale(scores)
    assert scale.low <= 0.55
    assert 0.99 <= scale.high <= 1
    assert [tick.text for tick in ticks] == ["50", "60", "70", "80", "90", "100"]


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_score_axis_of_one_value_has_a_width(value: float) -> None:
    scale, ticks = charts.score_scale([{"value": value, "low": value, "high": value}])
    assert 0 <= scale.low < scale.high <= 1
    assert len(ticks) >= 2


def test_loss_falls_from_left_to_right() -> None:
    panel = charts.loss_panel(STEPS, VALIDATION)
    assert panel is not None
    smooth = _points(dict(panel.paths)["smooth"])
    assert len(smooth) == charts.MAX_POINTS
    assert smooth[0][1] < smooth[-1][1]  # places run from the top
    assert smooth[-1][0] > 99
    assert [dot.x for dot in panel.dots] == [50, 100]


def test_smoothing_starts_at_the_first_loss() -> None:
    panel = charts.loss_panel([{"step": n, "loss": 1.0} for n in range(1, 50)], [])
    assert panel is not None
    raw, smooth = (_points(path) for _, path in panel.paths)
    assert smooth == raw


def test_a_loss_that_is_not_finite_is_left_out() -> None:
    panel = charts.loss_panel([*STEPS, {"step": 1_001, "loss": math.nan}], [])
    assert panel is not None
    assert "nan" not in dict(panel.paths)["raw"]


def test_no_steps_no_curve() -> None:
    assert charts.loss_panel([], VALIDATION) is None
    assert charts.score_panel([], best_epoch=None) is None


def test_best_epoch_is_marked() -> None:
    panel = charts.score_panel(VALIDATION, best_epoch=1, last_step=1_000)
    assert panel is not None
    assert panel.best_x == 50
    assert [(dot.text, dot.is_best) for dot in panel.dots] == [("70.0", True), ("90.0", False)]
    assert panel.dots[0].y > panel.dots[1].y


def test_best_of_several_evaluations_in_one_epoch_is_marked() -> None:
    twice = [*VALIDATION, {"epoch": 2, "step": 1_500, "score": 0.95, "loss": 0.3}]
    panel = charts.score_panel(twice, best_epoch=2)
    assert panel is not None
    assert [dot.is_best for dot in panel.dots] == [False, False, True]


@pytest.mark.parametrize(
    ("metric", "lows", "highs", "texts"),
    [
        ("bleu", (11, 34), (14, 38), ["10", "20", "30", "40"]),
        ("perplexity", (35, 11), (44, 14), ["10", "20", "30", "40", "50"]),
        ("answer_log_likelihood", (-3.9, -1.6), (-3.5, -0.1), ["\u22124", "\u22123", "\u22122", "\u22121", "0"]),
    ],
)  # fmt: skip
def test_score_axis_holds_other_scales_and_negative_values(
    metric: str, lows: tuple[float, float], highs: tuple[float, float], texts: list[str]
) -> None:
    scores = [
        {"value": low, "low": low, "high": high} for low, high in zip(lows, highs, strict=True)
    ]
    scale, ticks = charts.score_scale(scores, metric_scale(metric))
    assert scale.low <= min(lows) < max(highs) <= scale.high
    assert [tick.text for tick in ticks] == texts
    assert all(0 <= tick.at <= 100 for tick in ticks)


@pytest.mark.parametrize(
    ("metric", "value"),
    [("bleu", 0.0), ("bleu", 100.0), ("perplexity", 900.0), ("answer_log_likelihood", 0.0)],
)
def test_axis_of_one_value_of_another_scale_has_a_width(metric: str, value: float) -> None:
    one = {"value": value, "low": value, "high": value}
    scale, ticks = charts.score_scale([one], metric_scale(metric))
    bounds = metric_scale(metric)
    assert bounds.lowest <= scale.low < scale.high <= bounds.highest
    assert len(ticks) >= 2


def test_learning_curve_of_a_negative_metric_stays_in_its_scale() -> None:
    validation = [{**each, "score": -1 / each["epoch"]} for each in VALIDATION]
    metric = metric_scale("answer_log_likelihood")
    panel = charts.score_panel(validation, best_epoch=2, metric=metric)
    assert panel is not None
    assert [dot.text for dot in panel.dots] == ["\u22121.00", "\u22120.50"]
    assert panel.dots[0].y > panel.dots[1].y
    assert all(0 < dot.y < 100 for dot in panel.dots)


def _few(*sizes: int) -> list[dict[str, Any]]:
    return [
        {"num_rows": n, "score": x, "low": x - 0.1, "high": x + 0.1, "baseline_score": x - 0.05}
        for n, x in zip(sizes, (0.5, 0.6, 0.7, 0.8), strict=False)
    ]


def test_label_curve_goes_to_the_right_by_multiples() -> None:
    panel = charts.label_panel(_few(8, 16, 64, 128))
    assert panel is not None
    assert [dot.x for dot in panel.dots] == [0, 25, 75, 100]
    assert [tick.text for tick in panel.x_ticks] == ["8", "16", "64", "128"]
    heights = [dot.y for dot in panel.dots]
    assert heights == sorted(heights, reverse=True)
    assert {kind for kind, _ in panel.paths} == {"band", "other", "score"}
    band = dict(panel.paths)["band"]
    assert band.startswith("M0 ")
    assert band.endswith("Z")
    assert band.count(" ") == 8


def test_label_curve_of_nothing_but_zeros_has_a_height() -> None:
    zeros = {"score": 0.0, "low": 0.0, "high": 0.0, "baseline_score": 0.0}
    assert charts.label_panel([{**each, **zeros} for each in _few(8, 16)]) is not None


def test_numbers_below_a_label_curve_do_not_run_into_each_other() -> None:
    panel = charts.label_panel(_few(8, 64, 256, 280))
    assert panel is not None
    assert [tick.text for tick in panel.x_ticks] == ["8", "64", "280"]


def test_label_curve_needs_two_scores() -> None:
    known, unknown = _few(8)[0], {**_few(8)[0], "num_rows": 16, "score": None}
    assert charts.label_panel([known, unknown]) is None
    nothing_beside = [{**each, "baseline_score": None} for each in _few(8, 16)]
    panel = charts.label_panel(nothing_beside)
    assert panel is not None
    assert [kind for kind, _ in panel.paths] == ["band", "score"]
