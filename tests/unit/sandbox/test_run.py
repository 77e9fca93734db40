"""Programs that end badly, and programs that try to get out."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from lushan.errors import SettingError, UserError
from lushan.sandbox import run
from lushan.sandbox.run import Limits, Unenforced, Verdict, run_programs

pytestmark = pytest.mark.skipif(os.name != "posix", reason="programs run on Linux and macOS")

WITHOUT_FILTER = (
    "from lushan.sandbox import confine, launcher; confine.filter_system_calls = lambda: False; "
)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have the folders of programs made where the test can see them."""
    found = tmp_path / "folders"
    found.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(found))
    return found


def verdict(program: str, *, needs: Unenforced | None = None, **limits: Any) -> Verdict:  # noqa: ANN401 - those of Limits
    found = run_programs([program], Limits(**limits), num_workers=1)[0]
    if needs in found.unenforced:
        pytest.skip(f"this system does not keep programs from {needs}")
    return found


def launch_with(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """Have the new process change the launcher before it starts."""
    path, start = run._LAUNCH.split("; ", 2)[:2], run._LAUNCH.split("; ", 2)[2]
    monkeypatch.setattr(run, "_LAUNCH", "; ".join(path) + "; " + change + start)


def test_verdicts_stand_in_the_order_of_the_programs() -> None:
    programs = [
        f"import time; time.sleep({0.2 - n / 20}); print({n}); assert {n} != 2" for n in range(4)
    ]
    found = run_programs(programs, num_workers=4)
    assert [each.outcome for each in found] == ["passed", "passed", "failed", "passed"]
    assert [each.output for each in found] == ["0\n", "1\n", "2\n", "3\n"]
    assert found[2].detail == "AssertionError"
    assert 0.2 < found[0].seconds < 5
    assert run_programs([], num_workers=1) == []


@pytest.mark.parametrize(
    "leaving",
    [
        "import sys; sys.exit(0)",
        "import sys; sys.exit()",
        "import os; os._exit(0)",
        "raise SystemExit(0)",
        "import os; os.execv('/bin/true', ['true'])",
        "import os, sys; os.closerange(0, 64); os._exit(0)",
        "import atexit, sys; atexit.register(print, 'passed'); sys.exit(0)",
    ],
)
def test_leaving_before_the_end_is_no_pass(leaving: str) -> None:
    found = verdict(f"{leaving}\nassert False")
    assert found.outcome == "failed"
    assert "before its end" in found.detail


def test_nobody_prints_a_way_to_passing() -> None:
    words = r'b"{\"outcome\": \"passed\"}\n{\"outcome\": \"passed\", \"secret\": \"\"}\n"'
    found = verdict(
        f"import os\nfor fd in range(1, 64):\n    try: os.write(fd, {words})\n    except OSError: pass\nos._exit(0)"
    )
    assert (found.outcome, found.detail) == ("failed", "it wrote into the report of its end")
    assert "passed" in found.output


@pytest.mark.parametrize(
    "words",
    [
        'b\'{"secret": "\\xc3\\xa9"}\'',
        'rb\'{"secret": "\\ud800"}\'',
        "b'[' * 20_000 + b']' * 20_000",
    ],
    ids=["accent", "half a character", "deep"],
)
def test_strange_words_in_the_report_fail_their_program_alone(words: str) -> None:
    program = (
        f"import os\nfor fd in range(3, 64):\n    try: os.write(fd, {words} + b'\\n')\n"
        "    except OSError: pass\nos._exit(0)"
    )
    strange, usual = run_programs([program, "x = 1"], num_workers=1)
    assert (strange.outcome, strange.detail) == ("failed", "it wrote into the report of its end")
    assert usual.passed


def test_signal_without_a_name_is_told_by_its_number() -> None:
    found = verdict("import os; os.kill(os.getpid(), 40)")
    assert (found.outcome, found.detail) == ("killed", "by signal 40, SIG40")


def test_endless_loop_runs_into_the_limit_of_cpu_time() -> None:
    found = verdict("while True: pass", cpu_seconds=1, wall_seconds=30)
    assert (found.outcome, found.detail) == ("timed_out", "used 1 s of CPU time")
    assert found.seconds < 20


def test_sleep_runs_into_the_limit_of_time() -> None:
    found = verdict("print('before', flush=True)\nimport time; time.sleep(60)", wall_seconds=0.7)
    assert (found.outcome, found.detail) == ("timed_out", "still running after 0.7 s")
    assert found.output == "before\n"
    assert 0.6 < found.seconds < 10


def test_time_holds_while_a_program_prints_without_end() -> None:
    found = verdict("while True: print('x' * 1000)", wall_seconds=0.7, output_bytes=50)
    assert found.outcome == "timed_out"
    assert len(found.output) == 50


@pytest.mark.parametrize(
    "program",
    ["kept = []\nwhile True: kept.append(bytearray(10**6))", "x = None\nwhile True: x = (x,)"],
)
def test_memory_bomb_is_out_of_memory(program: str) -> None:
    found = verdict(program, needs="memory", memory_bytes=200 << 20)
    assert (found.outcome, found.detail) == ("out_of_memory", "more than 200 MiB")


def test_fork_bomb_gets_no_process() -> None:
    program = "import os\nwhile True:\n    try: os.fork()\n    except OSError as error: print(error.errno); break"
    found = verdict(program, needs="processes")
    assert (found.outcome, found.output) == ("passed", "1\n")


def test_child_does_not_outlive_its_program(monkeypatch: pytest.MonkeyPatch) -> None:
    launch_with(monkeypatch, WITHOUT_FILTER + "launcher._forbid = lambda *_: None; ")
    found = verdict(
        "import os, time\nchild = os.fork()\nif child == 0: time.sleep(60)\nprint(child)"
    )
    assert found.passed
    assert found.seconds < 20
    for _ in range(100):
        if not psutil.pid_exists(int(found.output)):
            return
        time.sleep(0.05)
    pytest.fail("the child lives")


def test_program_dies_with_us(tmp_path: Path) -> None:
    code = (
        "from lushan.sandbox.run import run_programs\n"
        'run_programs([\'open("ready", "w"); import time; time.sleep(60)\'], num_workers=1)'
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as ours:
        for _ in range(200):
            if list(tmp_path.glob("lushan-program-*/ready")):
                break
            time.sleep(0.05)
        (program,) = psutil.Process(ours.pid).children()
        ours.kill()
        assert psutil.wait_procs([program], timeout=10)[0] == [program]


def test_network_is_out_of_reach() -> None:
    connect = "import socket\nsocket.create_connection(('127.0.0.1', 9), 5)"
    found = verdict(connect, needs="network")
    assert found.outcome == "failed"
    assert found.detail.startswith("PermissionError")


@pytest.mark.parametrize(
    ("program", "event"),
    [
        ("import socket\nsocket.create_connection(('127.0.0.1', 9), 5)", "socket"),
        ("import subprocess\nsubprocess.run(['true'])", "subprocess.Popen"),
        ("import os\nos.fork()", "os.fork"),
        ("import os\nos.kill(os.getppid(), 0)", "os.kill"),
    ],
)
def test_audit_hook_stands_in_for_the_filter_and_does_not_claim_to_be_it(
    program: str, event: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch_with(monkeypatch, WITHOUT_FILTER + "confine.enter_namespaces = lambda: False; ")
    found = verdict(program)
    assert found.outcome == "failed"
    assert found.detail.startswith(f"PermissionError: {event}")
    assert {"network", "processes", "threads"} <= set(found.unenforced)


def test_threads_are_counted_where_the_kernel_counts_them() -> None:
    program = (
        "import threading\nstop = threading.Event()\nthreads = [threading.Thread(target=stop.wait) for _ in range(20)]\n"
        "try:\n    for each in threads: each.start()\nfinally: stop.set()"
    )
    assert verdict(program, num_threads=32).passed
    assert verdict(program, needs="threads", num_threads=8).detail.startswith("RuntimeError")


def test_nothing_is_written_or_read_outside_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "answers.txt").write_text("42", encoding="utf-8")
    for mode, name in (("r", "answers.txt"), ("w", "answers.txt"), ("w", "new.txt")):
        found = verdict(f"open({str(tmp_path / name)!r}, {mode!r})", needs="files")
        assert found.detail.startswith("PermissionError")
    assert (tmp_path / "answers.txt").read_text(encoding="utf-8") == "42"
    assert not (tmp_path / "new.txt").exists()


def test_file_has_a_limit() -> None:
    program = (
        "for name in ('one', 'two'):\n    with open(name, 'wb') as file: file.write(bytes({}))"
    )
    assert verdict(program.format(3000), file_bytes=4000).passed
    assert "File too large" in verdict(program.format(5000), file_bytes=4000).detail


def test_environment_is_ours_alone(monkeypatch: pytest.MonkeyPatch, folders: Path) -> None:
    monkeypatch.setenv("LUSHAN_TOKEN", "hidden words")
    program = (
        "import os, sys\nfrom pathlib import Path\nprint(dict(os.environ), sys.argv, sys.path)\n"
        "assert Path.home() == Path.cwd() == Path(os.environ['TMPDIR'])\n"
        "try: print(Path(f'/proc/{os.getppid()}/environ').read_text())\nexcept OSError: pass"
    )
    found = verdict(program)
    assert found.passed
    assert str(folders) in found.output
    assert "LUSHAN_TOKEN" not in found.output
    assert "hidden words" not in found.output
    assert "site-packages" not in found.output


def test_standard_input_is_empty() -> None:
    assert verdict("import sys\nassert sys.stdin.read() == ''").passed
    assert verdict("input()").detail.startswith("EOFError")


def test_folders_are_gone_afterwards(folders: Path) -> None:
    program = "import os\nos.makedirs('a/b')\nopen('a/b/c', 'w').write('x')\nos.chmod('a', 0)"
    assert verdict(program).passed
    assert verdict("open('a', 'w')\nimport os; os.kill(os.getpid(), 9)").outcome == "killed"
    assert (
        verdict("open('a', 'w')\nimport time; time.sleep(60)", wall_seconds=0.5).outcome
        == "timed_out"
    )
    assert list(folders.iterdir()) == []


def test_printing_a_lot_is_no_fault_and_the_last_of_it_is_kept() -> None:
    found = verdict("for n in range(200_000): print(n)\nprint('end')", output_bytes=100)
    assert found.passed
    assert found.output.endswith("\n199999\nend\n")
    assert len(found.output) == 100


def test_unicode_goes_through_and_broken_unicode_does_no_harm() -> None:
    assert verdict("print('\u9e93\u5c71', '\\U0001f600')").output == "\u9e93\u5c71 \U0001f600\n"
    assert verdict("raise ValueError('\u9e93\u5c71')").detail == "ValueError: \u9e93\u5c71"
    assert verdict("import sys; sys.stdout.buffer.write(b'\\xff')").output == "\ufffd"
    assert verdict("x = '\ud800'").detail.startswith("UnicodeEncodeError")


def test_deep_recursion_fails_alone() -> None:
    assert verdict("def f(): f()\nf()").detail.startswith("RecursionError")
    deep = "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return repr(x)\nx = []\nfor _ in range(10**6): x = [x]\nf(x)"
    assert verdict(deep).outcome in {"killed", "failed", "out_of_memory"}


def test_program_without_pipes_still_has_a_limit_of_time() -> None:
    program = "import os, time; os.closerange(0, 64); time.sleep({}); os._exit(0)"
    found = verdict(program.format(60), wall_seconds=0.7)
    assert found.outcome == "timed_out"
    assert found.seconds < 10
    assert verdict(program.format(0)).detail == "it left with exit code 0 before its end"


def test_crash_is_told_by_its_signal() -> None:
    found = verdict("import ctypes\nctypes.string_at(0)")
    assert (found.outcome, found.detail) == ("killed", "by signal 11, SIGSEGV")


def test_sets_have_one_order_in_every_run() -> None:
    programs = ["print({'a', 'b', 'c', 'd', 'e', 'f'})"] * 2
    first, second = run_programs(programs, num_workers=2)
    assert first.output == second.output


def test_closed_output_is_no_failure() -> None:
    assert verdict("import sys\nsys.stdout.close()").passed


@pytest.mark.parametrize("name", ["cpu_seconds", "wall_seconds", "memory_bytes", "output_bytes"])
def test_limit_must_be_positive(name: str) -> None:
    with pytest.raises(SettingError, match=f"`{name}` of a program must be above 0. Got 0"):
        Limits(**{name: 0})


def test_too_little_for_python_is_our_users_mistake_and_not_the_programs() -> None:
    with pytest.raises(UserError, match="Python did not get to the program"):
        verdict("x = 1", wall_seconds=0.001)


def test_workers_must_be_some() -> None:
    with pytest.raises(SettingError, match=r"at least 1\. Got 0"):
        run_programs(["x = 1"], num_workers=0)


def test_windows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.os, "name", "nt")
    with pytest.raises(UserError, match="needs Linux or macOS"):
        run_programs(["x = 1"], num_workers=1)
