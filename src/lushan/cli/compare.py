"""`lushan compare`: which run is better on the same rows, and is it more than luck."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lushan.cli.console import (
    JsonOption,
    RecipeSeedOption,
    SetOption,
    emit_json,
    quick_imports,
    show_table,
    tell,
)


def command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN...", help="Two or more run folders.")
    ],
    *,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Labelled rows that every run is asked about; else the test rows of their tuning.",
        ),
    ] = None,
    settings: SetOption = None,
    seed: RecipeSeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare runs row by row, with intervals and p-values corrected for their number."""
    from lushan.settings import parse_assignments

    with quick_imports():
        from lushan.workflows.evaluate import compare

    found = compare(
        runs, data=data, settings=parse_assignments(settings or []), seed=seed, tell=tell
    )
    show_comparison(found)
    if as_json:
        emit_json(found)


def show_comparison(found: dict[str, Any]) -> None:
    """Print the accuracy (or mean row score) of each run, and each pair."""
    graded = "mean_row_score" in found["runs"][0]
    name = "mean_row_score" if graded else "accuracy"
    means = [
        (each["name"], _written(each[name], sign=""), _interval(each[name], sign=""))
        for each in found["runs"]
    ]
    shown = name.replace("_", " ")
    title = f"{found['num_examples']:,} different rows"
    show_table(("run", shown, "95 % interval"), means, title=title)
    pairs = [
        (
            f"{each['second']} - {each['first']}",
            _written(each["difference"], sign="+"),
            _interval(each["difference"], sign="+"),
            f"{each['wins']} : {each['losses']}",
            f"{each['p_value_holm']:.2g}",
        )
        for each in found["comparisons"]
    ]
    sides = "one is better" if graded else "only one is right"
    columns = (f"difference in {shown}", "", "95 % interval", sides, "p (Holm)")
    show_table(columns, pairs)


def _written(interval: dict[str, float], *, sign: str) -> str:
    return f"{interval['value']:{sign}.3f}"


def _interval(interval: dict[str, float], *, sign: str) -> str:
    return f"{interval['low']:{sign}.3f} to {interval['high']:{sign}.3f}"
