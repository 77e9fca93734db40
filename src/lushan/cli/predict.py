"""`lushan predict`: answer every row of a file."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from lushan.cli.console import (
    AnswerBar,
    JsonOption,
    RunArgument,
    SeedOption,
    SetOption,
    emit_json,
    tell,
)


def command(
    run: RunArgument,
    data: Annotated[
        Path, typer.Argument(metavar="INPUT", help="A file of texts, or a folder with a test file.")
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the answers here, not to stdout."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file in --out.")
    ] = False,
    settings: SetOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Answer every row of a file, in its order: one JSON object a line."""
    from lushan.settings import parse_assignments
    from lushan.workflows.predict import check_input_stays, check_output, predict, write_file

    del seed  # every command takes it; nothing here is random
    check_output(out, overwrite=overwrite)
    check_input_stays(out, run=run, data=data)

    def write(lines: Iterable[str]) -> None:
        if out is None:
            sys.stdout.writelines(lines)
        else:
            write_file(out, lines)

    with AnswerBar() as bar:
        done = predict(
            run,
            data,
            write=write,
            settings=parse_assignments(settings or []),
            tell=tell,
            begin=bar.begin,
            advance=bar.advance,
        )
    tell(f"Answered {done['num_examples']:,} rows in {done['seconds']:.1f} s" + _place(out))
    if as_json:
        emit_json({**done, "out": None if out is None else str(out)})


def _place(out: Path | None) -> str:
    return "." if out is None else f": {out}"
