"""What scripts and people rely on by name. After a wanted change: `python tests/contract/snapshots.py`."""

import json
import pkgutil
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

import lushan
from lushan.catalog import names_in
from lushan.cli.main import build_app, command_names
from lushan.settings import Settings

FOLDER = Path(__file__).parent


def public_names() -> dict[str, Any]:
    """Give the public functions, the tasks, the models, and the commands with their options."""
    sources = import_module("lushan.backbones.sources")
    return {
        "python": sorted(lushan.__all__),
        "tasks": names_in("lushan.tasks"),
        "models": sorted(sources.CATALOG),
        "commands": command_options(),
    }


def command_options() -> dict[str, list[str]]:
    """Give the options and arguments of every command, by its words, such as `models get`."""
    program = typer.main.get_command(build_app(command_names()))
    return dict(sorted(_options_of(program, prefix=()).items()))


def _options_of(command: object, *, prefix: tuple[str, ...]) -> dict[str, list[str]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        names = [
            name for each in vars(command)["params"] for name in (*each.opts, *each.secondary_opts)
        ]
        return {" ".join(prefix): sorted(name for name in names if name != "--help")}
    found: dict[str, list[str]] = {}
    for name, each in inner.items():
        found |= _options_of(each, prefix=(*prefix, name))
    return found


def setting_names() -> dict[str, list[str]]:
    """Give the settings of every part, by the name of its class."""
    for module in pkgutil.walk_packages(lushan.__path__, "lushan."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    ours = [part for part in Settings.__subclasses__() if part.__module__.startswith("lushan.")]
    parts = sorted(ours, key=lambda part: part.__name__)
    return {part.__name__: list(part.model_fields) for part in parts}


def stored(name: str) -> dict[str, Any]:
    """Read one snapshot."""
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def store(name: str, value: dict[str, Any]) -> None:
    """Write one snapshot, one name a line so that a change is easy to see."""
    (FOLDER / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    store("names.json", public_names())
    store("settings.json", setting_names())
