"""Compare Lushan with the `transformers` Trainer: same model, rows and hyper-parameters, three seeds.

Interleaves both systems, skips what is already done, prints the table and can put it into a document.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import cases
import ours
import table

RESULTS = Path(__file__).with_name("results")
"""The results behind the table of the documents; its rows and runs are made again when they are needed."""


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS,
        help="folder of results; what is there is not run again",
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("LUSHAN_DATA"))
    parser.add_argument("--case", nargs="+", default=[case.name for case in cases.CASES])
    parser.add_argument("--seed", nargs="+", type=int, default=list(cases.SEEDS))
    parser.add_argument(
        "--system", nargs="+", choices=["trainer", "lushan"], default=["trainer", "lushan"]
    )
    parser.add_argument(
        "--model", nargs="+", default=[], metavar="NAME=FOLDER", help="else the cache"
    )
    parser.add_argument("--rival-python", default=sys.executable, help="its environment's python")
    parser.add_argument(
        "--precision",
        choices=["bf16", "fp32"],
        help="of both systems; else what `lushan doctor` finds faster on this machine",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--split",
        choices=["validation", "test"],
        default="test",
        help="what is answered and scored",
    )
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    parser.add_argument("--document", type=Path, help="put the table between this file's markers")
    options = parser.parse_args()
    if not options.data:
        parser.error("set LUSHAN_DATA or give --data")
    options.data = Path(options.data)
    options.precision = options.precision or faster_precision()
    return options


def main() -> None:
    """Run what is missing, then make the table."""
    options = parse()
    rows = options.out / "rows"
    for case in cases.CASES:
        cases.write_rows(case, options.data, rows / case.name)
    if not options.table_only:
        run_missing(options)
    section = table.make_table(options.out, rows, names=options.case, split=options.split)
    print(section)
    if options.document:
        table.put_between_markers(options.document, section, name="quality")


def run_missing(options: argparse.Namespace) -> None:
    """Run each case, seed and system that has no result file yet; seeds outermost, systems in turn."""
    wanted = [
        (cases.case_named(name), system, seed)
        for seed, name, system in itertools.product(options.seed, options.case, options.system)
    ]
    compared = [each for each in wanted if each[1] == "lushan" or each[0].target_accuracy is None]
    missing = [
        (case, system, seed)
        for case, system, seed in compared
        if not result_file(options.out, case, system=system, seed=seed).exists()
    ]
    table.tell_kept(len(compared) - len(missing), options.out)
    for case, system, seed in missing:
        run_one(case, system=system, seed=seed, options=options)


def result_file(out: Path, case: cases.Case, *, system: str, seed: int) -> Path:
    """Give the place of one result."""
    return out / f"{case.name}-{system}-{seed}.json"


def run_one(case: cases.Case, *, system: str, seed: int, options: argparse.Namespace) -> None:
    """Run one system once and write its result file."""
    result = result_file(options.out, case, system=system, seed=seed)
    rows = options.out / "rows" / case.name
    model = model_folder(case.model, options.model)
    started = time.perf_counter()
    if system == "trainer":
        run_trainer(case, seed=seed, model=model, rows=rows, result=result, options=options)
    else:
        runs = options.out / "runs"
        runs.mkdir(exist_ok=True)
        found = ours.run_lushan(
            case,
            seed=seed,
            model=model,
            rows=rows,
            runs=runs,
            precision=options.precision,
            threads=options.threads,
            split=options.split,
        )
        unfinished = result.with_suffix(".tmp")
        unfinished.write_text(
            json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        unfinished.replace(result)
    scores = json.loads(result.read_text(encoding="utf-8"))["scores"]
    seconds = time.perf_counter() - started
    print(
        f"{case.name} {system} seed {seed}: {scores} in {seconds:.0f} s",
        file=sys.stderr,
        flush=True,
    )


def run_trainer(
    case: cases.Case,
    *,
    seed: int,
    model: str,
    rows: Path,
    result: Path,
    options: argparse.Namespace,
) -> None:
    """Call the rival in its own process and environment."""
    settings = {
        "data": rows,
        "model": model,
        "out": result,
        "epochs": case.epochs,
        "learning-rate": case.learning_rate,
        "seed": seed,
        "precision": options.precision,
        "rows-per-step": cases.ROWS_PER_STEP,
        "weight-decay": cases.WEIGHT_DECAY,
        "warmup-fraction": cases.WARMUP_FRACTION,
        "max-gradient-norm": cases.MAX_GRADIENT_NORM,
        "threads": options.threads,
    }
    script = Path(__file__).with_name("rival_trainer.py")
    words = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(options.threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [options.rival_python, str(script), *words, "--predict", options.split]
    subprocess.run(command, env=environment, stdout=sys.stderr, check=True)


def faster_precision() -> str:
    """Ask `lushan doctor` which arithmetic this machine computes faster."""
    doctor = [sys.executable, "-m", "lushan", "doctor", "--json"]
    done = subprocess.run(doctor, stdout=subprocess.PIPE, text=True, check=True)
    choices = json.loads(done.stdout.strip().rsplit("\n", 1)[-1])["choices"]
    return next(each["value"] for each in choices if each["name"] == "precision")


def model_folder(name: str, given: list[str]) -> str:
    """Find the folder of a model: as given, else where Lushan keeps it."""
    folders = dict(each.partition("=")[::2] for each in given)
    if name in folders:
        return folders[name]
    show = [sys.executable, "-m", "lushan", "models", "show", name, "--json"]
    done = subprocess.run(show, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().rsplit("\n", 1)[-1])["path"]


if __name__ == "__main__":
    main()
