"""Files, functions and classes stay small enough to read, and names say what is inside."""

import ast
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
ALL_CODE = [*SOURCES, *TESTS]
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_TEST_LINES = 25
MAX_CLASS_LINES = 250
MAX_METHODS = 12
DRAWERS = {"utils", "util", "misc", "common", "helpers", "helper", "stuff", "tools"}

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def functions_in(file: Path) -> Iterator[FunctionNode]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    yield from (node for node in ast.walk(tree) if isinstance(node, FunctionNode))


def num_body_lines(function: FunctionNode) -> int:
    """Count the lines of a function below its signature and its docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if not body:
        return 0
    return (body[-1].end_lineno or 0) - body[0].lineno + 1


@pytest.mark.parametrize("file", ALL_CODE, ids=name_of)
def test_file_has_at_most_500_lines(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_code_is_ascii(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    assert [number for number, line in enumerate(lines, start=1) if not line.isascii()] == []


@pytest.mark.parametrize("file", TESTS, ids=name_of)
def test_test_code_is_ascii_outside_of_its_texts(file: Path) -> None:
    with tokenize.open(file) as lines:
        tokens = list(tokenize.generate_tokens(lines.readline))
    texts = {tokenize.STRING, tokenize.NEWLINE, tokenize.NL}
    words = [token for token in tokens if token.type not in texts]
    assert [word.start for word in words if not word.string.isascii()] == []


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_function_body_has_at_most_60_lines(file: Path) -> None:
    lengths = {function.name: num_body_lines(function) for function in functions_in(file)}
    assert {name: n for name, n in lengths.items() if n > MAX_FUNCTION_LINES} == {}


@pytest.mark.parametrize("file", sorted((ROOT / "tests").rglob("test_*.py")), ids=name_of)
def test_test_has_at_most_25_lines(file: Path) -> None:
    tests = [function for function in functions_in(file) if function.name.startswith("test_")]
    lengths = {test.name: num_body_lines(test) for test in tests}
    assert {name: n for name, n in lengths.items() if n > MAX_TEST_LINES} == {}


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_class_has_at_most_250_lines_and_12_methods(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            parts = [part for part in node.body if isinstance(part, FunctionNode)]
            methods = [part.name for part in parts if not part.name.startswith("__")]
            assert (node.end_lineno or 0) - node.lineno < MAX_CLASS_LINES, node.name
            assert len(methods) <= MAX_METHODS, node.name


@pytest.mark.parametrize("file", ALL_CODE, ids=name_of)
def test_no_drawer_for_everything(file: Path) -> None:
    words = {
        word for part in file.relative_to(ROOT).with_suffix("").parts for word in part.split("_")
    }
    assert words & DRAWERS == set()
