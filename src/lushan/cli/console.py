"""What the commands share: the console on stderr, JSON on stdout, common options, the training bar."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperOption

if TYPE_CHECKING:
    from lushan.database.connect import Database
    from lushan.training.loop import Evaluated, StepDone

console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
"""For people; stdout belongs to results."""

JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print the result as one JSON object, the last line of stdout."),
]
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, help="Start of every random choice; same seed, same run.")
]
RecipeSeedOption = Annotated[
    int | None, typer.Option("--seed", min=0, help="Start of every random choice.")
]
"""Where a recipe may say it too."""
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PART.NAME=VALUE", help="One setting of the recipe; may be repeated."
    ),
]
WeightsOption = Annotated[
    str,
    typer.Option(
        "--weights",
        metavar="auto|fp32|bf16|int8|int4",
        help="How weights are held for answering; fewer bits take less memory and round more.",
    ),
]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="The folder that `lushan tune --out` wrote.")
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="DIR",
        help="Folder of feedback and keys; else `LUSHAN_STORE`, else one in your data folder.",
    ),
]
DataArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DATA", help="A folder with train, validation and test files, or one file."
    ),
]
TaskOption = Annotated[str | None, typer.Option("--task", help="What is to be learned.")]
OverlapOption = Annotated[
    str | None,
    typer.Option(
        "--overlap",
        metavar="remove|error|keep",
        help="What to do with rows a later split has too.",
    ),
]


class Command(TyperCommand):
    """Takes no option for the value of another: in `--out --overwrite` the folder was forgotten."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's own class
        """Read the words after the command's name.

        Raises:
            TyperException: If they do not fit.
        """
        options = [each for each in self.get_params(ctx) if isinstance(each, TyperOption)]
        names = {name for each in options for name in each.opts}
        with_value = {name for each in options if not each.is_flag for name in each.opts}
        for name, value in pairwise(args):
            if name in with_value and value in names:
                ctx.fail(f"Option '{name}' requires an argument, but the option '{value}' follows")
        return super().parse_args(ctx, args)


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import large modules in the block: what they make stays, so that nobody looks for garbage in it, then or later."""
    num_modules, was_enabled = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        with _without_scipy():
            yield
    finally:
        if len(sys.modules) > num_modules:
            gc.freeze()
        if was_enabled:
            gc.enable()


@contextmanager
def _without_scipy() -> Iterator[None]:
    """Keep transformers from loading scipy for its losses of object detection, of which no command knows."""
    utils: Any = importlib.import_module("transformers.utils")
    kept = utils.is_scipy_available
    utils.is_scipy_available = lambda: False
    try:
        yield
    finally:
        utils.is_scipy_available = kept


def emit_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object as one line on stdout.

    Raises:
        ValueError: If a number is not finite, which JSON cannot say.
    """
    line = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    print(line, flush=True)


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


def open_store(named: str | None, *, purpose: str, create: bool) -> Database:
    """Open the store that `--store` names.

    Args:
        named: A folder or a URL; None takes the usual place.
        purpose: What needs it, for the message that says what to install.
        create: Whether to make it where there is none.

    Raises:
        MissingExtraError: If the packages of the extra `serve` are not there.
        StoreError: If the store cannot be opened.
    """
    from lushan.database.location import check_packages, store_place

    check_packages(purpose)
    from lushan.database.connect import open_database

    return open_database(store_place(named), create=create)


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
    table = Table(title=Text(title) if title else None, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console.print(table)


class TrainingBar:
    """Listens to training: a bar with loss, speed and time left, and a line for every evaluation.

    The bar is drawn only where stderr is a terminal.
    """

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._bar: TaskID | None = None
        self._num_tokens = 0
        self._seconds = 0.0

    def on_step(self, done: StepDone) -> None:
        """Move on by one optimizer step."""
        self._num_tokens += done.tokens
        self._seconds += done.seconds
        speed = self._num_tokens / max(self._seconds, 1e-9)
        note = f"loss {done.loss:.3f}, {speed:,.0f} tokens/s"
        if self._bar is None:
            self._progress.start()
            self._bar = self._progress.add_task("", note=note)
        self._progress.update(self._bar, completed=done.step, total=done.num_steps, note=note)
        if done.step == done.num_steps:
            self.stop()

    def on_evaluation(self, epoch: int, step: int, found: Evaluated) -> None:
        """Say how well the validation rows are answered by now."""
        tell(
            f"Epoch {epoch}, step {step}: validation score {found.score:.4f}, loss {found.loss:.4f}."
        )

    def stop(self) -> None:
        """Leave the bar as it is; nothing happens when it has stopped before."""
        self._progress.stop()

    def __enter__(self) -> Self:
        """Use the bar in a `with` block, so that it stops whatever happens."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the bar."""
        self.stop()


class AnswerBar:
    """Shows how many texts are answered; drawn only where stderr is a terminal."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("answering"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._bar: TaskID | None = None

    def begin(self, num_texts: int) -> None:
        """Start counting."""
        self._progress.start()
        self._bar = self._progress.add_task("", total=num_texts)

    def advance(self, num_texts: int) -> None:
        """Count texts that were answered."""
        if self._bar is not None:
            self._progress.advance(self._bar, num_texts)

    def __enter__(self) -> Self:
        """Use the bar in a `with` block, so that it stops whatever happens."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the bar."""
        self._progress.stop()


def show_outcome(results: Mapping[str, Any]) -> None:
    """Print before, after and baselines, and where the report is."""
    metric = results["main_metric"]
    compared = results["comparisons"]
    systems = {"before": results["before"], **results["baselines"], "after": results["after"]}
    rows = [
        (
            name,
            *_score_cells(scores.get(metric)),
            f"{compared[name]['p_value_holm']:.2g}" if name in compared else "",
        )
        for name, scores in systems.items()
    ]
    num_rows = results["num_examples"]["test"]
    show_table(
        ("system", metric, "95 % interval", "corrected p (after is different)"),
        rows,
        title=f"On the same {num_rows:,} test rows",
    )
    tell(f"Report: {Path(results['run'], 'report.html')}")


def _score_cells(score: Mapping[str, float] | None) -> tuple[str, str]:
    """Give a score and its interval; a system may have none, where nothing could be counted."""
    if score is None:
        return "-", ""
    return f"{score['value']:.3f}", f"{score['low']:.3f} to {score['high']:.3f}"
