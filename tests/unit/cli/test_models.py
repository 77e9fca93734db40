"""`lushan models`: every command with `--json`, clear refusals, terms that are shown and asked."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lushan.backbones.sources import CATALOG, DEFAULT_MODEL, models_folder
from lushan.cli.main import run
from tests.conftest import MakeTiny


def answer_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def put(tiny: Path, name: str) -> None:
    """Put a tiny model where another belongs, so that nothing needs fetching."""
    folder = models_folder() / name
    folder.mkdir(parents=True)
    for file in tiny.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "lushan.json").write_text(json.dumps({"name": name}), encoding="utf-8")


def test_list_as_json_names_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "list", "--json"]) == 0
    models = answer_of(capsys)["models"]
    told = [(each["name"], each["languages"]) for each in models]
    assert told == [(name, model.languages) for name, model in CATALOG.items()]


def test_list_for_people_marks_the_default_and_tells_languages(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["models", "list"]) == 0
    output = capsys.readouterr()
    assert output.out == ""
    assert "(default)" in output.err
    assert "Languages:" in output.err
    assert "English." in output.err


def test_get_without_a_name_gets_the_default_and_says_so(
    tiny_folder: MakeTiny, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tiny_folder("llama"), DEFAULT_MODEL)
    assert run(["models", "get", "--json"]) == 0
    output = capsys.readouterr()
    assert f"getting the default model, {DEFAULT_MODEL}" in output.err
    assert json.loads(output.out)["name"] == DEFAULT_MODEL


def test_get_show_and_remove_an_own_folder(
    tiny_folder: MakeTiny, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(tiny_folder("llama"))
    assert run(["models", "get", "mine", "--source", source, "--json"]) == 0
    path = Path(answer_of(capsys)["path"])
    assert path == models_folder() / "mine"
    assert run(["models", "show", "mine", "--json"]) == 0
    assert answer_of(capsys)["path"] == str(path)
    assert run(["models", "remove", "mine", "--json"]) == 0
    assert answer_of(capsys) == {"removed": str(path)}
    assert not path.exists()


def test_show_for_people_writes_to_stderr(
    tiny_folder: MakeTiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", "show", str(tiny_folder("bert"))]) == 0
    output = capsys.readouterr()
    assert output.out == ""
    assert "encoder" in output.err


def test_terms_of_a_model_that_is_here_are_not_asked_again(
    tiny_folder: MakeTiny, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tiny_folder("llama"), "gemma-3-270m")
    assert run(["models", "get", "Gemma-3-270M", "--json"]) == 0
    assert answer_of(capsys)["name"] == "gemma-3-270m"


@pytest.mark.parametrize("name", ["gemma-3-270m", "GEMMA-3-270m"])
def test_terms_are_shown_and_refused_without_a_terminal(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert run(["models", "get", name, "--json"]) == 2
    output = capsys.readouterr()
    assert "Prohibited Use Policy" in output.err
    assert "Add `--accept-terms`" in json.loads(output.out)["error"]
    assert not models_folder().exists()


def test_terms_can_be_declined_at_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO("n\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    assert run(["models", "get", "gemma-3-270m"]) == 2
    assert "Do you accept these terms for gemma-3-270m?" in capsys.readouterr().err
    assert not models_folder().exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["get", "gpt-9"], "Unknown model `gpt-9`"),
        (["get", "mine", "--source", "/no/where"], "expected `package`, `hub`, or a path"),
        (["show", "gpt-9"], "Unknown model `gpt-9`"),
        (["show", DEFAULT_MODEL], f"lushan models get {DEFAULT_MODEL}"),
        (["remove", DEFAULT_MODEL], "nothing was removed. It holds: nothing"),
    ],
    ids=str,
)
def test_mistakes_are_told_as_json_with_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", *arguments, "--json"]) == 2
    assert message in answer_of(capsys)["error"]
