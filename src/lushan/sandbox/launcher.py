"""What runs in the new process: take the limits, let go of what is outside, run the program, say how it ended.

It reads its order from standard input: the length of a JSON object in eight digits, the object, then a secret. The secret
stays in the pipe until the program has come to its end, so that neither printing nor leaving early looks like that.
"""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from lushan.sandbox import confine

SECRET_BYTES = 32
OUT_OF_MEMORY_EXIT_CODE = 90
_MAX_DETAIL_CHARACTERS = 500
_SYSTEM_FOLDERS = ("/usr", "/lib", "/lib64", "/etc", "/nix/store", "/System", "/Library")
_DEVICES = ("/dev/zero", "/dev/random", "/dev/urandom")
_MAX_OPEN_FILES = 64
_WATCHED = {"os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system", "subprocess.Popen"}
_WATCHED |= {"os.kill", "os.killpg", "ctypes.dlopen"}


def main() -> NoReturn:
    """Run the program of the order that waits on standard input."""
    order = json.loads(_read(0, int(_read(0, 8))))
    secret_pipe = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    report_pipe = order["report_pipe"]
    os.set_inheritable(report_pipe, False)
    _report(report_pipe, {"unenforced": take_limits(order["limits"], folder=Path.cwd())})
    try:
        ending = run_program(order["program"])
        # The program may have closed or replaced it.
        with suppress(AttributeError, OSError, ValueError):
            sys.stdout.flush()
        if ending == {"outcome": "passed"}:
            ending["secret"] = _read(secret_pipe, SECRET_BYTES).decode()
        _report(report_pipe, ending)
    except MemoryError:  # none may be left to tell of it in words
        os._exit(OUT_OF_MEMORY_EXIT_CODE)
    os._exit(0)


def _read(pipe: int, num_bytes: int) -> bytes:
    found = b""
    while len(found) < num_bytes:
        piece = os.read(pipe, num_bytes - len(found))
        if not piece:
            os._exit(1)
        found += piece
    return found


def _report(pipe: int, words: dict[str, Any]) -> None:
    os.write(pipe, json.dumps(words).encode() + b"\n")


def take_limits(limits: dict[str, int], *, folder: Path) -> list[str]:
    """Confine this process to the limits and to a folder; name what this system could not do.

    Args:
        limits: As the fields of `Limits` say.
        folder: Where the program may write.
    """
    is_root = os.geteuid() == 0  # a new namespace hides it, the kernel does not forget
    in_namespaces = confine.enter_namespaces()
    confine.die_with_parent()
    in_folder = confine.restrict_files(writable=folder, readable=_readable())
    kept = {
        "memory": _limit("AS", limits["memory_bytes"]),
        # The kernel counts no threads of root, and those of all of a user's programs outside of a new namespace.
        "threads": in_namespaces and _limit("NPROC", limits["num_threads"]) and not is_root,
        "files": in_folder,
    }
    _limit("CPU", limits["cpu_seconds"], reserve=1)
    _limit("FSIZE", limits["file_bytes"])
    _limit("NOFILE", _MAX_OPEN_FILES)
    _limit("CORE", 0)
    if not confine.filter_system_calls():
        sys.addaudithook(_forbid)
        kept |= {"network": in_namespaces, "processes": False}
    return [name for name, is_kept in kept.items() if not is_kept]


def _readable() -> list[Path]:
    python = (sys.base_prefix, sys.base_exec_prefix, *(path for path in sys.path if path))
    return [Path(name) for name in (*python, *_SYSTEM_FOLDERS, *_DEVICES)]


def _limit(name: str, value: int, *, reserve: int = 0) -> bool:
    """Set a limit, at which the kernel warns or refuses; the reserve lies between that and its last word."""
    import resource

    try:
        which = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(which)[1]
        most = value + reserve if hard == resource.RLIM_INFINITY else min(hard, value + reserve)
        resource.setrlimit(which, (min(value, most), most))
    except (AttributeError, OSError, ValueError):  # macOS limits no address space
        return False
    return True


def _forbid(event: str, _: tuple[object, ...]) -> None:
    """Stand in for the filter of system calls where there is none: weaker, as it sees only what Python itself does."""
    if event in _WATCHED or (event.startswith("socket.") and event != "socket.__new__"):
        raise PermissionError(f"{event} is not allowed here")


def run_program(program: str) -> dict[str, Any]:
    """Run a program as `__main__` and tell its outcome, and for a failure the last line of its traceback.

    Raises:
        MemoryError: If the program did.
    """
    module = ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = ["<program>"]
    try:
        exec(compile(program, "<program>", "exec"), module.__dict__)  # noqa: S102 - what this process is for
    except MemoryError:
        raise
    except SystemExit as leaving:
        return {"outcome": "failed", "detail": f"SystemExit: {leaving.code!r}, before its end"}
    except BaseException as error:  # noqa: BLE001 - whatever ends a program is its failure
        import traceback

        line = traceback.format_exception_only(error)[-1].strip()
        return {"outcome": "failed", "detail": line[:_MAX_DETAIL_CHARACTERS]}
    return {"outcome": "passed"}
