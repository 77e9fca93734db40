"""Every setting is documented, counted, and read by the code."""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import lushan
from lushan.settings import Settings

PACKAGE = Path(lushan.__file__).parent
MAX_SETTINGS = 12


def all_settings() -> list[type[Settings]]:
    """List the settings classes of all modules."""
    for module in pkgutil.walk_packages(lushan.__path__, "lushan."):
        if "settings" in Path(str(module.name).replace(".", "/")).name or "recipe" in module.name:
            importlib.import_module(module.name)
    return sorted(Settings.__subclasses__(), key=lambda each: each.__name__)


PARTS = all_settings()


def attributes_read() -> Iterator[str]:
    """Give every attribute that the package reads, outside the definitions of settings."""
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        yield from (node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute))


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_every_setting_has_its_documentation_below_it(part: type[Settings]) -> None:
    undocumented = [name for name, field in part.model_fields.items() if not field.description]
    assert undocumented == []
    assert part.__doc__


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_part_has_at_most_12_settings(part: type[Settings]) -> None:
    assert len(part.model_fields) <= MAX_SETTINGS


def test_no_setting_that_nothing_reads() -> None:
    read = set(attributes_read())
    unread = [
        f"{part.__name__}.{name}"
        for part in PARTS
        for name in part.model_fields
        if name not in read
    ]
    assert unread == []


def test_there_are_settings() -> None:
    assert PARTS != []
