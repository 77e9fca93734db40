"""The command line: finds the commands, runs one, and turns errors into messages and exit codes.

Exit codes: 0 done, 2 the user's mistake, 130 interrupted, 1 our bug (with a traceback).
"""

import contextlib
import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import TyperException

import lushan
from lushan.catalog import names_in
from lushan.cli.console import Command, emit_json, show_error, tell
from lushan.errors import SettingError, UserError

NOT_COMMANDS = ("console", "main")
USER_MISTAKE = 2
INTERRUPTED = 130
OUTSIDE_CAUSES = (
    *(errno.EACCES, errno.EROFS, errno.EDQUOT, errno.ENOSPC),
    *(errno.ENAMETOOLONG, errno.ELOOP),
)
"""Failures of the operating system that only the user can mend: no permission, no room, no such name."""
SPIN_COUNT = "10000"
"""How often a thread of torch looks whether its fellows are done before it sleeps. libgomp's own number fits a
processor that nobody shares; with other work on it, threads that look for milliseconds starve those they wait for."""


def command_names() -> list[str]:
    """List the commands: one per file of this folder; imports none of them."""
    return [name for name in names_in("lushan.cli") if name not in NOT_COMMANDS]


def build_app(names: Sequence[str]) -> typer.Typer:
    """Import the commands of these names and put them behind one program."""
    app = typer.Typer(
        name="lushan",
        help="Adapt a pretrained GPT to your task, and prove that it got better.",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_program)
    for name in names:
        module = importlib.import_module(f"lushan.cli.{name}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name, cls=Command)(module.command)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        print(lushan.__version__)
        raise typer.Exit


def _program(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Hold the options that stand before a command."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line and give its exit code.

    Raises:
        Exception: Whatever is our bug; Python prints its traceback and exits with 1.
    """
    as_json = "--json" in arguments
    try:
        app = build_app(_wanted_commands(arguments))
        result = app(list(arguments) or ["--help"], prog_name="lushan", standalone_mode=False)
    except (UserError, TyperException) as error:
        return _refuse(_message_of(error, arguments), as_json=as_json)
    except typer.Abort:
        return _refuse("Stopped: the question was not answered with yes.", as_json=as_json)
    except KeyboardInterrupt:
        result = INTERRUPTED
    except Exception as error:
        if isinstance(error, OSError) and error.errno in OUTSIDE_CAUSES:
            where = f": `{error.filename}`" if error.filename else ""
            return _refuse(f"{error.strerror}{where}.", as_json=as_json)
        if as_json:
            emit_json({"error": f"{type(error).__name__}: {error}"})
        raise
    if result == INTERRUPTED:  # typer turns Ctrl-C inside a command into this result
        tell("Interrupted.")
    return result if type(result) is int else 0


def _wanted_commands(arguments: Sequence[str]) -> list[str]:
    """Give the one command that the line names, or all when it names none.

    Raises:
        SettingError: If there is no such command; lists those there are.
    """
    known = command_names()
    first = arguments[0] if arguments else "--help"
    if first.startswith("-"):
        return known
    if first not in known:
        raise SettingError(f"Unknown command `{first}`. Known: {', '.join(known)}.")
    return [first]


def _message_of(error: UserError | TyperException, arguments: Sequence[str]) -> str:
    if isinstance(error, TyperException):
        context = getattr(error, "ctx", None)
        words = ["lushan", *(word for word in arguments[:1] if not word.startswith("-"))]
        command = context.command_path if context else " ".join(words)
        message = error.format_message().strip().rstrip(".")
        end = "" if message.endswith("?") else "."
        return f"{message}{end}{_given(error)} `{command} --help` shows what there is."
    return str(error)


def _given(error: TyperException) -> str:
    """Tell the value that could not be read; typer leaves it out."""
    cause = error.__cause__
    if cause is None:
        return ""
    from pydantic import ValidationError  # slow to import, and then there already

    return f" Got {cause.errors()[0]['input']!r}." if isinstance(cause, ValidationError) else ""


def _refuse(message: str, *, as_json: bool) -> int:
    show_error(message)
    if as_json:
        with contextlib.suppress(OSError):  # stdout itself may be what is full
            emit_json({"error": message})
    return USER_MISTAKE


def main() -> None:
    """Run the command line of this process and leave with its exit code."""
    if "OMP_WAIT_POLICY" not in os.environ:  # else the user has chosen
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # JSON is UTF-8 whatever the terminal reads; what UTF-8 cannot say becomes an escape of JSON.
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))
