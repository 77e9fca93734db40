"""From the results of a run to `report.html`: one page, no script, nothing fetched, made to be printed too."""

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from lushan.atomic import write_text
from lushan.catalog import load_task
from lushan.errors import RunError
from lushan.evaluation import phrases
from lushan.evaluation import report_tables as tables


def write_report(results: Mapping[str, Any], folder: Path) -> Path:
    """Write `report.html` into a run folder, from its results and the files beside them.

    Reads `steps.jsonl`, `ledger.json` and `recipe.yaml` where they exist.

    Args:
        results: The content of `results.json`.
        folder: The run folder.

    Returns:
        The file.

    Raises:
        RunError: If a file of the run is broken; names file and line.
    """
    page = environment().get_template("report.html").render(**_view(results, folder))
    target = folder / "report.html"
    write_text(target, page)
    return target


def environment() -> Environment:
    """Give the templates: HTML is escaped, an unknown name is an error."""
    found = Environment(
        loader=PackageLoader("lushan.evaluation"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "percent": phrases.percent,
        "points": phrases.points,
        "p_text": phrases.p_text,
        "metric_name": phrases.metric_name,
        "metric_text": phrases.metric_text,
        "metric_number": phrases.metric_number,
        "system_name": phrases.system_name,
        "duration": phrases.duration,
        "inline": phrases.inline,
        "answer": phrases.answer_text,
        "markdown": markdown_text,
    }
    return found


def markdown_text(text: str) -> str:
    """Make user text safe inside Markdown: no tags, no table cells, no lines, no emphasis."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", escaped)


def _view(results: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Everything that the template shows, already decided and in order."""
    ledger = read_ledger(folder / "ledger.json")
    results = tables.complete(results)
    return {
        "results": results,
        "wording": load_task(results["task"]).wording,
        "right_rows": phrases.right_rows(results),
        "graded": phrases.any_graded(results),
        "test": phrases.test_words(phrases.any_graded(results)),
        "headline": phrases.headline(results),
        "facts": tables.facts(results),
        "standing": tables.standing(results),
        "scores": tables.scores(results),
        "comparisons": [
            {"name": name, "verdict": phrases.standing(each), **each}
            for name, each in results["comparisons"].items()
        ],
        "learning": tables.learning(results, read_steps(folder / "steps.jsonl")),
        "label_curve": tables.label_curve(results),
        "classes": tables.classes(results, ledger),
        "errors": [tables.error(each) for each in results["worst_errors"]],
        "ledger": tables.ledger(ledger),
        "costs": tables.costs(results["seconds"]),
        "recipe": _read(folder / "recipe.yaml"),
    }


def read_ledger(path: Path) -> dict[str, Any]:
    """Read the token ledger of a run; empty where there is none.

    Raises:
        RunError: If it is not JSON; names the line.
    """
    try:
        return json.loads(_read(path) or "{}")
    except json.JSONDecodeError as error:
        raise RunError(f"`{path}` is not valid JSON: line {error.lineno}, {error.msg}.") from None


def read_steps(path: Path) -> list[dict[str, Any]]:
    """Read the optimizer steps of a run; empty where none were taken.

    Raises:
        RunError: If a line is not JSON; names it.
    """
    if not path.is_file():
        return []
    steps: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                steps.append(json.loads(line))
            except json.JSONDecodeError:
                shown = line.removesuffix("\n")[:60]
                raise RunError(f"`{path}`, line {number} is not valid JSON: {shown!r}.") from None
    return steps


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
