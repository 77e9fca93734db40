"""Tune one model per task on a public set, and put what every system scored on its test rows into one table.

Skips what has a result already; each run is a process of its own, and its whole folder stays below `--runs`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent / "quality")]

import table  # noqa: E402
from cases import CASES, Case, case_named  # noqa: E402

RESULTS = HERE / "results"
KEPT = (
    *("task", "model", "main_metric", "before", "before_is_model", "after", "baselines"),
    *("comparisons", "num_examples", "seconds", "train_tokens_per_second", "peak_rss_bytes"),
    *("best_epoch", "versions"),
)
"""What of `results.json` the table, and who checks it, need."""


def main() -> None:
    """Run what is missing, then make the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("LUSHAN_DATA"))
    parser.add_argument("--case", nargs="+", default=[case.name for case in CASES])
    parser.add_argument("--runs", type=Path, default=Path("runs/tasks"), help="where runs are kept")
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    parser.add_argument("--document", type=Path, help="put the table between this file's markers")
    options = parser.parse_args()
    for name in [] if options.table_only else options.case:
        run(case_named(name), data=options.data, runs=options.runs)
    section = make_table()
    print(section)
    if options.document:
        table.put_between_markers(options.document, section, name="tasks")


def run(case: Case, *, data: Path, runs: Path) -> None:
    """Tune on one set, or go on with it, unless its result is there."""
    result = RESULTS / f"{case.name}.json"
    if result.exists():
        return
    out = runs / case.name
    command = case.command(str(data / case.data), str(out))
    if (out / "recipe.yaml").exists():
        command.append("--resume")
    done = subprocess.run(
        [sys.executable, "-m", "lushan", *command], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        print(f"{case.name}: exit code {done.returncode}, left out.", file=sys.stderr)
        return
    found = json.loads(done.stdout.splitlines()[-1])
    kept = {name: found[name] for name in KEPT if name in found}
    kept |= {"options": list(case.options)}
    RESULTS.mkdir(exist_ok=True)
    result.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def make_table() -> str:
    """One line per set that was run."""
    lines = [
        "| set | task, model | settings | metric | tuned [95 %] | untouched, zero-shot | best other | asked for |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        file = RESULTS / f"{case.name}.json"
        if file.exists():
            lines.append(_line(case, json.loads(file.read_text(encoding="utf-8"))))
        else:
            lines.append(
                f"| {case.data} | {case.task}, {case.model} | | | not run | | | {_asked(case)} |"
            )
    return "\n".join(lines)


def _line(case: Case, found: Mapping[str, Any]) -> str:
    metric = found["main_metric"]
    after = found["after"][metric]
    others = {
        name: scores[metric]
        for name, scores in found["baselines"].items()
        if metric in scores and name != "zero_shot"
    }
    best = max(others, key=lambda name: others[name]["value"], default=None)
    before = _number(found["before"][metric]["value"]) if found["before_is_model"] else "-"
    told = "-" if best is None else f"{_number(others[best]['value'])} ({best})"
    options = ", ".join(word for word in case.options if word != "--set")
    if case.options != tuple(found["options"]):
        raise SystemExit(f"{case.name} was run with other settings. Remove its result.")
    asked = _asked(case)
    if asked != "-":
        asked += ": reached" if _is_reached(case, found, metric) else ": **missed**"
    return (
        f"| {case.data} | {case.task}, {case.model} | {options} | {metric} | {_number(after['value'])} "
        f"[{_number(after['low'])}, {_number(after['high'])}] | {before} | {told} | {asked} |"
    )


def _asked(case: Case) -> str:
    if case.floor is not None:
        what = "exact match " if case.task == "answering" else ""
        return f"{what}at least {case.floor:g}"
    if case.above is None:
        return "-"
    name, margin = case.above
    return f"above `{name}`" + (f" by {margin:g}" if margin else "")


def _is_reached(case: Case, found: Mapping[str, Any], metric: str) -> bool:
    value = found["after"][metric]["value"]
    if case.task == "answering" and case.floor is not None:
        return found["after"]["exact_match"]["value"] >= case.floor
    if case.floor is not None:
        return value >= case.floor
    if case.above is None:
        return True
    name, margin = case.above
    other = found["before"] if name == "before" else found["baselines"][name]
    return value > other[metric]["value"] + margin


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


if __name__ == "__main__":
    main()
