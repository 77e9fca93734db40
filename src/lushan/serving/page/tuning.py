"""Tuning from the page: which task a table is for, and the one run that goes on at a time, in a process of its own."""

import atexit
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from lushan.catalog import load_task, names_in
from lushan.data.columns import Columns, Notes
from lushan.data.formats import read_records
from lushan.errors import DataError, RunError

State = Literal["idle", "running", "finished", "failed", "cancelled"]

NUM_ROWS_FOR_NAMES = 100
MOST_LOG_LINES = 12
GRACE_SECONDS = 10.0
"""How long a cancelled run may take to leave its folder whole."""


def columns_of(table: Path) -> list[str]:
    """List the columns of a table.

    Raises:
        DataError: If it cannot be read, or has no rows.
    """
    head = list(islice(read_records(table, Notes(table.name)), NUM_ROWS_FOR_NAMES))
    if not head:
        raise DataError(f"{table.name} has no rows.")
    return list(dict.fromkeys(name for record in head for name in record.values))


def guess_task(columns: Sequence[str]) -> str | None:
    """Give the task that most of a table's columns are known to; None if no task finds what it needs.

    A column of the task's own name counts more than one that is often used for it.
    """
    scores = {name: _fit(load_task(name).columns, columns) for name in names_in("lushan.tasks")}
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] > (0, 0) else None


def _fit(wanted: Columns, columns: Sequence[str]) -> tuple[int, int]:
    """Give how many columns of a task are there, by any name and by their own; nothing if a required one is missing."""
    found = {each.strip().casefold() for each in columns}
    best = (0, 0)
    for form in wanted.forms:
        there = [name for name in form.names if found & {name, *form.guesses.get(name, ())}]
        if set(form.required) <= set(there):
            best = max(best, (len(there), sum(name in found for name in there)))
    return best


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be tuned."""

    data: Path
    task: str
    model: str
    effort: str
    out: Path
    """The run folder, which does not exist yet."""

    def command(self) -> list[str]:
        """Give the command line, with which anybody can repeat the run."""
        options = ("--task", self.task, "--model", self.model, "--effort", self.effort)
        return [
            *(sys.executable, "-P", "-m", "lushan", "tune", str(self.data)),
            *(*options, "--out", str(self.out)),
        ]


class Tuner:
    """Starts a run, follows it, stops it. One at a time: two would only slow each other down."""

    def __init__(self) -> None:
        self.plan: Plan | None = None
        """The latest."""
        self._process: subprocess.Popen[bytes] | None = None
        self._is_cancelled = False
        self._starting = threading.Lock()
        atexit.register(self.cancel)

    @property
    def state(self) -> State:
        """Where the latest run stands."""
        if self._process is None:
            return "idle"
        code = self._process.poll()
        if code is None:
            return "running"
        if self._is_cancelled:
            return "cancelled"
        return "finished" if code == 0 else "failed"

    def start(self, plan: Plan) -> None:
        """Begin a run.

        Raises:
            RunError: If one is going.
        """
        with self._starting:
            if self.state == "running" and self.plan is not None:
                raise RunError(
                    f"`{self.plan.out.name}` is being tuned. Wait until it is done, or cancel it."
                )
            self._process = _started(plan)
            self.plan, self._is_cancelled = plan, False

    def cancel(self) -> None:
        """Stop the run and the processes that it started; nothing happens if none is going."""
        if self._process is None or self.state != "running":
            return
        self._is_cancelled = True
        os.killpg(self._process.pid, signal.SIGINT)
        try:
            self._process.wait(timeout=GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def last_lines(self) -> list[str]:
        """Give the end of what the run has said so far."""
        if self.plan is None or not _log_of(self.plan).is_file():
            return []
        lines = _log_of(self.plan).read_text(encoding="utf-8", errors="replace").splitlines()
        return [line for line in lines if line.strip()][-MOST_LOG_LINES:]


def _started(plan: Plan) -> subprocess.Popen[bytes]:
    plan.out.parent.mkdir(parents=True, exist_ok=True)
    with _log_of(plan).open("wb") as log:
        return subprocess.Popen(  # noqa: S603 - no shell, and every word is ours or checked
            plan.command(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "100"},
        )


def _log_of(plan: Plan) -> Path:
    """The log stands beside the run folder, which must be empty when a run begins."""
    return plan.out.with_name(f"{plan.out.name}.log")
