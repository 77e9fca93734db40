"""Tune with `lushan tune`, and give the result the shape of the rival's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cases
import table
import yaml

NUM_FEW_ROWS = 20
"""`tune` also judges the untouched model on its test rows. That is no part of this comparison, so it gets
only the first few; the answers compared come from `predict` on the whole test split. Validation rows are
also few where nothing is chosen by them: the Trainer gets none."""
FIXED_SETTINGS = {
    "training.rows_per_step": cases.ROWS_PER_STEP,
    "training.weight_decay": cases.WEIGHT_DECAY,
    "training.warmup_fraction": cases.WARMUP_FRACTION,
    "training.max_gradient_norm": cases.MAX_GRADIENT_NORM,
    "training.optimizer": "adamw",
    "training.schedule": "linear",
    # The rows were made free of overlap for both systems; nothing more is taken out for one of them.
    "data.overlap": "keep",
}


def run_lushan(
    case: cases.Case,
    *,
    seed: int,
    model: str,
    rows: Path,
    runs: Path,
    precision: str,
    threads: int,
    split: str,
) -> dict[str, Any]:
    """Tune, predict a split, and read the scores.

    Args:
        case: What to run.
        seed: Seed of the run.
        model: Folder or name of the model.
        rows: The folder that `cases.write_rows` made.
        runs: Where the run folder goes.
        precision: `bf16` or `fp32`.
        threads: CPU threads.
        split: What is predicted and scored.
    """
    run = runs / f"{case.name}-{seed}"
    has_target = case.target_accuracy is not None
    shortened = ("test",) if has_target else ("validation", "test")
    few = with_few_rows(rows, runs / f"{case.name}-rows", splits=shortened)
    settings = {
        **FIXED_SETTINGS,
        "model.precision": precision,
        # The Trainer's model is that of its last step.
        "training.keep": "best" if has_target else "last",
        "training.epochs": case.epochs,
        "training.learning_rate": case.learning_rate,
        "training.head_learning_rate": case.learning_rate,
    }
    if not (run / "results.json").is_file():
        words = ["tune", str(few), "--task", "classification", "--model", model]
        words += ["--adapter", "full", "--seed", str(seed), "--no-baselines"]
        words += [part for name in settings for part in ("--set", f"{name}={settings[name]}")]
        _lushan([*words, "--out", str(run), "--overwrite"], threads=threads)
    check_recipe(run, settings, seed=seed)
    told = json.loads((run / "results.json").read_text(encoding="utf-8"))
    answers_file = runs / f"{case.name}-{seed}.jsonl"
    _lushan(
        [
            "predict",
            str(run),
            str(rows / f"{split}.jsonl"),
            "--out",
            str(answers_file),
            "--overwrite",
        ],
        threads=threads,
    )
    answers = read_answers(answers_file)
    seconds: Mapping[str, float] = told["seconds"]
    return {
        "set": case.name,
        "seed": seed,
        "system": "lushan",
        "hyper_parameters": {
            "epochs": case.epochs,
            "learning_rate": case.learning_rate,
            "settings": settings,
        },
        "scores": {split: table.score(answers, table.read_truth(rows, split))},
        "answers": {split: answers},
        "history": told["validation"],
        "num_train_tokens": told["num_train_tokens"],
        "seconds": {**seconds, "train": seconds["train"] + seconds.get("compile", 0.0)},
        "train_tokens_per_second": told["train_tokens_per_second"],
        "peak_rss_bytes": told["peak_rss_bytes"],
    }


def check_recipe(run: Path, settings: Mapping[str, Any], *, seed: int) -> None:
    """Make sure that a run, which may be an older one, has the settings of its case.

    Raises:
        SystemExit: Names the run and the setting.
    """
    recipe: dict[str, Any] = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    for name, wanted in {"seed": seed, **settings}.items():
        used: Any = recipe
        for part in name.split("."):
            used = used[part]
        if used != wanted:
            raise SystemExit(
                f"`{run}` has {name} = {used}, the case {wanted}. Remove that run and start again."
            )


def with_few_rows(rows: Path, into: Path, *, splits: Sequence[str]) -> Path:
    """Copy the folder of a case, of some splits the first rows only."""
    into.mkdir(parents=True, exist_ok=True)
    for split in cases.SPLITS:
        lines = (rows / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")
        kept = lines[:NUM_FEW_ROWS] if split in splits else lines
        (into / f"{split}.jsonl").write_text("\n".join(kept), encoding="utf-8")
    return into


def read_answers(file: Path) -> dict[str, str]:
    """Read predictions in input order; answers by row number from 0."""
    lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line]
    return {str(row): json.loads(line)["answer"] for row, line in enumerate(lines)}


def _lushan(words: Sequence[str], *, threads: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lushan", *words],
        stdout=sys.stderr,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"},
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"`lushan {words[0]}` ended with code {done.returncode}.")
