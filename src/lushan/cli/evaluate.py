"""`lushan evaluate`: how good a run is on labelled rows."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lushan.cli.console import (
    AnswerBar,
    JsonOption,
    RecipeSeedOption,
    RunArgument,
    SetOption,
    WeightsOption,
    emit_json,
    quick_imports,
    show_table,
    tell,
)

MOST_LABELS = 20
"""More labels than this are shown with the worst first, and the rest counted."""


def command(
    run: RunArgument,
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="A file of labelled rows, or a folder with a test file."
        ),
    ],
    *,
    settings: SetOption = None,
    weights: WeightsOption = "auto",
    seed: RecipeSeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a run on labelled rows, with 95 % intervals and a table by label."""
    from lushan.settings import parse_assignments

    with quick_imports():
        from lushan.workflows.evaluate import evaluate

    with AnswerBar() as bar:
        result = evaluate(
            run,
            data,
            settings=parse_assignments(settings or []),
            weights=weights,
            seed=seed,
            tell=tell,
            begin=bar.begin,
            advance=bar.advance,
        ).result
    show_scores(result)
    if as_json:
        emit_json(result)


def show_scores(result: dict[str, Any]) -> None:
    """Print the metrics with their intervals, and the labels."""
    from lushan.catalog import load_task
    from lushan.evaluation.phrases import metric_decimal

    rows = [
        (
            _named(name, result.get("positive_label")),
            metric_decimal(found["value"], name),
            f"{metric_decimal(found['low'], name)} to {metric_decimal(found['high'], name)}",
        )
        for name, found in result["metrics"].items()
    ]
    title = f"{result['num_examples']:,} rows of {result['data']}"
    show_table(("metric", "value", "95 % interval"), rows, title=title)
    labels = result.get("per_class")
    if not labels:
        return
    wording = load_task(result["task"]).wording
    if len(labels) > MOST_LABELS:
        labels = sorted(labels, key=lambda each: each["f1"])[:MOST_LABELS]
        tell(
            f"The {MOST_LABELS} {wording.label}s with the lowest F1, of {len(result['per_class'])}:"
        )
    names = ("precision", "recall", "f1")
    per_label = [
        (each["label"], *(f"{each[name]:.3f}" for name in names), f"{each['support']:,}")
        for each in labels
    ]
    counted = "rows" if wording.counted == "texts" else wording.counted
    show_table((wording.label, *names, counted), per_label)


def _named(metric: str, positive_label: str | None) -> str:
    """`f1` -> `f1 of sea`: of two labels, some metrics are those of one alone."""
    is_of_one = positive_label is not None and metric in ("f1", "precision", "recall")
    return f"{metric} of {positive_label}" if is_of_one else metric
