"""A cache of the run's own, and tiny models that are built once per run."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

MakeTiny = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _own_cache(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if request.node.get_closest_marker("slow") is None:  # slow tests use the real models
        monkeypatch.setenv("LUSHAN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> MakeTiny:
    """Give a function from a model type to a folder with a tiny random model; built once per run."""

    from tests.tiny import write_tiny  # imports torch, which most tests do without

    @cache
    def build(model_type: str) -> Path:
        folder = tmp_path_factory.mktemp(f"tiny-{model_type}")
        write_tiny(model_type, folder)
        return folder

    return build
