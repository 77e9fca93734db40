"""Time Lushan and its rivals side by side: in one process tree, in turn, on the same rows; then print ratios.

Every run is its own process. Results are kept run by run, so the command can be stopped and goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ratios
from works import WORKS, System, Work, work_named

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "quality"))

import cases  # noqa: E402 - their folder is known only now
import table  # noqa: E402

CASE = cases.case_named("sst2")
TRAINER = HERE.parent / "quality" / "rival_trainer.py"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of results")
    parser.add_argument("--data", type=Path, default=os.environ.get("LUSHAN_DATA"))
    parser.add_argument("--work", nargs="+", default=[work.name for work in WORKS])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", type=Path, required=True, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--rival-python", default=sys.executable, help="its environment's python")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    parser.add_argument("--document", type=Path, help="put the table between this file's markers")
    options = parser.parse_args()
    if not options.data:
        parser.error("set LUSHAN_DATA or give --data")
    return options


def main() -> None:
    """Run what is missing, then make the table."""
    options = parse()
    if not options.table_only:
        options.out.mkdir(parents=True, exist_ok=True)
        if not (options.out / "machine.json").is_file():
            told = json.loads(call(options, [sys.executable, "-m", "lushan", "doctor", "--json"]))
            kept = {name: told[name] for name in ("machine", "speed", "versions")}
            (options.out / "machine.json").write_text(
                json.dumps(kept, indent=1) + "\n", encoding="utf-8"
            )
        with tempfile.TemporaryDirectory() as folder:
            run_missing(options, Path(folder))
    section = ratios.make_table(options.out)
    print(section)
    if options.document:
        table.put_between_markers(options.document, section, name="speed")


def run_missing(options: argparse.Namespace, folder: Path) -> None:
    """Run each work, system and repeat that has no result yet; systems in turn inside of a repeat."""
    cases.write_rows(CASE, Path(options.data), folder / "all")
    works = [work_named(name) for name in options.work]
    for repeat, work in itertools.product(range(options.repeats), works):
        for system in work.systems:
            result = options.out / f"{work.name}-{system}-{repeat}.json"
            if result.exists():
                continue
            unfinished = folder / "result.json"
            run_one(work, system, options=options, folder=folder, out=unfinished)
            found = json.loads(unfinished.read_text(encoding="utf-8"))
            kept = {name: found[name] for name in ratios.KEPT if name in found}
            result.write_text(json.dumps(kept) + "\n", encoding="utf-8")
            print(f"{result.stem}: {kept}", file=sys.stderr, flush=True)


def run_one(
    work: Work, system: System, *, options: argparse.Namespace, folder: Path, out: Path
) -> None:
    """Run one system once; it writes `out`."""
    rows = make_rows(work, system, folder)
    if work.name == "scoring":
        score(system, rows, options=options, folder=folder, out=out)
    elif system == "lushan":
        tune(work, rows, options=options, folder=folder, out=out)
    else:
        script = HERE / "rival_textbook.py" if system == "textbook" else TRAINER
        words: list[Any] = ["--data", rows, "--model", options.model, "--out", out]
        words += ["--rows-per-step", work.rows_per_step, "--threads", options.threads]
        if system == "trainer":
            words += ["--method", work.adapter, "--epochs", work.epochs, "--learning-rate", 1e-4]
            words += ["--precision", options.precision, "--predict"]
            words += ["--each-epoch"] if work.epochs > 1 else []
        call(options, [options.rival_python, script, *words])


def make_rows(work: Work, system: System, folder: Path) -> Path:
    """Write the rows of a work: the first of the case's."""
    into = folder / "rows"
    into.mkdir(exist_ok=True)
    num_train_rows = work.num_textbook_rows if system == "textbook" else work.num_train_rows
    sizes = {"train": num_train_rows, "validation": work.num_validation_rows, "test": 20}
    for split, size in sizes.items():
        lines = (folder / "all" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        (into / f"{split}.jsonl").write_text("\n".join(lines[:size]) + "\n", encoding="utf-8")
    return into


def tune(
    work: Work,
    rows: Path,
    *,
    options: argparse.Namespace,
    folder: Path,
    out: Path,
) -> None:
    """Run `lushan tune` with an empty cache, and keep what it says of itself."""
    run = folder / "run"
    words: list[Any] = ["tune", rows, "--model", options.model, "--adapter", work.adapter]
    words += ["--epochs", work.epochs, "--no-baselines", "--out", run, "--overwrite"]
    settings = {
        "training.rows_per_step": work.rows_per_step,
        "data.overlap": "keep",
        "model.precision": options.precision,
    }
    words += [f"--set={name}={value}" for name, value in settings.items()]
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        call(options, [sys.executable, "-m", "lushan", *words], cache=cache)
    found = json.loads((run / "results.json").read_text(encoding="utf-8"))
    # The Trainer's time of training holds its evaluations too.
    found["seconds"]["train"] += found["seconds"]["compile"]
    if work.epochs > 1:
        found["seconds"]["train"] += found["seconds"]["validation"]
    out.write_text(json.dumps(found), encoding="utf-8")


def score(
    system: System, rows: Path, *, options: argparse.Namespace, folder: Path, out: Path
) -> None:
    """Score with a classifier that is tuned once, on few rows: its weights do not matter here."""
    run = folder / "run"
    if not (run / "results.json").is_file():
        tune(work_named("full-16"), rows, options=options, folder=folder, out=out)
    words: list[Any] = ["--data", rows, "--out", out]
    if system == "lushan":
        call(options, [sys.executable, HERE / "ours_scoring.py", *words, "--run", run])
        return
    words += ["--model", run / "model", "--precision", options.precision]
    words += ["--threads", options.threads]
    call(options, [options.rival_python, HERE / "rival_pipeline.py", *words])


def call(options: argparse.Namespace, words: list[Any], *, cache: str | None = None) -> str:
    """Run a command with the threads of this comparison, and give what it prints; it must end well."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    if cache:
        environment["LUSHAN_CACHE"] = cache
    command = [str(word) for word in words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise SystemExit(f"`{' '.join(command[:4])} ...` ended with code {done.returncode}.")
    return done.stdout


if __name__ == "__main__":
    main()
