"""Tiny models with large weights: what they answer differs clearly from text to text, so that mistakes show."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import MakeTiny

MakeSharp = Callable[[str], Path]


@pytest.fixture(scope="session")
def sharp_folder(tiny_folder: MakeTiny, tmp_path_factory: pytest.TempPathFactory) -> MakeSharp:
    """Give a function from a model type to a folder with a tiny model whose weights are large."""
    import torch
    from safetensors.torch import load_file, save_file

    @cache
    def build(model_type: str) -> Path:
        folder = tmp_path_factory.mktemp(f"sharp-{model_type}") / "model"
        shutil.copytree(tiny_folder(model_type), folder)
        weights = load_file(folder / "model.safetensors")
        generator = torch.Generator().manual_seed(1)
        for name, weight in sorted(weights.items()):
            if weight.ndim == 2:
                weights[name] = torch.randn(weight.shape, generator=generator) * 0.4
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return build
