"""`lushan chat` as a command: by a script, and by a person."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lushan.backbones import packed
from lushan.backbones.hardware import Choice
from lushan.cli.main import run
from lushan.workflows.chat import Conversation
from tests.conftest import MakeTiny

BRIEF = ("--set", "generation.max_new_tokens=6")


@pytest.fixture(autouse=True)
def _measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "choose_precision", lambda *_, **__: Choice("fp32", "a test"))


def pipe(patch: pytest.MonkeyPatch, *lines: str) -> None:
    """Have a script say this."""
    pipe_bytes(patch, "".join(f"{line}\n" for line in lines).encode())


def pipe_bytes(patch: pytest.MonkeyPatch, content: bytes) -> None:
    patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def type_lines(patch: pytest.MonkeyPatch, *lines: str | type[BaseException]) -> None:
    """Have a person type this; an error is what a key raises."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    patch.setattr(sys, "stdin", terminal)
    typed = iter([*lines, EOFError])

    def answer(prompt: str) -> str:
        sys.stdout.write(prompt)  # as Python does where that is no terminal
        line = next(typed)
        if isinstance(line, str):
            return line
        raise line

    patch.setattr("builtins.input", answer)


def test_each_line_of_a_script_is_a_turn_with_one_json_object(
    tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, "Hi", "", "Why?", "/reset", "Why?", "/quit", "never read")
    assert run(["chat", str(tiny_folder("llama")), *BRIEF, "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(told) == 3
    assert told[1]["num_prompt_tokens"] > told[0]["num_prompt_tokens"]
    assert told[2]["num_prompt_tokens"] < told[1]["num_prompt_tokens"]


def test_replies_are_on_stdout_and_all_else_on_stderr(
    tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, "Hi")
    assert run(["chat", str(tiny_folder("llama")), *BRIEF, "--json"]) == 0
    reply = json.loads(capsys.readouterr().out)["reply"]
    pipe(monkeypatch, "Hi")
    assert run(["chat", str(tiny_folder("llama")), *BRIEF]) == 0
    output = capsys.readouterr()
    assert output.out.strip() == reply
    assert "has no chat template" in output.err


def test_classifier_answers_each_line(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, "The boat sailed.", "/etc is a folder")
    assert run(["chat", str(tiny_run), "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [set(each["probabilities"]) for each in told] == [{"hill", "sea"}] * 2


def test_mistake_in_a_script_ends_it(
    tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, "Hi<eos>", "Hi")
    assert run(["chat", str(tiny_folder("llama")), *BRIEF]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "a message holds `<eos>`" in output.err


def test_script_begins_with_the_mark_of_utf8_or_is_refused_by_its_line(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe_bytes(monkeypatch, b'\xef\xbb\xbf{"text": "The boat."}\n\xb4\xac\n')
    assert run(["chat", str(tiny_run), "--json"]) == 2
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 2  # an answer and the error
    assert "Line 2 of stdin: not UTF-8: byte 0xb4 at byte 1." in output.err


def test_mistake_of_a_person_is_told_and_the_talk_goes_on(
    tiny_folder: MakeTiny,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    file = tmp_path / "talk.jsonl"
    lines = ["/help", "Hi<eos>", "/save", KeyboardInterrupt, "/system Be kind.", "Hi"]
    type_lines(monkeypatch, *lines, f"/save {file}")
    assert run(["chat", str(tiny_folder("llama")), *BRIEF]) == 0
    told = capsys.readouterr().err
    for part in ("Unknown command `/help`", "holds `<eos>`", "`/save` needs", "Ctrl-D ends"):
        assert part in told
    roles = [each["role"] for each in json.loads(file.read_text(encoding="utf-8"))["messages"]]
    assert roles == ["system", "user", "assistant"]


def test_nothing_but_replies_is_on_stdout_while_a_person_types(
    tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_lines(monkeypatch, "Hi", KeyboardInterrupt, "Why?")
    assert run(["chat", str(tiny_folder("llama")), *BRIEF, "--json"]) == 0
    output = capsys.readouterr()
    assert output.err.count("> ") == 4
    told = [json.loads(line)["reply"] for line in output.out.removesuffix("\n").split("\n")]
    type_lines(monkeypatch, "Hi")
    assert run(["chat", str(tiny_folder("llama")), *BRIEF]) == 0
    assert len(told) == 2
    assert capsys.readouterr().out.strip() == told[0]


def test_talk_goes_on_where_it_cannot_be_saved_and_is_saved_at_home(
    tiny_folder: MakeTiny,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    taken = tmp_path / "taken"
    taken.touch()
    type_lines(monkeypatch, "Hi", f"/save {taken}/talk.jsonl", "Why?", "/save ~/talk.jsonl")
    assert run(["chat", str(tiny_folder("llama")), *BRIEF]) == 0
    told = capsys.readouterr().err
    assert "talk.jsonl` cannot be written: " in told
    assert f"Wrote 1 row(s) into {tmp_path / 'talk.jsonl'}." in told
    (row,) = (tmp_path / "talk.jsonl").read_text(encoding="utf-8").splitlines()
    assert [each["content"] for each in json.loads(row)["messages"]][::2] == ["Hi", "Why?"]


def test_ctrl_c_stops_the_reply_and_not_the_program(
    tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = Conversation.ask

    def interrupted(self: Conversation, line: str) -> Iterator[str]:
        reply = ask(self, line)
        try:
            yield next(reply)
            if line == "Hi":
                raise KeyboardInterrupt
            yield from reply
        finally:
            reply.close()

    monkeypatch.setattr(Conversation, "ask", interrupted)
    type_lines(monkeypatch, "Hi", "Why?")
    assert run(["chat", str(tiny_folder("llama")), *BRIEF, "--json"]) == 0
    output = capsys.readouterr()
    told = [json.loads(line) for line in output.out.splitlines() if line.startswith("{")]
    assert [each["ended"] for each in told] == ["interrupted", "length"]
    assert "[stopped]" in output.err


def test_encoder_is_refused(tiny_folder: MakeTiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["chat", str(tiny_folder("bert"))]) == 2
    assert "cannot chat" in capsys.readouterr().err
