"""Lushan adapts a pretrained GPT to your task, proves that it got better, serves it, and keeps it good."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lushan.errors import LushanError, UserError
    from lushan.records import Prediction
    from lushan.workflows.estimator import GPTClassifier
    from lushan.workflows.notebook import augment, check, compare, evaluate, export, load, tune

__version__ = "0.1.0"

__all__ = [
    "GPTClassifier",
    "LushanError",
    "Prediction",
    "UserError",
    "augment",
    "check",
    "compare",
    "evaluate",
    "export",
    "load",
    "tune",
]

_PLACES = {
    "LushanError": "lushan.errors",
    "UserError": "lushan.errors",
    "GPTClassifier": "lushan.workflows.estimator",
    "Prediction": "lushan.records",
    "augment": "lushan.workflows.notebook",
    "check": "lushan.workflows.notebook",
    "compare": "lushan.workflows.notebook",
    "evaluate": "lushan.workflows.notebook",
    "export": "lushan.workflows.notebook",
    "load": "lushan.workflows.notebook",
    "tune": "lushan.workflows.notebook",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: `import lushan` alone loads no torch."""
    if name not in _PLACES:
        raise AttributeError(f"module `lushan` has no attribute `{name}`")
    return getattr(importlib.import_module(_PLACES[name]), name)
