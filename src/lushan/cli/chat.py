"""`lushan chat`: talk to a model in the terminal, or line by line from a script."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from lushan.cli.console import (
    JsonOption,
    SeedOption,
    SetOption,
    WeightsOption,
    emit_json,
    quick_imports,
    show_error,
    tell,
)
from lushan.errors import DataError, SettingError, UserError

if TYPE_CHECKING:
    from lushan.workflows.chat import Talk

INSIDE = {
    "/reset": "forgets what was said",
    "/system TEXT": "says how to behave; without a text that is taken back",
    "/save FILE": "writes what was said into a new JSON Lines file",
    "/quit": "ends",
}


def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL",
            help="The folder that `lushan tune --out` wrote, or a pretrained model by name or folder.",
        ),
    ],
    *,
    system: Annotated[
        str | None,
        typer.Option("--system", metavar="TEXT", help="How the model is to behave."),
    ] = None,
    settings: SetOption = None,
    weights: WeightsOption = "auto",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Talk to a model; a model of another task than dialogue answers each line by itself."""
    from lushan.settings import parse_assignments

    with quick_imports():
        from lushan.workflows.chat import open_chat

    talk = open_chat(
        model,
        system=system,
        settings=parse_assignments(settings or []),
        seed=seed,
        weights=weights,
        tell=tell,
    )
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        tell(f"Ctrl-C stops a reply. {_known()}")
    for line in _typed(as_json=as_json) if is_terminal else _piped():
        if line.split()[0] == "/quit":
            break
        try:
            _take(line, talk, is_typed=is_terminal, as_json=as_json)
        except UserError as error:
            if not is_terminal:
                raise
            show_error(str(error))


def _known() -> str:
    return "; ".join(f"`{name}` {does}" for name, does in INSIDE.items()) + "."


def _typed(*, as_json: bool) -> Iterator[str]:
    """Lines from a person, until Ctrl-D."""
    with contextlib.suppress(
        ImportError
    ):  # not on every system; gives the arrow keys their meaning
        import readline  # noqa: F401
    while True:
        try:
            line = _ask(as_json=as_json).strip()
        except EOFError:
            tell("")
            return
        except KeyboardInterrupt:
            tell("\n`/quit` or Ctrl-D ends.")
            continue
        if line:
            yield line


def _ask(*, as_json: bool) -> str:
    """Read one line; what asks for it is not put among the replies where a program reads them."""
    prompt = "> "
    if as_json or not sys.stdout.isatty():
        print(prompt, end="", file=sys.stderr, flush=True)
        prompt = ""
    return input(prompt)  # which writes it to stdout, and edits the line behind it


def _piped() -> Iterator[str]:
    """Lines from a script; empty ones are no turns."""
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise DataError(
                f"Line {number} of stdin: not UTF-8: byte 0x{line[error.start]:02x} at byte {error.start + 1}. "
                "Send UTF-8, such as through `iconv -f GB18030 -t UTF-8` or `-f CP1252`."
            ) from None
        if text:
            yield text


def _take(line: str, talk: Talk, *, is_typed: bool, as_json: bool) -> None:
    """Do what a line says: one of the commands inside, or a turn; in a file, other lines that begin so are texts."""
    from lushan.backbones.sources import expanded
    from lushan.workflows.chat import save_talk

    name, _, rest = line.partition(" ")
    match name:
        case "/reset":
            talk.reset()
            tell("Forgotten.")
        case "/system":
            talk.set_system(rest.strip())
            tell("From the next turn on.")
        case "/save":
            if not rest.strip():
                raise SettingError("`/save` needs the name of a file: `/save talk.jsonl`.")
            file = expanded(rest.strip())
            tell(f"Wrote {save_talk(talk, file):,} row(s) into {file}.")
        case _ if is_typed and name.startswith("/"):
            raise SettingError(f"Unknown command `{name}`. Known: {_known()}")
        case _:
            _answer(line, talk, as_json=as_json)


def _answer(line: str, talk: Talk, *, as_json: bool) -> None:
    """Print a reply while it is written; Ctrl-C ends the reply alone."""
    try:
        with contextlib.closing(talk.ask(line)) as pieces:
            for piece in pieces:
                print("" if as_json else piece, end="", flush=True)
    except KeyboardInterrupt:
        tell(" [stopped]")
    if as_json:
        emit_json(talk.last)
    else:
        print(flush=True)
