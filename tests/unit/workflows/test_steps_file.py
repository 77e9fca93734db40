"""`steps.jsonl` over kills and resumes."""

import json
from pathlib import Path

import pytest

from lushan.errors import FullDiskError
from lushan.training.loop import StepDone
from lushan.workflows.steps_file import StepsFile


def take_steps(path: Path, numbers: range, *, first_step: int) -> None:
    file = StepsFile(path, first_step=first_step)
    for step in numbers:
        file.on_step(StepDone(step, 9, 0.5, 1e-4, gradient_norm=1.0, tokens=20, seconds=0.1))
    file.close()


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_step_is_one_line_with_its_numbers(tmp_path: Path) -> None:
    take_steps(tmp_path / "steps.jsonl", range(1, 3), first_step=1)
    line = json.loads((tmp_path / "steps.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert {name: line[name] for name in ("step", "loss", "learning_rate", "tokens")} == {
        "step": 1,
        "loss": 0.5,
        "learning_rate": 1e-4,
        "tokens": 20,
    }
    assert line["seconds"] == 0.1


def test_resumed_run_drops_the_steps_that_are_taken_again(tmp_path: Path) -> None:
    take_steps(tmp_path / "steps.jsonl", range(1, 6), first_step=1)
    take_steps(tmp_path / "steps.jsonl", range(4, 7), first_step=4)
    assert steps_in(tmp_path / "steps.jsonl") == [1, 2, 3, 4, 5, 6]


def test_line_that_a_kill_cut_off_is_dropped(tmp_path: Path) -> None:
    take_steps(tmp_path / "steps.jsonl", range(1, 3), first_step=1)
    with (tmp_path / "steps.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"step": 3, "lo')
    take_steps(tmp_path / "steps.jsonl", range(3, 5), first_step=3)
    assert steps_in(tmp_path / "steps.jsonl") == [1, 2, 3, 4]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk_is_named_with_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lushan.workflows.steps_file.write_parts", lambda *_: None)
    (tmp_path / "steps.jsonl").symlink_to("/dev/full")
    file = StepsFile(tmp_path / "steps.jsonl", first_step=1)
    told = rf"^`steps\.jsonl` cannot be written to `{tmp_path}`: .* then go on with `--resume`"
    done = StepDone(1, 9, 0.5, 1e-4, gradient_norm=1.0, tokens=20, seconds=0.1)
    with pytest.raises(FullDiskError, match=told):
        file.on_step(done)
    with pytest.raises(FullDiskError, match=told):
        file.close()
