"""From single runs to the section of `docs/benchmarks.md`: one table of engines, one of ratios."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from engines import ENGINES, SCORERS, TARGETS, Engine, Scorer, Target

Result = dict[str, Any]
Results = dict[str, list[Result]]
"""Of each engine, in the order of the repeats."""

MEGABYTE = 1e6
MILLISECONDS = 1e3
COLUMNS: dict[str, str] = {
    "prefill": "512 tokens read, tokens/s",
    "first_token_seconds": "first token after 32, ms",
    "decode_1": "1 request, tokens/s",
    "decode_8": "8, tokens/s",
    "decode_32": "32, tokens/s",
    "rss_bytes_after_1": "MB with 1",
    "rss_bytes_after_32": "MB with 32",
}
REFERENCE = "transformers-bf16"
"""Whose first tokens the others' are held against."""


def make_section(folder: Path) -> str:
    """Write all tables of a folder of results, in Markdown."""
    machine = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
    here, speed = machine["machine"], machine["speed"]
    parts = [
        f"{here['processor']} ({', '.join(here['features'])}), one core's linear layers: bf16 "
        f"{speed['bf16_gflops']:,.0f} GFLOP/s; torch {speed['torch_version']}, transformers "
        f"{machine['versions']['transformers']}."
    ]
    for place in sorted(folder.glob("*/threads-*")):
        results = read(place)
        if not results:
            continue
        num_threads = int(place.name.removeprefix("threads-"))
        clock = "processor" if num_threads == 1 else "wall"
        threads = "one thread" if num_threads == 1 else f"{num_threads} threads"
        parts += [f"### {place.parent.name}, {threads}, seconds of the {clock} clock"]
        parts += [engine_table(results, clock), scoring_table(results, clock)]
        parts += [target_table(results, clock)]
    return "\n\n".join(part for part in parts if part)


def read(place: Path) -> Results:
    """Read the results of one model and number of threads."""
    found: Results = {}
    for one in (*ENGINES, *SCORERS):
        files = sorted(place.glob(f"{one.name}-[0-9]*.json"))
        if files:
            found[one.name] = [
                {**json.loads(file.read_text(encoding="utf-8")), "turn": file.stem.split("-")[-1]}
                for file in files
            ]
    return found


def value_of(result: Result, column: str, clock: str) -> float | None:
    """One figure of one run, in the unit of its column; None where the engine did not come so far."""
    value = result.get(column)
    if value is None:
        return None
    if isinstance(value, dict):
        value = value[clock]
    if column.endswith("_seconds"):
        return value * MILLISECONDS
    return value / MEGABYTE if "_bytes" in column else value


def engine_table(results: Results, clock: str) -> str:
    """One line an engine: medians, lowest and highest."""
    engines = [each for each in ENGINES if each.name in results]
    if not engines:
        return ""
    lines = [
        f"| engine | {' | '.join(COLUMNS.values())} | same first tokens | runs |",
        "|---" * (len(COLUMNS) + 3) + "|",
    ]
    for engine in engines:
        runs = results[engine.name]
        cells = [spread(runs, column, clock) for column in COLUMNS]
        same = same_tokens(runs, results.get(REFERENCE, []))
        lines.append(f"| {engine.title} | {' | '.join(cells)} | {same} | {ended(runs)} |")
    return "\n".join(lines)


def scoring_table(results: Results, clock: str) -> str:
    """The same for the classifier."""
    scorers = [each for each in SCORERS if each.name in results]
    if not scorers:
        return ""
    lines = ["| scoring short texts with a tuned head | texts/s | MB | runs |", "|---|---|---|---|"]
    for scorer in scorers:
        runs = results[scorer.name]
        cells = [spread(runs, column, clock) for column in ("scoring", "rss_bytes_at_the_end")]
        lines.append(f"| {scorer.title} | {' | '.join(cells)} | {ended(runs)} |")
    return "\n".join(lines)


def spread(runs: Sequence[Result], column: str, clock: str) -> str:
    """Median, lowest and highest."""
    values = [value_of(run, column, clock) for run in runs]
    known = sorted(value for value in values if value is not None)
    if not known:
        return "-"
    median = statistics.median(known)
    if len(known) == 1 or "_bytes" in column:
        return shown(median)
    return f"{shown(median)} ({shown(known[0])} to {shown(known[-1])})"


def shown(value: float) -> str:
    """A figure with three digits that tell something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def ended(runs: Sequence[Result]) -> str:
    """How many runs there are, and what became of those that failed."""
    whys = sorted({run["crash"].replace("|", "/") for run in runs if "crash" in run})
    return "; ".join([str(len(runs)), *(f"ended by {why}" for why in whys)])


def same_tokens(runs: Sequence[Result], reference: Sequence[Result]) -> str:
    """Share of the prompts whose first tokens are those of the reference."""
    starts, wanted = (
        max((run["starts"] for run in each if "starts" in run), key=len, default=None)
        for each in (runs, reference)
    )
    if starts is None or wanted is None or len(starts) != len(wanted):
        return "-"
    return f"{sum(a == b for a, b in zip(starts, wanted, strict=True))} of {len(wanted)}"


def target_table(results: Results, clock: str) -> str:
    """What Lushan is to reach beside whom, and what it reached."""
    lines = [
        "| work | Lushan's form | rival | ratio: median (lowest to highest), runs | aim |",
        "|---|---|---|---|---|",
    ]
    lines += [line for target in TARGETS if (line := target_line(target, results, clock))]
    return "\n".join(lines) if len(lines) > 2 else ""


def target_line(target: Target, results: Results, clock: str) -> str:
    """One ratio; turn by turn, so that a machine that slows down slows both."""
    is_less_better = target.work.endswith("_seconds") or "_bytes" in target.work
    mine = best(ours(target), results, target.work, clock, is_less_better=is_less_better)
    other = best(rivals(target), results, target.work, clock, is_less_better=is_less_better)
    if mine is None or other is None:
        return ""
    first, second = (
        {run["turn"]: value_of(run, target.work, clock) for run in results[each.name]}
        for each in (mine, other)
    )
    pairs = [
        (mine_value, other_value)
        for turn, mine_value in first.items()
        if mine_value is not None and (other_value := second.get(turn)) is not None
    ]
    ratios = sorted(b / a if is_less_better else a / b for a, b in pairs)
    if not ratios:
        return ""
    return (
        f"| {target.title} | {mine.title} | {other.title} | **{statistics.median(ratios):.2f}** "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f}), {len(ratios)} | {target.ratio:g} |"
    )


def ours(target: Target) -> list[Engine | Scorer]:
    """What may stand in for Lushan."""
    own = [each for each in (*ENGINES, *SCORERS) if each.environment == "lushan"]
    if target.ours:
        return [each for each in own if each.name in target.ours]
    return [each for each in own if isinstance(each, Engine) and each.bits >= target.least_bits]


def rivals(target: Target) -> list[Engine | Scorer]:
    """With whom it is compared."""
    others = [each for each in (*ENGINES, *SCORERS) if each.environment != "lushan"]
    if target.rivals:
        return [each for each in others if each.name in target.rivals]
    return [each for each in others if isinstance(each, Engine) and each.bits >= target.least_bits]


def best(
    among: Iterable[Engine | Scorer],
    results: Results,
    column: str,
    clock: str,
    *,
    is_less_better: bool,
) -> Engine | Scorer | None:
    """The one with the best median; None if nobody has a figure."""
    medians: list[tuple[float, Engine | Scorer]] = []
    for each in among:
        values = [value_of(run, column, clock) for run in results.get(each.name, [])]
        known = [value for value in values if value is not None]
        if known:
            medians.append((statistics.median(known), each))
    choose: Callable[..., tuple[float, Engine | Scorer]] = min if is_less_better else max
    return choose(medians, key=lambda pair: pair[0])[1] if medians else None
