"""Files and folders that are either the old or the new, never half: written beside, flushed, then renamed."""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from lushan.errors import FullDiskError

LOCK = ".lock"
"""What a process keeps of a folder that is its own."""
AGAIN = "then do it again; a run goes on with `--resume`"
"""What to do once there is room, whoever writes."""


def write_text(path: Path, text: str) -> None:
    """Put `text` into `path` at once; the folder must exist."""
    write_parts(path, [text])


def write_parts(path: Path, parts: Iterable[str]) -> None:
    """Put texts into `path` one behind the other as they come; the file appears when the last is written.

    Raises:
        FullDiskError: If there is no room; says where.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with (
            naming_full_disk(path.parent, what=f"`{path.name}`"),
            beside.open("w", encoding="utf-8") as stream,
        ):
            for part in parts:
                stream.write(part)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Put `value` into `path` at once, as indented JSON; refuses NaN, which JSON does not have."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a place to fill with files; it takes the place of `folder` once they are on the disk, and is gone if that fails.

    Raises:
        FullDiskError: If there is no room; says where.
    """
    beside = folder.with_name(f".{folder.name}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        with naming_full_disk(folder.parent, what=f"`{folder.name}`"):
            yield beside
            for each in (*beside.iterdir(), beside):
                _flush(each)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
    _flush(folder.parent)


def _flush(path: Path) -> None:
    """Have the disk keep a file, or the entries of a folder, before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_file(file: Path) -> int | None:
    """Keep a file, which is made if it is missing, for this process; None where another one keeps it.

    Returns:
        What is to be closed to give it back. The system does that when the process ends, however it ends.
    """
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def is_locked(file: Path) -> bool:
    """Whether a process keeps a file right now."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        try:
            # Shared: two that look at once do not take each other for the one that keeps it.
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@contextmanager
def kept_folder(place: Path, *, name: str) -> Iterator[Path]:
    """Give a new folder in `place` that this process keeps, and that is gone when the block is done, whatever happens.

    Args:
        place: An existing folder.
        name: What the new one is for; it is called `.NAME.` and something that no other process has, and `.part`.
    """
    with TemporaryDirectory(dir=place, prefix=f".{name}.", suffix=".part") as folder:
        descriptor = lock_file(Path(folder) / LOCK)
        try:
            yield Path(folder)
        finally:
            if descriptor is not None:
                os.close(descriptor)


def is_abandoned(folder: Path) -> bool:
    """Whether a killed process left this folder of `kept_folder`; one that holds nothing yet may be just begun."""
    try:
        holds = {each.name for each in folder.iterdir()} - {LOCK}
        return bool(holds) and not is_locked(folder / LOCK)
    except OSError:  # no folder, gone meanwhile, or somebody else's
        return False


@contextmanager
def naming_full_disk(folder: Path, *, what: str, remedy: str = AGAIN) -> Iterator[None]:
    """Say which folder it is that has no room left, where the system does not.

    Args:
        folder: Where the block writes.
        what: What it writes, as the start of a sentence.
        remedy: What to do beside making room, or behind it: `or ...`, `then ...`.

    Raises:
        FullDiskError: If there is no room.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        told = FullDiskError(
            f"{what} cannot be written to `{folder}`: {os.strerror(error.errno)}. Make room there, {remedy}. Nothing is lost."
        )
        told.errno = error.errno
        raise told from None
