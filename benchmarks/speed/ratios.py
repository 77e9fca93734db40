"""From single runs to a table of medians, ratios and their spread."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from works import LAYER_WEIGHTS, TOKENS_PER_SCORED_TEXT, WORKS, Measure, Target, Work

KEPT = (
    *("seconds", "train_tokens_per_second", "texts_per_second", "batch_size", "peak_rss_bytes"),
    *("validation_loss", "curve", "gemm_fraction", "attention_fraction", "limit_gflops"),
    "first_step_seconds",
)
"""What is kept of a run."""
_UNITS: dict[Measure, str] = {
    "tokens_per_second": "tokens/s",
    "texts_per_second": "texts/s",
    "train_seconds": "s",
    "peak_rss_bytes": "MB",
    "validation_loss": "validation loss at equal tokens",
    "target_seconds": "s to the accuracy that both reach",
    "gemm_fraction": "%",
    "first_step_seconds": "s",
}
_NEEDS: dict[Measure, str] = {
    "tokens_per_second": "train_tokens_per_second",
    "train_seconds": "seconds",
    "target_seconds": "curve",
    "texts_per_second": "texts_per_second",
    "peak_rss_bytes": "peak_rss_bytes",
    "validation_loss": "validation_loss",
    "gemm_fraction": "gemm_fraction",
    "first_step_seconds": "first_step_seconds",
}
"""The field of a result that a measure reads."""
_PER_UNIT: dict[Measure, float] = {"peak_rss_bytes": 1e6, "gemm_fraction": 0.01}
"""What a figure is divided by to be shown in its unit."""


def make_table(folder: Path) -> str:
    """Write what was measured on a machine in Markdown; the folder has its name."""
    machine = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
    here, speed = machine["machine"], machine["speed"]
    lines = [
        f"### {folder.name}",
        "",
        f"{here['processor']}, {here['num_cores']} cores ({', '.join(here['features'])}), one core's linear layers: "
        f"bf16 {speed['bf16_gflops']:,.0f} GFLOP/s, fp32 {speed['fp32_gflops']:,.0f}; torch {speed['torch_version']}, "
        f"transformers {machine['versions']['transformers']}.",
        "",
        "| work | measure | Lushan | rival | its figure | ratio: median (lowest to highest), runs | aim | most that is possible here |",
        "|---|---|---|---|---|---|---|---|",
    ]
    peak = speed["bf16_gflops"] * here["num_threads"] * 1e9
    lines += [_line(folder, work, target, peak) for work in WORKS for target in work.targets]
    return "\n".join(lines)


def _line(folder: Path, work: Work, target: Target, peak: float) -> str:
    ours = _results(folder, work, "lushan")
    start = f"| {work.title} | {_UNITS[target.measure]} |"
    if target.rival is None:
        return _line_alone(start, [result[target.measure] for result in ours], target)
    pairs = [
        pair
        for pair in zip(ours, _results(folder, work, target.rival), strict=False)
        if all(_NEEDS[target.measure] in each for each in pair)  # older runs kept less
    ]
    if not pairs:
        return f"{start} - | {target.rival} | - | not run | {target.ratio:.3g} | - |"
    values = [_values(*pair, target.measure) for pair in pairs]
    is_better_high = target.measure.endswith("_per_second")
    ratios = sorted(mine / other if is_better_high else other / mine for mine, other in values)
    return (
        f"{start} {_shown([mine for mine, _ in values], target)} | {target.rival} | "
        f"{_shown([other for _, other in values], target)} | "
        f"{_ratio(ratios, target)} | {target.ratio:.3g} | "
        f"{_most_possible(work, target, [other for _, other in pairs], peak)} |"
    )


def _ratio(ratios: Sequence[float], target: Target) -> str:
    """The median, and the lowest and highest; losses differ by less than two decimals show."""
    digits = 3 if target.measure == "validation_loss" else 2
    found = (statistics.median(ratios), min(ratios), max(ratios))
    median, low, high = (f"{each:.{digits}f}" for each in found)
    return f"**{median}** ({low} to {high}), {len(ratios)}"


def _most_possible(
    work: Work, target: Target, theirs: Sequence[dict[str, Any]], peak: float
) -> str:
    """The ratio of a program that did nothing but the products of the layers, at the machine's best rate."""
    timed = ("tokens_per_second", "texts_per_second", "train_seconds")
    if work.operations_per_weight is None or target.measure not in timed:
        return "-"
    if target.measure == "texts_per_second":
        rates = [each["texts_per_second"] * TOKENS_PER_SCORED_TEXT for each in theirs]
    else:
        rates = [each["train_tokens_per_second"] for each in theirs]
    needed = work.operations_per_weight * LAYER_WEIGHTS * statistics.median(rates)
    return f"{peak / needed:.1f}"


def _line_alone(start: str, values: Sequence[float], target: Target) -> str:
    """A figure that is measured against nobody."""
    aim = _shown([target.ratio], target)
    if not values:
        return f"{start} - | - | - | not run | {aim} | - |"
    spread = f"({_shown([min(values)], target)} to {_shown([max(values)], target)})"
    return f"{start} **{_shown(values, target)}** {spread}, {len(values)} | - | - | - | {aim} | - |"


def _shown(values: Sequence[float], target: Target) -> str:
    median = statistics.median(values) / _PER_UNIT.get(target.measure, 1)
    if target.measure == "validation_loss":
        return f"{median:.3f}"
    return f"{median:,.1f}" if median < 100 else f"{median:,.0f}"


def _results(folder: Path, work: Work, system: str) -> list[dict[str, Any]]:
    files = sorted(folder.glob(f"{work.name}-{system}-*.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def _values(ours: dict[str, Any], theirs: dict[str, Any], measure: Measure) -> tuple[float, float]:
    """Give our figure and the rival's."""
    if measure == "target_seconds":
        # The most that both reach: a higher one would leave somebody without a time.
        target = min(max(point["score"] for point in each["curve"]) for each in (ours, theirs))
        return _seconds_to(target, ours), _seconds_to(target, theirs)
    if measure == "train_seconds":
        return ours["seconds"]["train"], theirs["seconds"]["train"]
    return ours[_NEEDS[measure]], theirs[_NEEDS[measure]]


def _seconds_to(accuracy: float, result: dict[str, Any]) -> float:
    """Seconds until validation reached an accuracy for the first time."""
    return next(point["seconds"] for point in result["curve"] if point["score"] >= accuracy)
