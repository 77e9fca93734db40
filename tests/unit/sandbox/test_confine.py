"""Each protection of the kernel by itself, without the others that would hide its absence."""

import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lushan.sandbox import confine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux does this")

REFUSED = "Operation not permitted"


def after(confinement: str, program: str) -> str:
    """Run a program in a process that was confined in one way, and give the last line that it wrote."""
    code = (
        f"import os\nfrom pathlib import Path\nfrom lushan.sandbox import confine\n"
        f"if not confine.{confinement}:\n    print('not here'); raise SystemExit\n{program}"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    last = (ran.stdout + ran.stderr).strip().splitlines()[-1]
    if last == "not here":
        pytest.skip("this kernel does not do it")
    return last


def test_namespaces_have_no_way_even_to_this_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 5)\nprint('in')"
        assert after("die_with_parent() is None", program) == "in"
        assert "unreachable" in after("enter_namespaces()", program)


@pytest.mark.parametrize(
    "program",
    [
        "import socket\nsocket.socket(socket.AF_UNIX)",
        "import socket\nsocket.socket(socket.AF_INET6, socket.SOCK_DGRAM)",
        "os.fork()",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.kill(os.getppid(), 0)",
        "os.kill(-1, 0)",
        "import fcntl\nfcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())",
        "import fcntl, struct\nfcntl.fcntl(os.pipe()[0], 15, struct.pack('ii', 1, os.getppid()))",
        "import fcntl, socket, struct\n"
        "fcntl.ioctl(socket.socketpair()[0], 0x8901, struct.pack('i', os.getppid()))",
        "os.memfd_create('memory')",
        "import resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
    ],
)
def test_filter_refuses_sockets_processes_and_reaching_for_others(program: str) -> None:
    assert REFUSED in after("filter_system_calls()", program)


@pytest.mark.parametrize(
    "call", ["sigqueue(other, 0, None)", "syscall(number, other, other, 0, told)"]
)
def test_filter_refuses_signals_that_carry_a_value(call: str) -> None:
    program = (
        "import ctypes, platform\nother, told = os.getppid(), (ctypes.c_int * 32)(0, 0, -1)\n"
        "number = {'x86_64': 297, 'aarch64': 240}[platform.machine()]\n"
        f"libc = ctypes.CDLL(None, use_errno=True)\nlibc.{call}\nprint(os.strerror(ctypes.get_errno()))"
    )
    assert after("filter_system_calls()", program) == REFUSED
    assert after("die_with_parent() is None", program) == "Success"


def test_filter_leaves_threads_event_loops_and_signals_to_oneself() -> None:
    program = (
        "import asyncio, ctypes, threading\nthread = threading.Thread(target=print); thread.start(); thread.join()\n"
        "asyncio.run(asyncio.sleep(0)); os.kill(os.getpid(), 0)\n"
        "assert ctypes.CDLL(None).sigqueue(os.getpid(), 0, None) == 0; print('done')"
    )
    assert after("filter_system_calls()", program) == "done"


@pytest.mark.skipif(platform.machine() not in {"x86_64", "aarch64"}, reason="no filter for it")
def test_filter_is_there_where_the_kernel_says_that_it_can() -> None:
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    if not actions.exists() or "errno" not in actions.read_text(encoding="ascii").split():
        pytest.skip("this kernel has no filters of system calls")
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            "from lushan.sandbox import confine; print(confine.filter_system_calls())",
        ],
        capture_output=True,
        text=True,
    )
    assert ran.stdout == "True\n"


def test_filter_is_made_for_both_machines_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert confine.filter_system_calls() is False


@pytest.mark.parametrize(
    "program",
    [
        "open('{outside}/new', 'w')",
        "open('{outside}/old', 'a')",
        "os.truncate('{outside}/old', 0)",
        "os.remove('{outside}/old')",
        "os.rename('{outside}/old', 'old')",
        "os.mkdir('{outside}/folder')",
        "open('{outside}/old').read()",
        "os.listdir('{outside}')",
    ],
)
def test_files_outside_of_the_folder_can_be_neither_written_nor_read(
    program: str, tmp_path: Path
) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "old").write_text("kept", encoding="utf-8")
    confinement = f"restrict_files(writable=Path({str(inside)!r}), readable=[])"
    last = after(confinement, f"os.chdir({str(inside)!r})\n{program.format(outside=outside)}")
    assert "Permission denied" in last or "Invalid cross-device link" in last
    assert [file.name for file in outside.iterdir()] == ["old"]
    assert (outside / "old").read_text(encoding="utf-8") == "kept"


def test_inside_of_the_folder_files_are_free_and_others_only_read(tmp_path: Path) -> None:
    inside, readable = tmp_path / "inside", tmp_path / "readable"
    inside.mkdir()
    readable.mkdir()
    (readable / "old").write_text("words", encoding="utf-8")
    confinement = (
        f"restrict_files(writable=Path({str(inside)!r}), readable=[Path({str(readable)!r})])"
    )
    program = (
        f"os.chdir({str(inside)!r}); os.mkdir('a'); open('a/b', 'w').write('x'); os.rename('a/b', 'c')\n"
        f"os.remove('c'); open(os.devnull, 'w').write('x'); print(open('{readable}/old').read())"
    )
    assert after(confinement, program) == "words"
    assert "Permission denied" in after(confinement, f"open('{readable}/old', 'w')")
