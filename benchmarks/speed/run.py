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
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ratios
from conversations import write_conversations
from works import WORKS, System, Work, work_named

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "quality"))

import cases  # noqa: E402 - their folder is known only now
import table  # noqa: E402

CASE = cases.case_named("sst2")
SCORED = replace(cases.case_named("clinc150"), num_train_rows=10_000)
"""Texts that are scored; SST-2 has fewer."""
TRAINER = HERE.parent / "quality" / "rival_trainer.py"
LEARNING_RATE = 1e-4
"""Of every system, of all weights and of the new layer too, where losses are compared."""
SFT_SCRIPTS: dict[System, str] = {
    "trl": "rival_trl.py",
    "litgpt": "rival_litgpt.py",
    "llamafactory": "rival_llamafactory.py",
}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "results", help="results by machine")
    parser.add_argument("--machine", default="here", help="name of this one: its folder in --out")
    parser.add_argument("--data", type=Path, default=os.environ.get("LUSHAN_DATA"))
    parser.add_argument("--work", nargs="+", default=[work.name for work in WORKS])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", type=Path, required=True, help="folder of SmolLM2-135M-Instruct")
    for name in ("rival", "trl", "litgpt", "llamafactory"):
        parser.add_argument(
            f"--{name}-python", help="its environment's python; without it, its runs are left out"
        )
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    parser.add_argument("--document", type=Path, help="put the table between this file's markers")
    options = parser.parse_args()
    if not options.data:
        parser.error("set LUSHAN_DATA or give --data")
    options.results = options.out / options.machine
    return options


def main() -> None:
    """Run what is missing, then make the table."""
    options = parse()
    if not options.table_only:
        options.results.mkdir(parents=True, exist_ok=True)
        if not (options.results / "machine.json").is_file():
            told = json.loads(call(options, [sys.executable, "-m", "lushan", "doctor", "--json"]))
            kept = {name: told[name] for name in ("machine", "speed", "versions")}
            (options.results / "machine.json").write_text(
                json.dumps(kept, indent=1) + "\n", encoding="utf-8"
            )
        with tempfile.TemporaryDirectory() as folder:
            run_missing(options, Path(folder))
    machines = sorted(each.parent for each in options.out.glob("*/machine.json"))
    section = "\n\n".join(map(ratios.make_table, machines))
    print(section)
    if options.document:
        table.put_between_markers(options.document, section, name="speed")


def run_missing(options: argparse.Namespace, folder: Path) -> None:
    """Run each work, system and repeat that has no result yet; systems in turn inside of a repeat."""
    cases.write_rows(CASE, Path(options.data), folder / "all")
    works = [work_named(name) for name in options.work]
    wanted = [
        (repeat, work, system, options.results / f"{work.name}-{system}-{repeat}.json")
        for repeat, work in itertools.product(range(options.repeats), works)
        for system in work.systems
    ]
    table.tell_kept(sum(result.exists() for *_, result in wanted), options.results)
    for repeat, work, system, result in wanted:
        if result.exists():
            continue
        if python_of(system, options) is None:
            print(f"{work.name}: no interpreter for {system}, left out.", file=sys.stderr)
            continue
        options.seed = repeat
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
    if work.kind == "sft":
        tune_on_conversations(work, system, options=options, folder=folder, out=out)
        return
    if work.kind == "scoring":
        score(system, options=options, folder=folder, out=out)
        return
    rows = make_rows(work, system, folder)
    if work.kind == "gemm":
        machine = json.loads((options.results / "machine.json").read_text(encoding="utf-8"))
        words: list[Any] = ["--data", rows, "--model", options.model, "--threads", options.threads]
        words += ["--precision", work.precision]
        words += ["--core-gflops", machine["speed"][f"{work.precision}_gflops"]]
        call(options, [sys.executable, HERE / "ours_gemm_share.py", *words, "--out", out])
    elif work.kind == "first-step":
        time_first_step(work, rows, options=options, folder=folder, out=out)
    elif system == "lushan":
        tune(work, rows, options=options, folder=folder, out=out)
    else:
        script = HERE / "rival_textbook.py" if system == "textbook" else TRAINER
        words = ["--data", rows, "--model", options.model, "--out", out]
        words += ["--rows-per-step", work.rows_per_step, "--threads", options.threads]
        if system == "trainer":
            words += ["--method", work.adapter, "--epochs", work.epochs]
            words += ["--learning-rate", LEARNING_RATE]
            words += ["--precision", options.precision, "--predict"]
            words += ["--rows-at-once", work.trainer_rows_at_once or work.rows_per_step]
            words += ["--seed", options.seed]
            words += ["--each-epoch"] if work.epochs > 1 else []
        call(options, [options.rival_python, script, *words])
        if work.epochs > 1:
            found = json.loads(out.read_text(encoding="utf-8"))
            out.write_text(json.dumps(found | _trainer_curve(found, work)), encoding="utf-8")


def make_rows(work: Work, system: System, folder: Path) -> Path:
    """Write the rows of a work: the first of the case's."""
    into = folder / "rows"
    into.mkdir(exist_ok=True)
    num_train_rows = work.num_textbook_rows if system == "textbook" else work.num_train_rows
    sizes = {"train": num_train_rows, "validation": work.num_validation_rows, "test": 20}
    for split, size in sizes.items():
        lines = (folder / "all" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        if len(lines) < size:
            raise SystemExit(f"{CASE.name}: {split} has {len(lines)} rows, not {size}.")
        (into / f"{split}.jsonl").write_text("\n".join(lines[:size]) + "\n", encoding="utf-8")
    return into


def tune_on_conversations(
    work: Work, system: System, *, options: argparse.Namespace, folder: Path, out: Path
) -> None:
    """Run one system on the same conversations."""
    sizes = {"train": work.num_train_rows, "validation": work.num_validation_rows, "test": 2}
    rows = write_conversations(
        Path(options.data), folder / "conversations", model=options.model, sizes=sizes
    )
    if system == "lushan":
        tune(work, rows, options=options, folder=folder, out=out)
        found = json.loads(out.read_text(encoding="utf-8"))
        loss = found["validation"][-1]["loss"]
        out.write_text(json.dumps(found | {"validation_loss": loss}), encoding="utf-8")
        return
    words: list[Any] = ["--data", rows, "--model", options.model, "--out", out]
    words += ["--rows-per-step", work.rows_per_step, "--threads", options.threads]
    words += ["--precision", options.precision, "--seed", options.seed]
    call(options, [python_of(system, options), HERE / SFT_SCRIPTS[system], *words])


def python_of(system: System, options: argparse.Namespace) -> str | None:
    """The interpreter with what a system needs; None where it was not told."""
    if system == "lushan":
        return sys.executable
    return getattr(options, f"{system if system in SFT_SCRIPTS else 'rival'}_python")


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
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        call(options, tune_words(work, rows, options=options, run=run), cache=cache)
    found = json.loads((run / "results.json").read_text(encoding="utf-8"))
    # The Trainer's time of training holds its evaluations too.
    found["seconds"]["train"] += found["seconds"]["compile"]
    if work.epochs > 1:
        found |= _our_curve(found, run)
        found["seconds"]["train"] += found["seconds"]["validation"]
    out.write_text(json.dumps(found), encoding="utf-8")


def tune_words(work: Work, rows: Path, *, options: argparse.Namespace, run: Path) -> list[Any]:
    """The command of a work."""
    words: list[Any] = [sys.executable, "-m", "lushan", "tune", rows, "--model", options.model]
    words += ["--adapter", work.adapter, "--epochs", work.epochs, "--no-baselines"]
    words += ["--out", run, "--overwrite", "--seed", options.seed]
    settings = {
        "training.rows_per_step": work.rows_per_step,
        "data.overlap": "keep",
        "model.precision": options.precision,
    }
    if work.kind == "sft":
        words += ["--task", "dialogue"]
    if work.kind == "sft" or work.epochs > 1:  # losses are compared
        rates = ["learning_rate"] if work.adapter != "head" else []
        rates += ["head_learning_rate"] if work.kind == "tune" else []
        settings |= {f"training.{name}": LEARNING_RATE for name in rates}
    return words + [f"--set={name}={value}" for name, value in settings.items()]


def time_first_step(
    work: Work, rows: Path, *, options: argparse.Namespace, folder: Path, out: Path
) -> None:
    """Time from the start of the process to the first line of `steps.jsonl`; once before, to warm the caches."""
    run = folder / "run"
    command = [str(word) for word in tune_words(work, rows, options=options, run=run)]
    environment = environment_of(options, cache=str(folder / "warm"))
    seconds = 0.0
    for _ in range(2):
        steps = run / "steps.jsonl"
        steps.unlink(missing_ok=True)
        started = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
            _wait_for_first_step(process, steps)
            seconds = time.perf_counter() - started
            process.kill()
    out.write_text(json.dumps({"first_step_seconds": seconds}), encoding="utf-8")


def _wait_for_first_step(process: subprocess.Popen[bytes], steps: Path) -> None:
    while not (steps.is_file() and steps.stat().st_size):
        if process.poll() is not None:
            raise SystemExit(
                f"`lushan tune` ended with code {process.returncode} before its first step."
            )
        time.sleep(0.01)


def _our_curve(found: dict[str, Any], run: Path) -> dict[str, Any]:
    """Seconds, accuracy and loss after every epoch; the pass through frozen layers counts before the first."""
    lines = (run / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    before = found["seconds"]["train"] - sum(seconds)
    each = found["seconds"]["validation"] / len(found["validation"])
    curve = [
        {
            "seconds": before + sum(seconds[: int(point["step"])]) + each * point["epoch"],
            "score": point["score"],
        }
        for point in found["validation"]
    ]
    return {"curve": curve, "validation_loss": found["validation"][-1]["loss"]}


def _trainer_curve(found: dict[str, Any], work: Work) -> dict[str, Any]:
    """The same of the Trainer, all of whose epochs take the same time."""
    each = found["seconds"]["train"] / work.epochs
    curve = [
        {"seconds": each * point["epoch"], "score": point["eval_accuracy"]}
        for point in found["history"]
    ]
    return {"curve": curve, "validation_loss": found["history"][-1]["eval_loss"]}


def score(system: System, *, options: argparse.Namespace, folder: Path, out: Path) -> None:
    """Score with a classifier that is tuned once, on few other rows: its weights do not matter here."""
    run = folder / "classifier"
    if not run.is_dir():
        few = work_named("full-16")
        tune(few, make_rows(few, system, folder), options=options, folder=folder, out=out)
        (folder / "run").rename(run)
        cases.write_rows(SCORED, Path(options.data), folder / "scored")
    words: list[Any] = ["--data", folder / "scored", "--out", out]
    if system == "lushan":
        call(options, [sys.executable, HERE / "ours_scoring.py", *words, "--run", run])
        return
    words += ["--model", run / "model", "--precision", options.precision]
    words += ["--threads", options.threads]
    call(options, [options.rival_python, HERE / "rival_pipeline.py", *words])


def environment_of(options: argparse.Namespace, *, cache: str | None) -> dict[str, str]:
    """The variables of a run: the threads of this comparison, and where Lushan keeps its cache."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    return {**environment, "LUSHAN_CACHE": cache} if cache else environment


def call(options: argparse.Namespace, words: list[Any], *, cache: str | None = None) -> str:
    """Run a command with the threads of this comparison, and give what it prints; it must end well."""
    command = [str(word) for word in words]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=environment_of(options, cache=cache),
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"`{' '.join(command[:4])} ...` ended with code {done.returncode}.")
    return done.stdout


if __name__ == "__main__":
    main()
