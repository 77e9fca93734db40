"""Run untrusted Python programs with limits, and tell how each ended.

Every program gets a fresh interpreter without site-packages and without our environment variables, in a session of its own,
in an empty folder that is its HOME and TMPDIR and is removed afterwards.

What holds on Linux (x86_64, aarch64): no network and no socket; no other process; no signal to, and no look into, any process
but itself; the limits of `Limits`; with Landlock (Linux 5.13) no writing outside of the folder and no reading outside of it,
Python and the system's folders (modes, owners and times of files are not covered). Threads are counted in a new user
namespace and not for root, whom memory alone bounds. What a system cannot do stands in `Verdict.unenforced`. On macOS an audit hook stands in for
the first three, which keeps out accidents only.

What does not hold: this is a seat belt for what a model writes, not a jail for who attacks. The kernel is shared; many files
can fill a disk until the time is up; the program runs in one process with its tests, so that one which hunts for the secret of
its end, or spoils what tests compare, can pass. Who must fear attacks runs all of Lushan in a virtual machine.
"""

import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from lushan.errors import SettingError, UserError
from lushan.sandbox.launcher import OUT_OF_MEMORY_EXIT_CODE, SECRET_BYTES

Outcome = Literal["passed", "failed", "timed_out", "out_of_memory", "killed"]
Unenforced = Literal["network", "processes", "files", "memory", "threads"]

_PACKAGES = Path(__file__).parents[2]
_LAUNCH = (
    "import sys; sys.path.insert(0, sys.argv[1]); from lushan.sandbox.launcher import main; "
    "del sys.path[0]; main()"
)
_AT_ONCE_BYTES = 65_536
_MAX_REPORT_BYTES = 2 * _AT_ONCE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one program may use.

    Raises:
        SettingError: If a limit is not positive.
    """

    cpu_seconds: int = 5
    """Of all threads together."""
    wall_seconds: float = 10.0
    """From start to end, the interpreter's start (some hundredths of a second) included."""
    memory_bytes: int = 1 << 30
    """Of address space, of which Python itself takes some 20 MB; a thread reserves 8 MB."""
    file_bytes: int = 16 << 20
    """Of each file."""
    num_threads: int = 32
    output_bytes: int = 16_384
    """Of standard output and error together: the last ones are kept; more may be written."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not value > 0:
                raise SettingError(
                    f"Limit `{each.name}` of a program must be above 0. Got {value!r}."
                )


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a program ended."""

    outcome: Outcome
    """`passed` means that it ran to the end of its last line, and nothing else does."""
    detail: str
    """Why it did not pass, in one line: the exception, signal, limit or exit code; empty for `passed`."""
    seconds: float
    """From start to end, wall clock."""
    output: str
    """The last of what it wrote to standard output and error."""
    unenforced: tuple[Unenforced, ...]
    """Which protections this system could not give."""

    @property
    def passed(self) -> bool:
        """Whether the program ran to its end."""
        return self.outcome == "passed"


def run_programs(
    programs: Sequence[str], limits: Limits | None = None, *, num_workers: int
) -> list[Verdict]:
    """Run programs, some at a time, and give a verdict on each, in their order.

    Args:
        programs: Python sources; tests stand at the end of each and raise where something is wrong.
        limits: Of each program; None for the default ones.
        num_workers: How many run at once: no more than there are cores, or right ones run out of time.

    Raises:
        UserError: On Windows, which has none of these limits; where the limits are too low for Python itself.
        SettingError: If `num_workers` is below 1.
    """
    if os.name != "posix":
        raise UserError(
            "Running untrusted programs needs Linux or macOS: Windows has no limits for them. "
            "Use WSL or a Linux container."
        )
    if num_workers < 1:
        raise SettingError(f"`num_workers` must be at least 1. Got {num_workers}.")
    chosen = limits or Limits()
    with ThreadPoolExecutor(num_workers) as workers:
        return list(workers.map(lambda program: _run_one(program, chosen), programs))


def _run_one(program: str, limits: Limits) -> Verdict:
    with tempfile.TemporaryDirectory(prefix="lushan-program-") as folder:
        report_end, launcher_end = os.pipe()
        started = time.monotonic()
        process = subprocess.Popen(  # noqa: S603 - our own interpreter
            [sys.executable, "-s", "-S", "-B", "-X", "utf8", "-c", _LAUNCH, str(_PACKAGES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            # The same order of sets in every run, so that a verdict can be had again.
            env={"HOME": folder, "TMPDIR": folder, "PYTHONHASHSEED": "0", "LANG": "C.UTF-8"},
            pass_fds=(launcher_end,),
            start_new_session=True,
        )
        os.close(launcher_end)
        secret = secrets.token_hex(SECRET_BYTES // 2)
        try:
            _give_order(process, program, limits, pipe=launcher_end, secret=secret)
            report, output, in_time = _watch(process, report_end, limits, started=started)
        finally:
            with suppress(ProcessLookupError, PermissionError):  # gone already
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(report_end)
            if process.stdout:
                process.stdout.close()
        seconds = time.monotonic() - started
    if "unenforced" not in _reported(report[:1]):
        raise UserError(
            f"Python did not get to the program within {limits}: raise `memory_bytes` or `wall_seconds`, or run "
            f"fewer at a time. Its last words: {output.decode(errors='replace')[-500:]!r}"
        )
    outcome, detail = _judge(report, process.returncode, limits, secret=secret, in_time=in_time)
    return Verdict(
        outcome,
        detail,
        seconds,
        output.decode(errors="replace"),
        tuple(_reported(report[:1])["unenforced"]),
    )


def _give_order(
    process: subprocess.Popen[bytes], program: str, limits: Limits, *, pipe: int, secret: str
) -> None:
    order = {"program": program, "limits": asdict(limits), "report_pipe": pipe}
    words = json.dumps(order).encode()
    if process.stdin is None:
        raise RuntimeError("The program was started without a pipe to it.")
    with suppress(BrokenPipeError), process.stdin as stdin:  # it may have died of a limit already
        stdin.write(b"%08d" % len(words) + words + secret.encode())


def _watch(
    process: subprocess.Popen[bytes], report_end: int, limits: Limits, *, started: float
) -> tuple[list[bytes], bytes, bool]:
    """Read report and output until both lines of the report are there, or the program is gone, or the time is up.

    Returns:
        The report's lines, the last of the output, and whether it ended in time.
    """
    if process.stdout is None:
        raise RuntimeError("The program was started without a pipe from it.")
    output_end = process.stdout.fileno()
    found = {report_end: b"", output_end: b""}
    in_time = True
    with selectors.DefaultSelector() as selector:
        selector.register(report_end, selectors.EVENT_READ, data=_MAX_REPORT_BYTES)
        selector.register(output_end, selectors.EVENT_READ, data=limits.output_bytes)
        while in_time and selector.get_map() and not _is_whole(found[report_end]):
            remaining = started + limits.wall_seconds - time.monotonic()
            _read_ready(selector, found, seconds=max(remaining, 0.0))
            in_time = remaining > 0
    if in_time and not _is_whole(found[report_end]):  # it closed its pipes, or is about to be gone
        try:
            process.wait(max(started + limits.wall_seconds - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            in_time = False
    return found[report_end].splitlines(), found[output_end], in_time


def _read_ready(
    selector: selectors.BaseSelector, found: dict[int, bytes], *, seconds: float
) -> None:
    """Read once from every pipe that has something within some seconds, and keep the last bytes of each."""
    for key, _ in selector.select(seconds):
        piece = os.read(key.fd, _AT_ONCE_BYTES)
        found[key.fd] = (found[key.fd] + piece)[-key.data :]
        if not piece:
            selector.unregister(key.fileobj)


def _is_whole(report: bytes) -> bool:
    return report.count(b"\n") >= 2 or len(report) > _AT_ONCE_BYTES


def _judge(
    report: list[bytes], exit_code: int, limits: Limits, *, secret: str, in_time: bool
) -> tuple[Outcome, str]:
    ending = _reported(report[1:2])
    if not in_time:
        return "timed_out", f"still running after {limits.wall_seconds:g} s"
    told = str(ending.get("secret")).encode(errors="replace")
    if secrets.compare_digest(told, secret.encode()):
        return "passed", ""
    if ending.get("outcome") == "failed":
        return "failed", str(ending.get("detail"))
    if len(report) > 1:
        return "failed", "it wrote into the report of its end"
    return _judge_by_exit(exit_code, limits)


def _judge_by_exit(exit_code: int, limits: Limits) -> tuple[Outcome, str]:
    if exit_code == OUT_OF_MEMORY_EXIT_CODE:
        return "out_of_memory", f"more than {limits.memory_bytes / (1 << 20):.0f} MiB"
    if exit_code == -signal.SIGXCPU:
        return "timed_out", f"used {limits.cpu_seconds} s of CPU time"
    if exit_code < 0:
        return "killed", f"by signal {-exit_code}, {signal_name(-exit_code)}"
    return "failed", f"it left with exit code {exit_code} before its end"


def signal_name(number: int) -> str:
    """Name a signal; those for the use of programs have none but their number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def _reported(lines: list[bytes]) -> dict[str, Any]:
    """Read a line of the report, which a program could have spoiled."""
    try:
        words = json.loads(lines[0])
    except (IndexError, RecursionError, ValueError):
        return {}
    return words if isinstance(words, dict) else {}
