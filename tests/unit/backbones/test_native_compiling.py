"""Which compiler makes the library, and what is told where none can, or where nothing may be run."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest

from lushan.backbones import native_compiling
from lushan.backbones.native_compiling import Opened, find_compiler, open_library
from lushan.backbones.sources import cache_folder

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
MakeCompiler = Callable[[str, str], None]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a small source, which any compiler of any processor takes."""
    monkeypatch.setattr(native_compiling, "_FLAGS", ("-shared", "-fPIC"))
    file = tmp_path / "three.cpp"
    file.write_text('extern "C" int three() { return 3; }\n', encoding="utf-8")
    return file


@pytest.fixture
def make_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeCompiler:
    """Give a function that puts a compiler of a name on the path, which runs these lines of a shell."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(native_compiling, "_version", native_compiling._version.__wrapped__)

    def make(name: str, lines: str) -> None:
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{lines}\n", encoding="utf-8")
        file.chmod(0o755)

    return make


def real_compiler() -> str:
    found = find_compiler()
    assert found is not None
    return found


def test_the_next_compiler_is_taken_where_the_first_fails(
    source: Path, make_compiler: MakeCompiler
) -> None:
    real = real_compiler()
    make_compiler("g++", "echo 'g++: error: unknown option' >&2; exit 1")
    make_compiler("clang++", f'exec /usr/bin/{real} "$@"')
    opened = open_library([source], [])
    assert not isinstance(opened, str)
    assert opened.library.three() == 3
    assert opened.compiler == "clang++"


def test_what_compilers_complain_of_is_told(source: Path, make_compiler: MakeCompiler) -> None:
    for name in ("g++", "clang++", "c++"):
        make_compiler(name, f"echo 'a warning' >&2; echo '{name}: error: no -mavx' >&2; exit 1")
    assert open_library([source], []) == (
        "it could not be compiled with `g++` (g++: error: no -mavx)"
    )


def test_another_version_of_the_compiler_makes_another_library(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("12.1", "13.2"):
        monkeypatch.setattr(native_compiling, "_version", lambda _, version=version: version)
        assert isinstance(open_library([source], []), Opened)
    assert len(list((cache_folder() / "native").iterdir())) == 2


def test_a_compiler_may_be_named_with_words_behind_it(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", f"{real_compiler()} -O1")
    assert isinstance(open_library([source], []), Opened)


def test_a_folder_from_which_nothing_may_be_run_is_told_and_compiled_in_once(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(file: str) -> None:
        raise OSError(f"{file}: failed to map segment from shared object")

    made: list[Path] = []
    compiled = native_compiling._compiled
    monkeypatch.setattr(ctypes, "CDLL", forbidden)
    for _ in range(2):
        found = open_library([source], [])
        assert isinstance(found, str)
        assert found.startswith("it could not be loaded (")
        assert "in `LUSHAN_CACHE`" in found
        made.append(compiled(real_compiler(), [source], []))
    assert len({each.stat().st_mtime_ns for each in made}) == 1


def test_a_broken_library_that_another_process_removed_is_made_anew(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ctypes.CDLL
    tried: list[str] = []

    def opened_once_broken(file: str) -> ctypes.CDLL:
        tried.append(file)
        if len(tried) > 1:
            return real(file)
        Path(file).unlink()
        raise OSError("file too short")

    monkeypatch.setattr(ctypes, "CDLL", opened_once_broken)
    opened = open_library([source], [])
    assert not isinstance(opened, str)
    assert opened.library.three() == 3
