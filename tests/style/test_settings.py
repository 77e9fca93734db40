"""Every setting is documented, counted, and read by the code."""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import lushan
from lushan.settings import Settings
from lushan.workflows.recipe import TuneRecipe

PACKAGE = Path(lushan.__file__).parent
MAX_SETTINGS = 12


def all_settings() -> list[type[Settings]]:
    """List the settings classes of all modules."""
    for module in pkgutil.walk_packages(lushan.__path__, "lushan."):
        if "settings" in Path(str(module.name).replace(".", "/")).name or "recipe" in module.name:
            importlib.import_module(module.name)
    return sorted(Settings.__subclasses__(), key=lambda each: each.__name__)


PARTS = all_settings()


def attributes_read() -> Iterator[tuple[str, str]]:
    """Give every attribute that the package reads, with the name of what it is read from."""
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                yield ast.unparse(node.value).rpartition(".")[2], node.attr


def names_of(part: type[Settings]) -> set[str]:
    """Give the words by which code calls settings of this part: `recipe.training`, `training`, `settings`."""
    words = {"settings", "recipe"} if part is TuneRecipe else {"settings"}
    return words | {
        name for name, field in TuneRecipe.model_fields.items() if field.annotation is part
    }


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_every_setting_has_its_documentation_below_it(part: type[Settings]) -> None:
    undocumented = [name for name, field in part.model_fields.items() if not field.description]
    assert undocumented == []
    assert part.__doc__


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_part_has_at_most_12_settings_and_as_many_parts(part: type[Settings]) -> None:
    parts = [name for name, x in part.model_fields.items() if x.annotation in PARTS]
    assert len(parts) <= MAX_SETTINGS
    assert len(part.model_fields) - len(parts) <= MAX_SETTINGS


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_part_has_no_setting_that_nothing_reads(part: type[Settings]) -> None:
    words = names_of(part)
    read = {name for reader, name in attributes_read() if any(word in reader for word in words)}
    assert set(part.model_fields) - read == set()


def test_there_are_settings() -> None:
    assert PARTS != []
