"""Checkpoints: whole or absent, and what they bring back."""

import math
from pathlib import Path

import pytest
import torch

from lushan.errors import RunError
from lushan.training import checkpoint
from lushan.training.checkpoint import Checkpoints, Progress

TENSORS = {"weight/a": torch.arange(6.0).reshape(2, 3), "exp_avg/a": torch.full((2, 3), 0.5)}


def progress_at(step: int) -> Progress:
    return Progress(
        source={"epoch": 1, "step_in_epoch": step},
        validation=[{"epoch": 1, "step": step, "score": 0.5, "loss": 0.25}],
        best_step=step,
        num_stale=2,
        num_tokens=100,
        seconds=1.5,
    )


def test_nothing_saved_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.load_last() is None
    assert checkpoints.last_step() == 0


def test_best_evaluation_is_that_of_its_step_and_worse_than_any_before_the_first() -> None:
    points = [
        {"epoch": n, "step": 3 * n, "score": 0.5, "loss": loss}
        for n, loss in ((1, 0.9), (2, 0.4), (3, 0.6))
    ]
    assert Progress(validation=points, best_step=6).best == points[1]
    assert Progress().best == {"score": -math.inf, "loss": math.inf}


def test_no_checkpoint_costs_more_than_its_share_nor_does_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock[0])
    checkpoints = Checkpoints(tmp_path)
    dues: list[bool] = []
    for num_bytes, seconds in (
        (1, 9.0),
        (1, 11.0),
        (10**10, 11.0),
        (10**10, 390.0),
        (10**10, 410.0),
    ):
        checkpoints.expect(num_bytes)
        clock[0] = seconds
        dues.append(checkpoints.is_due)
    assert dues == [False, True, False, False, True]
    checkpoints.save(1, TENSORS, progress_at(1))  # takes no time by this clock
    assert not checkpoints.is_due
    clock[0] += 11
    assert checkpoints.is_due


def test_last_checkpoint_is_read_back_by_another_process_bit_for_bit(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(3, {**TENSORS}, progress_at(3))
    found = Checkpoints(tmp_path).load_last()
    assert found is not None
    assert found[1] == progress_at(3)
    assert [each.name for each in tmp_path.iterdir()] == ["step-00000003"]
    assert {name: tensor.tolist() for name, tensor in found[0].items()} == {
        name: tensor.tolist() for name, tensor in TENSORS.items()
    }


def test_older_checkpoints_are_removed_and_the_best_weights_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_best(2, {"a": torch.zeros(1)})
    checkpoints.save(3, {}, progress_at(2))
    checkpoints.save_best(4, {"a": torch.ones(1)})
    checkpoints.save(5, {}, progress_at(4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-00000004", "step-00000005"]
    assert checkpoints.load_best(4)["a"].item() == 1.0


def test_new_best_weights_leave_the_older_until_a_checkpoint_knows_them(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_best(2, {"a": torch.zeros(1)})
    checkpoints.save(3, {}, progress_at(2))
    checkpoints.save_best(4, {"a": torch.ones(1)})
    found = Checkpoints(tmp_path).load_last()
    assert found is not None
    assert checkpoints.load_best(found[1].best_step)["a"].item() == 0.0


def test_checkpoint_that_a_kill_left_half_written_is_ignored(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, {**TENSORS}, progress_at(3))
    (tmp_path / ".step-00000004").mkdir()
    (tmp_path / ".step-00000004" / "tensors.safetensors").write_bytes(b"half")
    assert Checkpoints(tmp_path).last_step() == 3
    checkpoints.save(5, {**TENSORS}, progress_at(5))
    assert Checkpoints(tmp_path).last_step() == 5
    assert [each.name for each in tmp_path.iterdir()] == ["step-00000005"]


def test_full_disk_leaves_the_older_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, {**TENSORS}, progress_at(3))

    def fail(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lushan.atomic._flush", fail)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(4, {**TENSORS}, progress_at(4))
    found = Checkpoints(tmp_path).load_last()
    assert found is not None
    assert found[1] == progress_at(3)


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
def test_broken_checkpoint_is_refused_by_name(file: str, tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(3, {**TENSORS}, progress_at(3))
    (tmp_path / "step-00000003" / file).write_bytes(b"\x00\x01")
    with pytest.raises(RunError, match=r"step-00000003` is broken: .*`--overwrite`"):
        Checkpoints(tmp_path).load_last()


@pytest.mark.parametrize("text", [None, b"\x00\x01"])
def test_best_weights_that_cannot_be_read_are_refused_by_name(
    text: bytes | None, tmp_path: Path
) -> None:
    if text is not None:
        Checkpoints(tmp_path).save_best(3, {**TENSORS})
        (tmp_path / "best-00000003" / "tensors.safetensors").write_bytes(text)
    with pytest.raises(RunError, match=r"best-00000003` is broken: .*`--overwrite`"):
        Checkpoints(tmp_path).load_best(3)


def test_finished_run_leaves_no_checkpoints(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(3, {**TENSORS}, progress_at(3))
    checkpoints.remove()
    assert not (tmp_path / "checkpoints").exists()
