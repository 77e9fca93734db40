"""The runs of a store folder, as the page lists them: where each stands, and what came out."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lushan.errors import RunError, SettingError
from lushan.evaluation.phrases import metric_name, metric_scale
from lushan.model_store.run_folder import is_being_written
from lushan.serving.page.texts import Texts
from lushan.settings import read_yaml

State = Literal["running", "finished", "stopped"]

RECIPE = "recipe.yaml"
RUN_PLACES = (f"*/{RECIPE}", f"*/*/{RECIPE}")
"""Runs lie in the store folder, or in a folder of it."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run, as a row of the list."""

    path: Path
    name: str
    """Its folder, below the store."""
    task: str
    state: State
    metric: str = ""
    before: str = ""
    after: str = ""


def list_runs(store: Path, texts: Texts) -> list[Run]:
    """List the runs of a store folder, the newest first."""
    folders = {recipe.parent for place in RUN_PLACES for recipe in store.glob(place)}
    newest = sorted(folders, key=lambda each: -(each / RECIPE).stat().st_mtime)
    return [_read_run(folder, store, texts) for folder in newest]


def find_run(store: Path, name: str, texts: Texts) -> Run:
    """Give the run of a name in the list; only those names lead anywhere.

    Raises:
        RunError: If there is no such run.
    """
    runs = {each.name: each for each in list_runs(store, texts)}
    if name not in runs:
        raise RunError(f"There is no run `{name[:100]}` in the store. Known: {', '.join(runs)}.")
    return runs[name]


def read_steps(run: Path) -> list[dict[str, Any]]:
    """Give the optimizer steps so far; a last line that is half written is left for later."""
    try:
        content = (run / "steps.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    whole = content[: content.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines()]


def planned_steps(run: Path) -> int | None:
    """Give how many optimizer steps a run takes if it does not stop early; None while that is not known."""
    training, data = _recipe(run).get("training", {}), _read_json(run / "ledger.json")
    try:
        num_rows = data["splits"]["train"]["total"]["num_examples"]
        return int(training["epochs"]) * math.ceil(num_rows / int(training["rows_per_step"]))
    except (KeyError, TypeError):
        return None


def read_report(run: Path) -> str | None:
    """Give the report as HTML; None while there is none."""
    file = run / "report.html"
    return file.read_text(encoding="utf-8") if file.is_file() else None


def _read_run(folder: Path, store: Path, texts: Texts) -> Run:
    results = _read_json(folder / "results.json")
    name = folder.relative_to(store).as_posix()
    task = str(_recipe(folder).get("task", ""))
    if not results:
        state: State = "running" if is_being_written(folder) else "stopped"
        return Run(folder, name, task, state)
    metric = results["main_metric"]
    before = results["before"] if results.get("before_is_model", True) else {}
    return Run(
        folder,
        name,
        task,
        "finished",
        metric_name(metric),
        _with_interval(before.get(metric), metric, texts),
        _with_interval(results["after"].get(metric), metric, texts),
    )


def _with_interval(found: Mapping[str, float] | None, metric: str, texts: Texts) -> str:
    if found is None:
        return ""
    scale = metric_scale(metric)
    return texts(
        "runs.interval",
        value=scale.text(found["value"]),
        low=scale.number(found["low"]),
        high=scale.number(found["high"]),
    )


def _recipe(run: Path) -> dict[str, Any]:
    try:
        return read_yaml(run / RECIPE)
    except SettingError:  # broken by hand: the list shows what else there is
        return {}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
