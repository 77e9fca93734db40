"""`lushan check`: everything that would block or bend a run, before anything is trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lushan.cli.console import (
    DataArgument,
    JsonOption,
    OverlapOption,
    RecipeSeedOption,
    SetOption,
    TaskOption,
    emit_json,
    quick_imports,
    show_table,
    tell,
)


def command(
    data: DataArgument,
    *,
    task: TaskOption = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Whose tokens are counted: a folder, or a known name."),
    ] = None,
    overlap: OverlapOption = None,
    settings: SetOption = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="A YAML file with settings.")
    ] = None,
    seed: RecipeSeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check your data and settings: ledger, overlap between splits, labels. Exits 2 if a run would be blocked.

    Whether time, memory and room for written answers suffice, only `tune` finds out.
    """
    from lushan.workflows.recipe import make_recipe

    flags: dict[str, Any] = {
        "task": task,
        "seed": seed,
        "model": {"name": model},
        "data": {"overlap": overlap},
    }
    made = make_recipe(recipe, flags, settings or [])

    with quick_imports():
        from lushan.workflows.check import check

    findings = check(data, made, tell=tell)
    show_ledger(findings["ledger"])
    if findings["has_model"]:
        tell("Nothing blocks a run.")
    else:
        tell(
            "A run needs its model first. Of the rest, nothing that can be checked without it blocks one."
        )
    if as_json:
        emit_json(findings)


def show_ledger(ledger: Mapping[str, Any]) -> None:
    """Print what became of the rows and tokens of each split."""
    rows = [
        (
            name,
            f"{split['num_read']:,}",
            ", ".join(f"{times:,} {reason}" for reason, times in split["num_dropped"].items()),
            f"{split['total']['num_examples']:,}",
            f"{split['total']['num_tokens']:,}",
            f"{split['total']['num_cut_tokens']:,}",
            len(split["per_class"]),
        )
        for name, split in ledger["splits"].items()
    ]
    columns = ("split", "rows read", "left out", "rows kept", "tokens", "cut", "labels")
    show_table(columns, rows)
