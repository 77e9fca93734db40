"""C++ of our own becomes a library on this machine: once for each source, compiler and torch, kept in the cache folder."""

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from lushan.backbones.sources import cache_folder

_FLAGS = (
    *("-std=c++17", "-O3", "-shared", "-fPIC", "-fopenmp", "-fno-exceptions"),
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-mavx512vnni"),
    "-mfma",
)
_COMPILE_SECONDS = 120
_FORBIDDEN = "failed to map segment"
"""What is said of a library in a folder from which nothing may be run."""


class Opened(NamedTuple):
    """A library, and the command of the compiler that made it."""

    library: ctypes.CDLL
    compiler: str


def find_compiler() -> str | None:
    """Give the command of the C++ compiler that is used: `CXX`, else the first that this system has."""
    return next(iter(_compilers()), None)


def _compilers() -> list[str]:
    named = os.environ.get("CXX", "").strip()
    candidates = (named,) if named else ("g++", "clang++", "c++")
    return [each for each in candidates if shutil.which(shlex.split(each)[0])]


def open_library(sources: Sequence[Path], headers: Sequence[Path]) -> Opened | str:
    """Give the library of these files, compiled if need be by the first compiler that can; or say why there is none."""
    compilers = _compilers()
    if not compilers:
        return "there is no C++ compiler here (`g++` or `clang++`, or what `CXX` names)"
    reasons: list[str] = []
    for compiler in compilers:
        try:
            return Opened(_opened(compiler, sources, headers), compiler)
        except subprocess.SubprocessError as error:
            reasons.append(f"it could not be compiled with `{compiler}` ({_last_words(error)})")
        except OSError as error:
            advice = ""
            if _FORBIDDEN in str(error):
                advice = "; name a folder from which programs may be run in `LUSHAN_CACHE`"
            return f"it could not be loaded ({error}{advice})"
    return reasons[0]


def _last_words(error: subprocess.SubprocessError) -> str:
    """What a compiler complained of, in one line."""
    if not isinstance(error, subprocess.CalledProcessError):
        return f"not done in {_COMPILE_SECONDS} s"
    lines = error.stderr.decode(errors="replace").splitlines()
    wrong = [each for each in lines if "error" in each] or [each for each in lines if each.strip()]
    return wrong[0].strip() if wrong else f"exit code {error.returncode}"


def _opened(compiler: str, sources: Sequence[Path], headers: Sequence[Path]) -> ctypes.CDLL:
    """Open the library; one that was cut short, or made on another system, is made anew."""
    file = _compiled(compiler, sources, headers)
    try:
        return ctypes.CDLL(str(file))
    except OSError as error:
        if _FORBIDDEN in str(error):  # it is whole, and made anew it would be as useless
            raise
        file.unlink(missing_ok=True)
        return ctypes.CDLL(str(_compiled(compiler, sources, headers)))


def _compiled(compiler: str, sources: Sequence[Path], headers: Sequence[Path]) -> Path:
    """Give the file of the library; made beside and renamed, as several processes may begin at once."""
    texts = (each.read_text(encoding="utf-8") for each in (*headers, *sources))
    text = "\n".join((*texts, compiler, _version(compiler), *_FLAGS, torch.__version__))
    folder = cache_folder() / "native"
    file = folder / f"products-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        # `libgomp.so.1`, which it asks for, is in the process already: torch brings it, so that there is one pool of threads.
        # Process numbers would not do: containers that share a cache give the same ones.
        with TemporaryDirectory(dir=folder, prefix=".making-") as beside:
            made = Path(beside) / file.name
            command = [*shlex.split(compiler), *_FLAGS, *map(str, sources), "-o", str(made)]
            subprocess.run(  # noqa: S603 - our own source, by the user's compiler
                command, check=True, capture_output=True, timeout=_COMPILE_SECONDS
            )
            made.replace(file)
    return file


@cache
def _version(compiler: str) -> str:
    """What a compiler says of itself: another version may round in another way."""
    command = [*shlex.split(compiler), "--version"]
    done = subprocess.run(  # noqa: S603 - the user's compiler
        command, check=False, capture_output=True, timeout=_COMPILE_SECONDS
    )
    return done.stdout.decode(errors="replace").partition("\n")[0]
