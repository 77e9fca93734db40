"""The command line as a whole: exit codes, messages, what `--json` promises, how fast help is."""

import json
import os
import resource
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from lushan.cli import main
from lushan.cli.console import JsonOption
from lushan.errors import DataError


@pytest.fixture
def add_command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., object]], None]:
    """Give a function that adds one command, named `try`."""

    def add(command: Callable[..., object]) -> None:
        module = types.ModuleType("lushan.cli.try")
        vars(module)["command"] = command
        monkeypatch.setitem(sys.modules, "lushan.cli.try", module)
        monkeypatch.setattr(main, "command_names", lambda: ["try"])

    return add


def test_user_error_exits_2_with_its_message_on_stderr_and_no_traceback(
    add_command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise DataError("reviews.csv, row 3: [empty] `text`.")

    add_command(command)
    assert main.run(["try"]) == 2
    output = capsys.readouterr()
    assert output.err == "Error: reviews.csv, row 3: [empty] `text`.\n"
    assert output.out == ""


def test_user_error_with_json_is_an_object_on_stdout(
    add_command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*, as_json: JsonOption = False) -> None:
        del as_json
        raise DataError("reviews.csv, row 3: no `text`.")

    add_command(command)
    assert main.run(["try", "--json"]) == 2
    assert json.loads(capsys.readouterr().out) == {"error": "reviews.csv, row 3: no `text`."}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["try"], "Missing argument 'data'"),
        (["try", "a", "--unknown"], "No such option: --unknown"),
        (["try", "a", "--epochs", "many"], "Invalid value for '--epochs'"),
        (["try", "a", "--epochs", "many"], " Got 'many'. `lushan try --help` shows"),
        (["try", "a", "--epochs", "--json"], "'--epochs' requires an argument"),
        (["try", "a", "b"], "unexpected extra argument"),
        (["tyr"], "Unknown command `tyr`. Known: try."),
        (["--unknown"], "No such option: --unknown"),
    ],
)
def test_wrong_usage_exits_2_with_one_line_also_as_json(
    arguments: list[str],
    message: str,
    add_command: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def command(data: str, *, epochs: int = 3, as_json: JsonOption = False) -> None:
        del data, epochs, as_json

    add_command(command)
    assert main.run([*arguments, "--json"]) == 2
    output = capsys.readouterr()
    assert message in json.loads(output.out)["error"]
    assert output.err.count("\n") == 1


def test_our_bug_with_json_is_told_on_stdout_and_raised(
    add_command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*, as_json: JsonOption = False) -> None:
        del as_json
        raise RuntimeError("a bug")

    add_command(command)
    with pytest.raises(RuntimeError, match="a bug"):
        main.run(["try", "--json"])
    assert json.loads(capsys.readouterr().out) == {"error": "RuntimeError: a bug"}


def test_ctrl_c_exits_130(add_command: Callable[..., None]) -> None:
    def command() -> None:
        raise KeyboardInterrupt

    add_command(command)
    assert main.run(["try"]) == 130


def test_full_disk_exits_2_and_names_the_file(
    add_command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise OSError(28, "No space left on device", "/runs/a/results.json")

    add_command(command)
    assert main.run(["try"]) == 2
    assert "No space left on device: `/runs/a/results.json`." in capsys.readouterr().err


def test_declined_question_exits_2(add_command: Callable[..., None]) -> None:
    def command() -> None:
        raise typer.Abort

    add_command(command)
    assert main.run(["try"]) == 2


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == "0.1.0"


def test_every_command_file_has_a_command_and_answers_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    codes = {name: main.run([name, "--help"]) for name in main.command_names()}
    assert set(codes.values()) <= {0}
    capsys.readouterr()
    assert main.run(["--help"]) == 0
    program_help = capsys.readouterr().out
    assert [name for name in codes if f" {name} " not in program_help] == []


def test_json_is_utf_8_whatever_the_terminal_reads_and_the_name_holds() -> None:
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for name in ("海", "🎬", "\udcff"):
        command = [sys.executable, "-m", "lushan", name, "--json"]
        ran = subprocess.run(command, capture_output=True, env=ascii_only)
        assert ran.returncode == 2
        assert f"Unknown command `{name}`" in json.loads(ran.stdout.decode("utf-8"))["error"]


def test_full_disk_below_stdout_exits_2_with_one_line() -> None:
    command = [sys.executable, "-m", "lushan", "models", "list", "--json"]
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (ran.returncode, ran.stderr) == (2, "Error: No space left on device.\n")


def test_help_costs_less_than_half_a_second() -> None:
    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "lushan", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Processor time: the wall time of a test run depends on what else the machine does.
    assert min(once() for _ in range(3)) < 0.5


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "5"}, "5"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None),
    ],
    ids=["nothing", "a count", "a policy"],
)
def test_threads_stop_looking_early_unless_the_user_has_chosen(
    given: dict[str, str], found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is taken away again afterwards
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["lushan", "--version"])
    with pytest.raises(SystemExit):
        main.main()
    assert os.environ.get("GOMP_SPINCOUNT") == found
