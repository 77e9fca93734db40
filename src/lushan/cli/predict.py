"""`lushan predict`: answer every row of a file."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

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
    tell,
)

STREAM = Path("-")
"""As INPUT, JSON Lines on stdin; as `--out`, stdout."""


def command(
    run: RunArgument,
    data: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help="A file of texts, a folder with a test file, or `-` for JSON Lines on stdin.",
        ),
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the answers here, not to stdout."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the file in --out where it was stopped.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file in --out.")
    ] = False,
    settings: SetOption = None,
    weights: WeightsOption = "auto",
    seed: RecipeSeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer every row of a file, in its order: one JSON object a line."""
    from lushan.errors import SettingError
    from lushan.settings import parse_assignments

    with quick_imports():
        from lushan.workflows.answer_file import AnswerFile
        from lushan.workflows.predict import (
            check_input_stays,
            check_output,
            open_run,
            predict,
            start_anew,
        )

    out = None if out == STREAM else out
    if out is None and resume:
        raise SettingError("`--resume` has no effect without `--out FILE`. Name the file.")
    check_output(out, overwrite=overwrite)
    file = out and AnswerFile(out, resume=resume, overwrite=overwrite)
    with _readable(data) as source, AnswerBar() as bar:
        check_input_stays(out, run=run, data=source)
        try:
            given = parse_assignments(settings or [])
            opened = open_run(run, given, weights=weights, seed=seed, tell=tell)
            done = predict(
                opened,
                source,
                write=file.write if file else sys.stdout.writelines,
                num_written=file.begin if file else start_anew,
                tell=tell,
                begin=bar.begin,
                advance=bar.advance,
            )
        except KeyboardInterrupt:
            if file and file.is_begun:
                tell("What is answered is kept: the same command with `--resume` goes on.")
            raise
    tell(f"Answered {done['num_examples']:,} rows in {done['seconds']:.1f} s" + _place(out))
    if as_json:
        emit_json({**done, "data": str(data), "out": None if out is None else str(out)})


@contextmanager
def _readable(data: Path) -> Iterator[Path]:
    """Give a file that can be read twice, as checking rows before the first is answered needs."""
    if data != STREAM:
        yield data
        return
    with TemporaryDirectory(prefix="lushan-") as folder:
        copy = Path(folder, "stdin.jsonl")
        with copy.open("wb") as stream:
            shutil.copyfileobj(sys.stdin.buffer, stream)
        yield copy


def _place(out: Path | None) -> str:
    return "." if out is None else f": {out}"
