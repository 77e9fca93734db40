"""Time Lushan's engine and its rivals side by side: in one process tree, in turn, on the same prompts; then print ratios.

Every engine is its own process in its own environment: one that crashes is a row that says so. Results are kept run by
run, so the command can be stopped and goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import comparison
from engines import ENGINES, SCORERS, Engine, Environment, Scorer

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "quality"))

import cases  # noqa: E402 - their folder is known only now
import table  # noqa: E402

CASE = cases.case_named("sst2")
NUM_TUNING_ROWS = 64
"""For a classifier whose answers do not matter here."""
NUM_SCORED_TEXTS = 256
TIMEOUT_SECONDS = 600
MAKING_SECONDS = 1_800
QUIET = {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = [each.name for each in (*ENGINES, *SCORERS)]
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument(
        "--environments", type=Path, help="folder of the rivals' virtual environments"
    )
    parser.add_argument("--forms", type=Path, help="where what the engines load is kept")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of results")
    parser.add_argument("--data", type=Path, default=os.environ.get("LUSHAN_DATA"))
    parser.add_argument("--engine", nargs="+", choices=known, default=known, metavar="NAME")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cores", type=int, nargs="+", help="run on these cores alone")
    parser.add_argument("--make-only", action="store_true", help="make what the engines load")
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    parser.add_argument("--document", type=Path, help="put the table between this file's markers")
    options = parser.parse_args()
    if not (options.table_only or (options.environments and options.forms)):
        parser.error("give --environments and --forms, or --table-only")
    if options.cores and len(options.cores) != options.threads:
        parser.error(f"--cores {options.cores} are not as many as --threads {options.threads}")
    return options


def main() -> None:
    """Run what is missing, then make the table."""
    options = parse()
    if not options.table_only:
        if options.cores:
            os.sched_setaffinity(0, options.cores)
        options.forms = options.forms.resolve() / options.model.name
        options.forms.mkdir(parents=True, exist_ok=True)
        describe_machine(options)
        run_missing(options)
    if options.make_only:
        return
    section = comparison.make_section(options.out)
    print(section)
    if options.document:
        table.put_between_markers(options.document, section, name="decoding")


def describe_machine(options: argparse.Namespace) -> None:
    """Keep what Lushan says of the machine."""
    file = options.out / "machine.json"
    if file.is_file():
        return
    options.out.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "lushan", "doctor", "--json"], stdout=subprocess.PIPE, check=True
    )
    told = json.loads(done.stdout)
    kept = {name: told[name] for name in ("machine", "speed", "versions")}
    file.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def run_missing(options: argparse.Namespace) -> None:
    """Run each engine and repeat that has no result yet; engines in turn inside of a repeat."""
    folder = options.out / options.model.name / f"threads-{options.threads}"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [
        (one, folder / f"{one.name}-{repeat}.json")
        for repeat, one in itertools.product(range(options.repeats), (*ENGINES, *SCORERS))
        if one.name in options.engine
    ]
    table.tell_kept(sum(result.is_file() for _, result in wanted), folder)
    for one, result in wanted:
        if result.is_file():
            continue
        if python_of(one.environment, options) is None:
            print(f"{one.name}: no environment `{one.environment}`, left out.", file=sys.stderr)
            continue
        if isinstance(one, Scorer) and not options.data:
            print(f"{one.name}: no LUSHAN_DATA and no --data, left out.", file=sys.stderr)
            continue
        run_one = run_engine if isinstance(one, Engine) else run_scorer
        found = run_one(one, options)
        if found is None:
            continue
        result.write_text(json.dumps(found) + "\n", encoding="utf-8")
        shown = {name: value for name, value in found.items() if name != "starts"}
        print(f"{result.stem}: {shown}", file=sys.stderr, flush=True)


def run_engine(engine: Engine, options: argparse.Namespace) -> dict[str, Any] | None:
    """Make what an engine loads, if it is not there; then time it, if that is wanted."""
    model = options.model
    prompts = options.forms / "prompts.json"
    if not prompts.is_file():
        words = ["ours_forms.py", "--model", model, "--out", prompts]
        why = run([sys.executable, *words], options, seconds=MAKING_SECONDS)
        if why:
            raise SystemExit(f"The prompts could not be made: {why}")
    if engine.makes:
        model = options.forms / (engine.folder or engine.name)
        if why := make(engine, model, options):
            return {"crash": f"not converted: {why}"}
    if options.make_only:
        return None
    words = [HERE / engine.script, "--model", model / engine.file, "--form", engine.form]
    words += ["--prompts", prompts, "--threads", options.threads]
    return timed([python_of(engine.environment, options), *words], options)


def make(engine: Engine, model: Path, options: argparse.Namespace) -> str:
    """Write what an engine loads; gives why that was not possible, and remembers it."""
    failed = model.with_suffix(".failed")
    if model.is_dir():
        return failed.read_text(encoding="utf-8") if failed.is_file() else ""
    python = python_of(engine.makes_in, options)
    if python is None:
        return f"no environment `{engine.makes_in}`"
    program, *words = (
        each.format(model=options.model.resolve(), out=model) for each in engine.makes
    )
    command = python if program == "python" else Path(python).parent / program
    why = run([command, *words], options, seconds=MAKING_SECONDS)
    model.mkdir(exist_ok=True)
    if why:
        failed.write_text(why, encoding="utf-8")
    return why


def run_scorer(scorer: Scorer, options: argparse.Namespace) -> dict[str, Any] | None:
    """Tune a classifier on a few rows, if there is none; then time one way to ask it, if that is wanted."""
    classifier = options.forms / "classifier"
    if not (classifier / "export").is_dir():
        make_classifier(classifier, options)
    if options.make_only:
        return None
    words = [HERE / "score.py", "--run", classifier / "run", "--form", scorer.form]
    words += ["--export", classifier / "export", "--texts", classifier / "texts.json"]
    words += ["--threads", options.threads]
    return timed([python_of(scorer.environment, options), *words], options)


def make_classifier(classifier: Path, options: argparse.Namespace) -> None:
    """Tune on a few rows of SST-2, and write the texts to score and the OpenVINO form."""
    rows = classifier / "rows"
    cases.write_rows(CASE, Path(options.data), classifier / "all")
    rows.mkdir(exist_ok=True)
    for split in ("train", "validation", "test"):
        lines = (classifier / "all" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        part = lines[:NUM_TUNING_ROWS]
        (rows / f"{split}.jsonl").write_text("\n".join(part) + "\n", encoding="utf-8")
        if split == "train":
            texts = [json.loads(line)["text"] for line in lines[:NUM_SCORED_TEXTS]]
            (classifier / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    lushan: list[Any] = [sys.executable, "-m", "lushan"]
    tuned = classifier / "run"
    words = ["tune", rows, "--model", options.model, "--adapter", "full", "--epochs", 1]
    words += ["--no-baselines", "--set=data.overlap=keep", "--out", tuned, "--overwrite"]
    export = ["export", tuned, "--to", "openvino", "--quantise", "int8"]
    for command in (words, [*export, "--out", classifier / "export"]):
        if why := run([*lushan, *command], options, seconds=MAKING_SECONDS):
            raise SystemExit(f"The classifier could not be made: {why}")


def timed(words: Sequence[Any], options: argparse.Namespace) -> dict[str, Any]:
    """Run one process that writes a result file; what it wrote before a crash is kept."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        why = run([*words, "--out", out], options, seconds=TIMEOUT_SECONDS)
        found = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    return {**found, "crash": why} if why else found


def run(words: Sequence[Any], options: argparse.Namespace, *, seconds: float) -> str:
    """Run a command to its end; gives why it failed, nothing if it did not."""
    environment = {**os.environ, **QUIET, "OMP_NUM_THREADS": str(options.threads)}
    if Path(words[0]).resolve() != Path(sys.executable).resolve():
        environment.pop("PYTHONPATH", None)
    try:
        done = subprocess.run(
            [str(word) for word in words],
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            cwd=HERE,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not done after {seconds:.0f} s"
    if done.returncode < 0:
        return signal.Signals(-done.returncode).name
    if done.returncode > 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return lines[-1][:200]
    return ""


def python_of(environment: Environment | str, options: argparse.Namespace) -> str | None:
    """The interpreter of an environment; None where there is none."""
    if environment == "lushan":
        return sys.executable
    python = options.environments.resolve() / environment / "bin" / "python"
    return str(python) if python.is_file() else None


if __name__ == "__main__":
    main()
