"""Importing is cheap and has no effects; what is public is listed."""

import ast
import importlib
import importlib.metadata
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

import lushan

HEAVY = ["numpy", "pandas", "peft", "pydantic", "scipy", "sklearn", "torch", "transformers"]
UNUSED = [
    "gradio",
    "matplotlib",
    "pandas",
    "peft",
    "pyarrow",
    "rouge_score",
    "sacrebleu",
    "sklearn",
]
"""Of no use before a server is ready, or a run has begun."""
MODULES = [
    module.name
    for module in pkgutil.walk_packages(lushan.__path__, "lushan.")
    if not module.name.endswith("__main__")
]


def heavy_modules_after(code: str, heavy: Sequence[str] = HEAVY) -> list[str]:
    """Run code in a fresh process and tell which of these modules it imported."""
    program = (
        f"{code}\nimport sys\nprint('loaded', *(name for name in {heavy} if name in sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    return ran.stdout.splitlines()[-1].split()[1:]


def test_import_lushan_imports_nothing_heavy() -> None:
    assert heavy_modules_after("import lushan") == []


def test_help_imports_nothing_heavy() -> None:
    assert heavy_modules_after("from lushan.cli.main import run; run(['--help'])") == []


def test_unknown_option_imports_nothing_heavy() -> None:
    assert heavy_modules_after("from lushan.cli.main import run; run(['--unknown'])") == []


@pytest.mark.parametrize(
    ("modules", "unused"),
    [
        ("lushan.serving.server, lushan.tasks.choice", [*UNUSED, "alembic"]),
        ("lushan.workflows.tune, lushan.tasks.classification", [*UNUSED, "fastapi", "sqlalchemy"]),
    ],
    ids=["serve", "tune"],
)
def test_command_imports_nothing_that_it_does_not_use(modules: str, unused: list[str]) -> None:
    assert heavy_modules_after(f"import {modules}", unused) == []


def test_open_store_of_the_newest_schema_imports_no_migrations(tmp_path: Path) -> None:
    opening = f"from lushan.database.connect import open_database as o; o({str(tmp_path)!r}, create=True).close()"
    assert heavy_modules_after(opening, ["alembic"]) == ["alembic"]
    assert heavy_modules_after(opening, ["alembic"]) == []


def test_import_lushan_changes_no_environment_and_no_warning_filter() -> None:
    code = (
        "import os, warnings; before = dict(os.environ), list(warnings.filters); import lushan; "
        "assert before == (dict(os.environ), list(warnings.filters))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("module", MODULES)
def test_module_can_be_imported(module: str) -> None:
    importlib.import_module(module)


def test_public_names_are_complete_sorted_and_there() -> None:
    assert list(lushan.__all__) == sorted(lushan.__all__)
    assert [name for name in lushan.__all__ if not hasattr(lushan, name)] == []


def test_every_public_name_that_the_package_defines_is_listed() -> None:
    tree = ast.parse(Path(lushan.__file__).read_text(encoding="utf-8"))
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    public = {name for name in defined if not name.startswith("_")}
    assert public <= set(lushan.__all__)


def test_every_dependency_is_imported_somewhere() -> None:
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {re.split(r"[<>=~!\[ ]", each)[0] for each in project["dependencies"]}
    trees = [ast.parse(file.read_text("utf-8")) for file in (root / "src").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {x.name for node in nodes if isinstance(node, ast.Import) for x in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    known = importlib.metadata.packages_distributions()
    imported = {each for name in names for each in known.get(name.partition(".")[0], ())}
    assert needed - {each.casefold().replace("_", "-") for each in imported} == set()
