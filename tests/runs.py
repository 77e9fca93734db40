"""Whole runs of `lushan tune` with tiny models, quick enough for many tests."""

import json
from pathlib import Path
from typing import Any

from lushan.cli.main import run
from lushan.model_store import certificate
from lushan.model_store.tuned_model import load_predictor

QUICK = ("--epochs", "1", "--set", "model.precision=fp32", "--no-baselines")
"""Options with which nothing is measured or compared; whoever tests that, leaves them out."""


def answers_of_this_process(path: Path) -> dict[str, Any]:
    """Answer the probes of a run as its fresh process would, without the seconds that one takes to start."""
    return certificate.describe_answers(load_predictor(path), certificate.read_probes(path))


def tune(data: Path, out: Path, *options: str) -> int:
    """Run `lushan tune` in this process; gives its exit code."""
    return run(["tune", str(data), "--out", str(out), *options])


def read(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_steps(run_folder: Path) -> list[dict[str, Any]]:
    """Give the lines of `steps.jsonl` without what differs from run to run."""
    lines = (run_folder / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines]
    return [{name: step[name] for name in step if name != "seconds"} for step in steps]
