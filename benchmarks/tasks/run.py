"""Tune one model per task on a public set, and put what every system scored on its test rows into one table.

What has a result in `--out` is not run again; each run is a process of its own, and its whole folder stays below `--runs`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
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
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS,
        help="folder of results; what is there is not run again",
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("LUSHAN_DATA"))
    parser.add_argument("--case", nargs="+", default=[case.name for case in CASES])
    parser.add_argument(
        "--runs", type=Path, help="where runs are kept, else `runs/tasks`, or `runs` in `--out`"
    )
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    parser.add_argument("--document", type=Path, help="put the table between this file's markers")
    options = parser.parse_args()
    if not options.table_only:
        if not options.data:
            parser.error("set LUSHAN_DATA or give --data")
        default = Path("runs/tasks") if options.out == RESULTS else options.out / "runs"
        run_missing(
            options.case, data=Path(options.data), runs=options.runs or default, out=options.out
        )
    section = make_table(options.out)
    print(section)
    if options.document:
        table.put_between_markers(options.document, section, name="tasks")


def run_missing(names: Sequence[str], *, data: Path, runs: Path, out: Path) -> None:
    """Run each case that has no result yet."""
    wanted = [case_named(name) for name in names]
    missing = [case for case in wanted if not result_file(out, case).exists()]
    table.tell_kept(len(wanted) - len(missing), out)
    for case in missing:
        run(case, data=data, runs=runs, result=result_file(out, case))


def result_file(out: Path, case: Case) -> Path:
    """Give the place of one result."""
    return out / f"{case.name}.json"


def run(case: Case, *, data: Path, runs: Path, result: Path) -> None:
    """Tune on one set, or go on with it, and keep what was found."""
    folder = runs / case.name
    command = case.command(str(data / case.data), str(folder))
    if (folder / "recipe.yaml").exists():
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
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def make_table(out: Path) -> str:
    """One line per set."""
    lines = [
        "| set | task, model | settings | metric | tuned [95 %] | untouched, zero-shot | best other | asked for |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        file = result_file(out, case)
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
