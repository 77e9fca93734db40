"""A file of answers that is whole or not there, and that goes on where a killed process stopped.

While it is made, `answers.jsonl` is called `answers.jsonl.part`, and `answers.jsonl.part.json` says what it was begun with.
"""

import fcntl
import json
import os
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lushan.atomic import naming_full_disk, write_json
from lushan.errors import RunError, SettingError, UserError

_GO_ON = "then go on with `--resume`"


class AnswerFile:
    """Takes the lines of one file; the folder is made if it is missing."""

    def __init__(self, path: Path, *, resume: bool, overwrite: bool) -> None:
        """Name the file; nothing is written yet.

        Args:
            path: Where the whole file will stand.
            resume: Go on with what a stopped process left.
            overwrite: Without `resume`, throw away what it left.

        Raises:
            RunError: If there is nothing to go on with, or something that would be lost.
        """
        self._path = path
        self._part = path.with_name(f"{path.name}.part")
        self._facts = path.with_name(f"{path.name}.part.json")
        self._resume = resume
        self._overwrite = overwrite
        if resume and not self.is_begun:
            raise RunError(
                f"`--resume`: `{self._part}` and its `.json` are not both there: nothing was begun that could go on. "
                "Leave `--resume` out."
            )
        if self.is_begun and not (resume or overwrite):
            raise RunError(
                f"`{self._part}` was begun and not finished. Go on with `--resume`, or start again with `--overwrite`."
            )

    @property
    def is_begun(self) -> bool:
        """Whether there is something to go on with."""
        return self._facts.is_file() and self._part.is_file()

    def begin(self, facts: Mapping[str, Any]) -> int:
        """Be ready for lines.

        Args:
            facts: What the lines depend on, as JSON has it; among it `num_examples`, one line each, the `chunk_rows` that
                are answered together, and the `model_version` in each line.

        Returns:
            The number of lines that are there: whole chunks, so that all others come out as if nothing had happened.

        Raises:
            RunError: If another process writes it, or what is there is broken.
            SettingError: If it was begun with other facts.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self._locked()
        if self._path.exists() and not self._overwrite:
            if not self._resume:
                self._part.unlink(missing_ok=True)
            raise RunError(f"`{self._path}` is there already: another process has just written it.")
        if not self._resume:
            self._stream.truncate(0)
            write_json(self._facts, facts)
            return 0
        self._check_same(facts)
        num_lines, size_bytes, last_line = _whole_chunks(self._stream, facts)
        self._check_last(last_line, facts["model_version"])
        self._stream.truncate(size_bytes)
        return num_lines

    def write(self, lines: Iterable[str]) -> None:
        """Append lines as they come; behind the last, the file gets its name.

        Raises:
            FullDiskError: If there is no room; what was answered stays.
            UserError: That of making a line; then nothing is left.
        """
        full = naming_full_disk(self._part.parent, what=f"`{self._part.name}`", remedy=_GO_ON)
        # Nobody else gets at it before it has its name, or is gone.
        with full, self._stream as stream:
            try:
                stream.seek(0, os.SEEK_END)
                for line in lines:
                    stream.write(line.encode())
                    stream.flush()  # what was answered is not asked again
                os.fsync(stream.fileno())
                self._part.replace(self._path)
            except UserError:
                self._part.unlink(missing_ok=True)
                self._facts.unlink(missing_ok=True)
                raise
            self._facts.unlink(missing_ok=True)

    def _locked(self) -> BinaryIO:
        # What is gone on with is never made anew: another process may just have finished it.
        flags = os.O_RDWR if self._resume else os.O_RDWR | os.O_CREAT
        try:
            descriptor = os.open(self._part, flags, 0o666)
        except FileNotFoundError:
            raise self._gone() from None
        stream = os.fdopen(descriptor, "r+b")
        weakref.finalize(self, stream.close)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"Another process is writing to `{self._part}`. Wait for it, or stop it."
            ) from None
        if not _is_at(descriptor, self._part) or (self._resume and not self._facts.is_file()):
            raise self._gone()
        return stream

    def _gone(self) -> RunError:
        return RunError(
            f"`{self._part}` is gone: another process has just finished it, or thrown it away. Look at `{self._path}`."
        )

    def _check_same(self, facts: Mapping[str, Any]) -> None:
        try:
            begun = json.loads(self._facts.read_text(encoding="utf-8"))
        except ValueError as error:
            raise self._broken(self._facts, error) from None
        for name, value in json.loads(json.dumps(facts)).items():
            if begun.get(name) != value:
                raise SettingError(
                    f"`--resume`: `{self._part}` was begun with `{name}` {begun.get(name)}, now it is {value}. Use what "
                    "it was begun with, or start again with `--overwrite`."
                )

    def _check_last(self, line: bytes | None, model_version: str) -> None:
        if line is None:
            return
        try:
            found = json.loads(line)["model_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise self._broken(self._part, error) from None
        if found != model_version:
            raise self._broken(self._part, f"its last line is of model version {found}")

    def _broken(self, file: Path, why: object) -> RunError:
        return RunError(f"`--resume`: `{file}` is broken: {why}. Start again with `--overwrite`.")


def _is_at(descriptor: int, file: Path) -> bool:
    """Whether an open file still has this name: who waited for one that is being finished holds it under its new name."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _whole_chunks(stream: BinaryIO, facts: Mapping[str, Any]) -> tuple[int, int, bytes | None]:
    """Number of lines in whole chunks, the bytes that they take, and the last of them."""
    num_lines, size_bytes = 0, 0
    found: tuple[int, int, bytes | None] = (0, 0, None)
    stream.seek(0)
    for line in stream:
        num_lines, size_bytes = num_lines + 1, size_bytes + len(line)
        ends_chunk = num_lines % facts["chunk_rows"] == 0 or num_lines == facts["num_examples"]
        if line.endswith(b"\n") and ends_chunk:
            found = (num_lines, size_bytes, line)
    return found
