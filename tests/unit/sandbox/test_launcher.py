"""The new process: what an ending is called, and what stands in where the kernel has no filter."""

import sys

import pytest

from lushan.sandbox import launcher


@pytest.fixture(autouse=True)
def own_main(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give back what a program takes: the main module and the arguments."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    monkeypatch.setattr(sys, "argv", sys.argv)


@pytest.mark.parametrize(
    ("program", "detail"),
    [
        ("assert 1 == 2, 'not equal'", "AssertionError: not equal"),
        ("x = (", "SyntaxError: '(' was never closed"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import sys\nsys.exit(0)", "SystemExit: 0, before its end"),
        ("raise SystemExit", "SystemExit: None, before its end"),
        ("raise ValueError('\u00e9' * 10_000)", ("ValueError: " + "\u00e9" * 500)[:500]),
    ],
)
def test_failure_is_told_by_the_last_line(program: str, detail: str) -> None:
    assert launcher.run_program(program) == {"outcome": "failed", "detail": detail}


def test_program_is_the_main_module() -> None:
    program = (
        "from dataclasses import dataclass\n@dataclass\nclass Point:\n    x: int\n"
        "import sys\nassert __name__ == '__main__' and sys.modules['__main__'].Point(1) == Point(1)"
    )
    assert launcher.run_program(program) == {"outcome": "passed"}


def test_memory_error_is_no_failure_of_the_program() -> None:
    with pytest.raises(MemoryError):
        launcher.run_program("raise MemoryError")
