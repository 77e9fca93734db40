"""A run that is killed at any moment goes on to the same weights, bit for bit (`kill -9`, other processes)."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.bad_inputs import good_rows, write_lines
from tests.conftest import MakeTiny
from tests.runs import read, read_steps

ROOT = Path(__file__).parents[2]
NUM_EPOCHS, NUM_STEPS_PER_EPOCH = 3, 9
NURSERY = """
import json, os, signal, sys, traceback
import peft, sklearn.linear_model
import lushan.training.loop, lushan.workflows.tune
from lushan import atomic
from lushan.cli.main import run
from lushan.model_store import certificate
from lushan.training import checkpoint
from lushan.workflows import steps_file, tune
from tests.runs import answers_of_this_process

checkpoint.LEAST_INTERVAL_SECONDS, checkpoint.SPENT_FRACTION = 0.0, 1e9  # after every step
certificate._answers_of_fresh_process = answers_of_this_process  # one process less to start


def arm(what, number):
    owner, name = {
        "step": (steps_file.StepsFile, "on_step"),
        "flush": (atomic, "_flush"),
        "evaluation": (tune, "validated"),
    }[what]
    original = getattr(owner, name)
    calls = []

    def deadly(*given, **named):
        found = original(*given, **named)
        calls.append(name)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(owner, name, deadly)


for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if not child:
        log = os.open(order["log"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 1
        try:
            if order["moment"]:
                arm(*order["moment"])
            code = run(order["arguments"])
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Imports once what a run needs, then makes a process for every run; says with which code it ended."""

Moment = tuple[str, int]
"""What a process does for the last time before it is killed, and the how many-th time that is."""


def draw_moments(seed: int) -> list[Moment]:
    """One in the middle of an epoch, one while a checkpoint is written, one after an evaluation."""
    generator = random.Random(seed)
    epoch = generator.randrange(NUM_EPOCHS)
    step = epoch * NUM_STEPS_PER_EPOCH + generator.randrange(2, NUM_STEPS_PER_EPOCH)
    # Two files and two folders are flushed for each of 27 checkpoints, and more for the best weights.
    return [
        ("step", step),
        ("flush", generator.randrange(4, 80)),
        ("evaluation", generator.randrange(1, NUM_EPOCHS + 1)),
    ]


@dataclass
class Nursery:
    """Runs in processes of their own."""

    process: "subprocess.Popen[str]"
    data: Path
    folder: Path
    options: tuple[str, ...]

    def tune(self, name: str, *options: str, moment: Moment | None = None) -> int:
        """Run until it ends or is killed; gives its exit code."""
        out = self.folder / name
        arguments = ["tune", str(self.data), "--out", str(out), *(options or self.options)]
        log = self.folder / f"{name}.log"
        order = {"arguments": arguments, "log": str(log), "moment": moment}
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def kill_at(self, name: str, moment: Moment, *options: str) -> None:
        """Run until the moment has come."""
        ended = self.tune(name, *options, moment=moment)
        assert ended == -signal.SIGKILL, self.log(name)

    def finish(self, name: str, *options: str) -> None:
        """Run to the end."""
        assert self.tune(name, *options) == 0, self.log(name)

    def log(self, name: str) -> str:
        """Give what the run printed."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def nursery(tiny_folder: MakeTiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    folder = tmp_path_factory.mktemp("nursery")
    options = ("--model", str(tiny_folder("llama")), "--epochs", str(NUM_EPOCHS), "--no-baselines")
    settings = ("model.precision=fp32", "training.rows_per_step=4", "training.learning_rate=0.01")
    environment = {
        **os.environ,
        "LUSHAN_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(":"),
    }
    with subprocess.Popen(
        [sys.executable, "-c", NURSERY],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Nursery(
            process,
            write_lines(folder / "data.jsonl", good_rows()),
            folder,
            (*options, *(f"--set={each}" for each in settings)),
        )
        assert process.stdin
        process.stdin.close()


# Dropout uses random numbers in every step; the last weights depend on all of them.
DROPOUT = ("--set=model.head_dropout=0.3", "--set=training.keep=last")
LORA = ("--adapter=lora", "--set=adapter.dropout=0.2", "--set=training.keep=last")


@pytest.fixture(scope="module")
def whole(nursery: Nursery) -> Path:
    """Give a run that nobody disturbed."""
    nursery.finish("whole", *nursery.options, *DROPOUT)
    return nursery.folder / "whole"


def results_but_times(run: Path) -> dict[str, Any]:
    results = read(run / "results.json")
    for changing in ("run", "seconds", "train_tokens_per_second", "peak_rss_bytes"):
        del results[changing]
    return results


def assert_same_run(one: Path, other: Path, *, weights: str = "model.safetensors") -> None:
    assert (one / "model" / weights).read_bytes() == (other / "model" / weights).read_bytes()
    assert read_steps(one) == read_steps(other)
    assert results_but_times(one) == results_but_times(other)
    assert read(one / "certificate.json") == read(other / "certificate.json")
    after = Path("predictions", "after.jsonl")
    assert (one / after).read_bytes() == (other / after).read_bytes()


def newest_checkpoint(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("moment", draw_moments(seed=6), ids=lambda each: f"{each[0]} {each[1]}")
def test_killed_run_goes_on_to_the_same_weights_bit_for_bit(
    moment: Moment, whole: Path, nursery: Nursery
) -> None:
    name = f"killed-at-{moment[0]}"
    run = nursery.folder / name
    nursery.kill_at(name, moment, *nursery.options, *DROPOUT)
    assert not (run / "model").exists()
    checkpointed = int(newest_checkpoint(run).name.removeprefix("step-"))
    lines = (run / "steps.jsonl").read_text(encoding="utf-8").splitlines()[:checkpointed]
    assert checkpointed
    nursery.finish(name, "--resume")
    # The steps before the checkpoint were not taken again: their seconds are still the same.
    assert (run / "steps.jsonl").read_text(encoding="utf-8").splitlines()[:checkpointed] == lines
    assert not (run / "checkpoints").exists()
    assert_same_run(whole, run)


def test_first_moment_is_in_the_middle_of_an_epoch() -> None:
    for seed in range(20):
        step = draw_moments(seed)[0][1]
        assert 1 < step % NUM_STEPS_PER_EPOCH < NUM_STEPS_PER_EPOCH


def test_adapter_killed_again_and_again_ends_with_the_same_weights(nursery: Nursery) -> None:
    options = (*nursery.options, *LORA)
    nursery.finish("whole-adapter", *options)
    nursery.kill_at("adapter", ("step", 4), *options)
    for _ in range(2):
        nursery.kill_at("adapter", ("step", 8), "--resume")
    nursery.finish("adapter", "--resume")
    folder = nursery.folder
    assert_same_run(
        folder / "whole-adapter", folder / "adapter", weights="adapter_model.safetensors"
    )


def test_run_killed_before_its_first_checkpoint_starts_over(whole: Path, nursery: Nursery) -> None:
    nursery.kill_at("early", ("flush", 1), *nursery.options, *DROPOUT)
    assert read_steps(nursery.folder / "early") == read_steps(whole)[:1]
    nursery.finish("early", "--resume")
    assert_same_run(whole, nursery.folder / "early")


def test_broken_newest_checkpoint_is_refused_by_name(nursery: Nursery) -> None:
    nursery.kill_at("broken", ("step", 5), *nursery.options)
    tensors = newest_checkpoint(nursery.folder / "broken") / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:1000])
    assert nursery.tune("broken", "--resume") == 2
    log = nursery.log("broken")
    assert "step-00000004` is broken: " in log
    assert "Remove it, or start again with `--overwrite`." in log
    assert "Traceback" not in log
