"""Where the marks of a chart stand, in percent of its width and height; templates draw them.

Charts are plain HTML and SVG whose text keeps its size on every screen, so only places are computed
here. Percentages run from left to right and from top to bottom.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lushan.evaluation.phrases import FRACTION, MetricScale

MAX_POINTS = 400
"""Points a line is drawn with; longer histories are averaged in bins."""
MIN_WIDTH_FRACTION = 0.05
"""An axis of scores is at least this share of all possible ones wide (without bounds: of the largest): smaller
differences should look small."""
_LEAST_TICK_GAP = 9.0
"""Percent of a chart's width between two numbers below it."""
SMOOTHING_FRACTION = 0.05
"""The smoothed training loss remembers about this share of all steps."""


@dataclass(frozen=True, slots=True)
class Tick:
    """One labelled place on an axis."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A point with its interval on one horizontal track."""

    at: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear axis."""

    low: float
    high: float

    def place(self, value: float) -> float:
        """Percent of the way from low to high, kept inside the axis."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 2)

    def mark(self, interval: Mapping[str, float]) -> Mark:
        """Place a value with its interval."""
        return Mark(
            self.place(interval["value"]), self.place(interval["low"]), self.place(interval["high"])
        )


@dataclass(frozen=True, slots=True)
class Dot:
    """One measured point of a curve, with what to write beside it."""

    x: float
    y: float
    text: str
    is_best: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One curve chart."""

    paths: tuple[tuple[str, str], ...]
    """(kind of line, SVG path data in a 100 by 100 box)."""
    dots: tuple[Dot, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    """Places from the top."""
    best_x: float | None = None


def nice_ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Give round numbers that cover [low, high], about as many as asked for."""
    span = max(high - low, 1e-9)
    rough = span / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= 0.99 * rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def score_scale(
    intervals: Sequence[Mapping[str, float]], metric: MetricScale = FRACTION
) -> tuple[Scale, list[Tick]]:
    """Make an axis that holds every interval, with its ticks as the metric is written."""
    high = max(each["high"] for each in intervals)
    lows = [each["low"] for each in intervals]
    width = MIN_WIDTH_FRACTION * _span(metric, [*lows, high])
    low = min(*lows, max(metric.lowest, high - width))
    high = max(high, low + width)
    ticks = nice_ticks(low, high, about=5)
    values = [value for value in ticks if metric.lowest <= value <= metric.highest]
    scale = Scale(min(*values, low), max(*values, high))
    return scale, [Tick(scale.place(value), metric.short(value)) for value in values]


def _span(metric: MetricScale, values: Sequence[float]) -> float:
    """How far apart values can be; without bounds, how large they are."""
    span = metric.highest - metric.lowest
    return span if math.isfinite(span) else max(*map(abs, values), 1e-6)


def loss_panel(
    steps: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]
) -> Panel | None:
    """Draw training loss, raw and smoothed, and validation loss against optimizer steps."""
    known = [each for each in steps if math.isfinite(each["loss"])]
    if len(known) < 2:
        return None
    x = np.array([each["step"] for each in known], dtype=float)
    loss = np.array([each["loss"] for each in known], dtype=float)
    checks = [each for each in validation if math.isfinite(each.get("loss") or math.nan)]
    # The first steps of a run, or one bad batch, must not flatten all the rest.
    top = max(float(np.quantile(loss, 0.99)), *(each["loss"] for each in checks), 1e-6)
    ticks = nice_ticks(0, top, about=4)
    x_scale, y_scale = _step_scale(x[-1], validation), Scale(0, ticks[-1])
    smooth = _smoothed(loss)
    dots = tuple(
        Dot(x_scale.place(c["step"]), 100 - y_scale.place(c["loss"]), f"{c['loss']:.3f}")
        for c in checks
    )
    return Panel(
        paths=(("raw", _path(x, loss, x_scale, y_scale)), ("smooth", _path(x, smooth, x_scale, y_scale))),
        dots=dots,
        x_ticks=_step_ticks(x_scale),
        y_ticks=tuple(Tick(100 - y_scale.place(value), f"{value:g}") for value in ticks),
    )  # fmt: skip


def score_panel(
    validation: Sequence[Mapping[str, Any]],
    *,
    best_epoch: float | None,
    last_step: float = 0,
    metric: MetricScale = FRACTION,
) -> Panel | None:
    """Draw the validation score of every epoch, with the best one marked."""
    if not validation:
        return None
    scores = [each["score"] for each in validation]
    padding = max(0.02 * _span(metric, scores), 0.15 * (max(scores) - min(scores)))
    low = max(metric.lowest, min(scores) - padding)
    ticks = nice_ticks(low, min(metric.highest, max(scores) + padding), about=4)
    x_scale = _step_scale(last_step, validation)
    y_scale = Scale(ticks[0], ticks[-1])
    of_best_epoch = [each for each in validation if each["epoch"] == best_epoch]
    best = max(of_best_epoch, key=lambda each: each["score"], default=None)
    dots = tuple(
        Dot(
            x_scale.place(each["step"]),
            100 - y_scale.place(each["score"]),
            metric.number(each["score"]),
            each is best,
        )
        for each in validation
    )
    x, y = np.array([each["step"] for each in validation], dtype=float), np.array(scores)
    return Panel(
        paths=(("score", _path(x, y, x_scale, y_scale)),),
        dots=dots,
        x_ticks=_step_ticks(x_scale),
        y_ticks=tuple(Tick(100 - y_scale.place(value), metric.short(value)) for value in ticks),
        best_x=next((dot.x for dot in dots if dot.is_best), None),
    )


def label_panel(
    points: Sequence[Mapping[str, Any]], *, metric: MetricScale = FRACTION
) -> Panel | None:
    """Draw the validation score by the number of training rows, each step to the right a multiple, with its interval.

    Args:
        points: `num_rows`, `score`, `low`, `high` and `baseline_score` of each, ascending; those without a score are
            left out.
        metric: How the score is written.
    """
    points = [each for each in points if each["score"] is not None]
    if len(points) < 2:
        return None
    baselines = [each for each in points if each["baseline_score"] is not None]
    values = [each[name] for each in points for name in ("low", "high")]
    values += [each["baseline_score"] for each in baselines]
    ticks = nice_ticks(min(values), max(values), about=4)
    ticks = [each for each in ticks if metric.lowest <= each <= metric.highest]
    low, high = min(*values, *ticks), max(*values, *ticks)
    y_scale = Scale(low, high if high > low else low + 1.0)
    x_scale = Scale(math.log(points[0]["num_rows"]), math.log(points[-1]["num_rows"]))

    def corners(points: Sequence[Mapping[str, Any]], name: str) -> list[str]:
        return [
            f"{x_scale.place(math.log(each['num_rows'])):g} {100 - y_scale.place(each[name]):g}"
            for each in points
        ]

    band = [*corners(points, "low"), *reversed(corners(points, "high"))]
    lines = (corners(baselines, "baseline_score"), corners(points, "score"))
    paths = [("band", f"M{'L'.join(band)}Z")]
    paths += [
        (kind, "M" + "L".join(x)) for kind, x in zip(("other", "score"), lines, strict=True) if x
    ]
    return Panel(
        paths=tuple(paths),
        dots=tuple(
            Dot(
                x_scale.place(math.log(each["num_rows"])),
                100 - y_scale.place(each["score"]),
                metric.number(each["score"]),
            )
            for each in points
        ),
        x_ticks=_apart([
            Tick(x_scale.place(math.log(each["num_rows"])), f"{each['num_rows']:,}")
            for each in points
        ]),
        y_ticks=tuple(Tick(100 - y_scale.place(value), metric.short(value)) for value in ticks),
    )


def _apart(ticks: Sequence[Tick]) -> tuple[Tick, ...]:
    """Leave out ticks whose texts would run into the next one that is kept; the last stays."""
    kept: list[Tick] = []
    for tick in reversed(ticks):
        if not kept or kept[-1].at - tick.at >= _LEAST_TICK_GAP:
            kept.append(tick)
    return tuple(reversed(kept))


def _step_scale(last_step: float, validation: Sequence[Mapping[str, Any]]) -> Scale:
    return Scale(0, max(float(last_step), *(float(each["step"]) for each in validation), 1.0))


def _step_ticks(scale: Scale) -> tuple[Tick, ...]:
    values = [value for value in nice_ticks(0, scale.high, about=5) if value <= scale.high]
    return tuple(Tick(scale.place(value), f"{value:,g}") for value in values if value == int(value))


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Exponential mean without the pull towards its start (the correction of Adam)."""
    memory = 1 - 1 / max(1.0, SMOOTHING_FRACTION * len(values))
    smooth, mean = np.empty_like(values), 0.0
    for place, value in enumerate(values):
        mean = memory * mean + (1 - memory) * value
        smooth[place] = mean / (1 - memory ** (place + 1))
    return smooth


def _path(x: np.ndarray, y: np.ndarray, x_scale: Scale, y_scale: Scale) -> str:
    """SVG path data; at most `MAX_POINTS` points, each the mean of its bin."""
    bins = np.array_split(np.arange(len(x)), min(len(x), MAX_POINTS))
    places = (
        f"{x_scale.place(x[each].mean()):g} {100 - y_scale.place(y[each].mean()):g}"
        for each in bins
    )
    return "M" + "L".join(places)
