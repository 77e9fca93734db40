"""What the commands share: the console on stderr, JSON on stdout, common options, progress bars."""

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""For people; stdout belongs to results."""

JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print the result as one JSON object, the last line of stdout."),
]
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, help="Start of every random choice; same seed, same run.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PART.NAME=VALUE", help="One setting of the recipe; may be repeated."
    ),
]
TaskOption = Annotated[str, typer.Option("--task", help="What is to be learned.")]


def emit_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object as one line on stdout.

    Raises:
        ValueError: If a number is not finite, which JSON cannot say.
    """
    line = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _plain(value: object) -> object:
    """Give what JSON knows for a path, a dataclass, or a NumPy number.

    Raises:
        TypeError: If there is no such form.
    """
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if hasattr(value, "tolist"):
        return value.tolist()  # pyright: ignore[reportAttributeAccessIssue] - NumPy, not imported here
    raise TypeError(f"{type(value).__name__} has no JSON form.")


def show_error(message: str) -> None:
    """Print an error for a person on stderr, brackets and all."""
    console.print("Error:", style="bold red", end=" ")
    console.print(message, markup=False)


def tell(message: str) -> None:
    """Print one line for a person on stderr, brackets and all."""
    console.print(message, markup=False)


def show_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = ""
) -> None:
    """Print a table on stderr; cells are printed as they are."""
    table = Table(title=title or None, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(_escaped(cell) for cell in row))
    console.print(table)


def _escaped(cell: object) -> str:
    return str(cell).replace("[", r"\[")


class ProgressBar:
    """One bar on stderr with what is done, how fast, and the time left."""

    def __init__(self, progress: Progress, description: str, num_steps: int | None) -> None:
        self._progress = progress
        self._bar = progress.add_task(description, total=num_steps, note="")

    def advance(self, num_steps: int = 1, *, note: str = "") -> None:
        """Move on; `note` stands behind the bar, such as `loss 0.31  412 tokens/s`."""
        self._progress.update(self._bar, advance=num_steps, note=note)


@contextmanager
def progress_bar(description: str, num_steps: int | None = None) -> Iterator[ProgressBar]:
    """Show a bar while the block runs; nothing is drawn where stderr is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield ProgressBar(progress, description, num_steps)
