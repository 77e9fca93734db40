"""What the kernel takes from a process for good: users and networks, files, system calls. Linux only, by ctypes.

Each function confines the process that calls it and says whether the kernel did it. Nothing of it can be undone.
"""

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_NEW_NAMESPACES = 0x10000000 | 0x40000000 | 0x08000000  # user, network, System V memory
_CLONE_THREAD = 0x10000

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = (
    444,
    445,
    446,
)  # the same on every architecture
_READ = 0b1101  # execute, read a file, list a folder
_READ_FILE = 0b101
_WRITE = 0b1_1111_1111_0010  # write, remove and make files and folders of every kind
_REFER, _TRUNCATE, _DEVICE_CONTROL = 1 << 13, 1 << 14, 1 << 15  # new in versions 2, 3 and 5

_AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_MACHINES = tuple(_AUDIT_ARCHITECTURES)
# Numbers of system calls from the kernel's tables, in the order of _MACHINES. `socket` opens every network, and the sockets
# of local services; io_uring would open them past the filter; memory of memfd_create is not counted as the process's own.
_DENIED: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198),
    "fork": (57, None),
    "vfork": (58, None),
    "ptrace": (101, 117),
    "tkill": (200, 130),
    "unshare": (272, 97),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "memfd_create": (319, 279),
    "pidfd_send_signal": (424, 424),
    "io_uring_setup": (425, 425),
}
# Allowed where the first argument, a process, is this one.
_SELF_ONLY = {
    "kill": (62, 129),
    "rt_sigqueueinfo": (129, 138),
    "tgkill": (234, 131),
    "rt_tgsigqueueinfo": (297, 240),
    "prlimit64": (302, 261),
}
_CLONE, _CLONE3 = (56, 220), (435, 435)
# Of a file or a socket: whom the kernel sends a signal when it can be read. Calls, and what their second argument says then.
_SETS_OWNER = {"fcntl": ((72, 25), (8, 15)), "ioctl": ((16, 29), (0x8901, 0x8902))}

_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # where they stand in `struct seccomp_data`
_SECOND_ARGUMENT = 24
_EPERM, _ENOSYS = 0x50000 | 1, 0x50000 | 38


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it is gone."""
    if sys.platform == "linux":
        _libc().prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)


def enter_namespaces() -> bool:
    """Move into new user, network and IPC namespaces: no interface but a dead loopback, no power outside."""
    return sys.platform == "linux" and _libc().unshare(_NEW_NAMESPACES) == 0


def restrict_files(*, writable: Path, readable: Iterable[Path]) -> bool:
    """Let nothing be written outside of a folder and nothing be read outside of some folders, by Landlock.

    What is open already stays so. Modes, owners, times and extended attributes of files are not covered.
    """
    if sys.platform != "linux":
        return False
    libc = _libc()
    version = libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    write = _WRITE | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    handled = _READ | write | (_DEVICE_CONTROL if version >= 5 else 0)
    ruleset = libc.syscall(
        _LANDLOCK_CREATE, struct.pack("=Q", handled), ctypes.c_size_t(8), ctypes.c_uint(0)
    )
    rules = [(writable, _READ | write), (Path("/dev/null"), _READ_FILE | 0b10)]
    rules += [(path, _READ if path.is_dir() else _READ_FILE) for path in readable if path.exists()]
    for path, rights in rules:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", rights, folder)
        _check(libc.syscall(_LANDLOCK_ADD, ruleset, 1, rule, 0), f"Landlock's rule of {path}")
        os.close(folder)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _check(libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0), "Landlock")
    os.close(ruleset)
    return True


def _check(result: int, what: str) -> None:
    """Stop where a kernel that can confine did not: a program must not run with less than was told."""
    if result != 0:
        raise OSError(ctypes.get_errno(), f"The kernel refused {what}")


def filter_system_calls() -> bool:
    """Let this process open no socket, start no other process, and touch no process but itself; threads it may start.

    A denied call fails with EPERM, as without permission. Must be called before there is a second thread.
    """
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        return False
    program = _filter_program(platform.machine())
    buffer = ctypes.create_string_buffer(program)
    described = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    libc = _libc()
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, described, 0, 0) == 0


def _filter_program(machine: str) -> bytes:
    """Write the filter as instructions of classic BPF: (code, steps if true, steps if false, value)."""
    place = _MACHINES.index(machine)
    lines = [(_LOAD, 0, 0, _ARCHITECTURE), (_IF_EQUAL, 1, 0, _AUDIT_ARCHITECTURES[machine])]
    lines += [(_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    lines += [(_IF_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _EPERM)]  # the x32 numbers
    for numbers in _DENIED.values():
        number = numbers[place]
        if number is not None:
            lines += [(_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _EPERM)]
    # The C library starts threads by clone where clone3, whose flags a filter cannot see, does not exist.
    lines += [(_IF_EQUAL, 0, 1, _CLONE3[place]), (_RETURN, 0, 0, _ENOSYS)]
    lines += [(_IF_EQUAL, 0, 4, _CLONE[place]), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    lines += [(_IF_BITS, 1, 0, _CLONE_THREAD), (_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)]
    for numbers, asked in _SETS_OWNER.values():
        lines += [(_IF_EQUAL, 0, 5, numbers[place]), (_LOAD, 0, 0, _SECOND_ARGUMENT)]
        lines += [(_IF_EQUAL, 1, 0, asked[0]), (_IF_EQUAL, 0, 1, asked[1])]
        lines += [(_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)]
    for numbers in _SELF_ONLY.values():
        lines += [(_IF_EQUAL, 0, 5, numbers[place]), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
        lines += [(_IF_EQUAL, 2, 0, 0), (_IF_EQUAL, 1, 0, os.getpid())]
        lines += [(_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)]
    lines += [(_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
