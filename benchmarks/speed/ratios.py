"""From single runs to a table of medians, ratios and their spread."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from works import WORKS, Measure, Target, Work

KEPT = ("seconds", "train_tokens_per_second", "texts_per_second", "batch_size", "peak_rss_bytes")
"""What is kept of a run."""
_UNITS: dict[Measure, str] = {
    "tokens_per_second": "tokens/s",
    "texts_per_second": "texts/s",
    "train_seconds": "s",
    "peak_rss_bytes": "MB",
}


def make_table(folder: Path) -> str:
    """Write the section of `docs/benchmarks.md` in Markdown."""
    machine = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
    here, speed = machine["machine"], machine["speed"]
    lines = [
        f"{here['processor']}, {here['num_cores']} cores ({', '.join(here['features'])}), one core's linear layers: "
        f"bf16 {speed['bf16_gflops']:,.0f} GFLOP/s, fp32 {speed['fp32_gflops']:,.0f}; torch {speed['torch_version']}, "
        f"transformers {machine['versions']['transformers']}.",
        "",
        "| work | measure | Lushan | rival | its figure | ratio: median (lowest to highest), runs | aim |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_line(folder, work, target) for work in WORKS for target in work.targets]
    return "\n".join(lines)


def _line(folder: Path, work: Work, target: Target) -> str:
    ours = _values(folder, work, "lushan", target.measure)
    theirs = _values(folder, work, target.rival, target.measure)
    start = f"| {work.title} | {_UNITS[target.measure]} |"
    pairs = list(zip(ours, theirs, strict=False))
    if not pairs:
        return f"{start} - | {target.rival} | - | not run | {target.ratio:.3g} |"
    is_better_high = target.measure.endswith("_per_second")
    ratios = sorted(mine / other if is_better_high else other / mine for mine, other in pairs)
    return (
        f"{start} {_shown(ours, target)} | {target.rival} | {_shown(theirs, target)} | "
        f"**{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f}), {len(pairs)} | {target.ratio:.3g} |"
    )


def _shown(values: Sequence[float], target: Target) -> str:
    median = statistics.median(values)
    if target.measure == "peak_rss_bytes":
        median /= 1e6
    return f"{median:,.1f}" if median < 100 else f"{median:,.0f}"


def _values(folder: Path, work: Work, system: str, measure: Measure) -> list[float]:
    found: list[float] = []
    for file in sorted(folder.glob(f"{work.name}-{system}-*.json")):
        result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if measure == "train_seconds":
            found.append(result["seconds"]["train"])
        else:
            found.append(
                result["train_tokens_per_second" if measure == "tokens_per_second" else measure]
            )
    return found
