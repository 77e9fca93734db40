"""Files that are either the old or the new, never half: written beside, flushed, then renamed."""

import errno
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lushan.errors import RunError


def write_text(path: Path, text: str) -> None:
    """Put `text` into `path` at once; the folder must exist."""
    write_parts(path, [text])


def write_parts(path: Path, parts: Iterable[str]) -> None:
    """Put texts into `path` one behind the other as they come; the file appears when the last is written."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("w", encoding="utf-8") as stream:
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
def naming_full_disk(folder: Path, *, what: str, remedy: str) -> Iterator[None]:
    """Say which folder it is that has no room left, where the system does not.

    Args:
        folder: Where the block writes.
        what: What it writes, as the start of a sentence.
        remedy: What to do, beside making room.

    Raises:
        RunError: If there is no room.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunError(
            f"{what} cannot be written to `{folder}`: {error.strerror}. Make room there, or {remedy}. Nothing is lost."
        ) from None
