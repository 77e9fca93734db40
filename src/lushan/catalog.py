"""From names to code: a folder is its own table, and nothing is imported before it is asked for."""

import importlib
import pkgutil
from typing import Any

from lushan.errors import SettingError


def names_in(package: str) -> list[str]:
    """List the modules of a folder, such as the tasks in `lushan.tasks`; imports only the folder itself."""
    folder = importlib.import_module(package)
    return sorted(found.name for found in pkgutil.iter_modules(folder.__path__))


def load_baseline(name: str) -> Any:  # noqa: ANN401 - a module
    """Import one baseline by the name of its file."""
    return importlib.import_module(f"lushan.baselines.{name}")


def load_task(name: str) -> Any:  # noqa: ANN401 - the protocol lives one floor higher, in lushan.tasks
    """Import one task by the name of its file and make it.

    Raises:
        SettingError: If no file of that name exists; lists the known names.
    """
    if name not in (known := names_in("lushan.tasks")):
        raise SettingError(f"Unknown task `{name}`. Known: {', '.join(known)}.")
    return importlib.import_module(f"lushan.tasks.{name}").Task()
