"""A cache and a store of the test's own, and tiny models that are built once per run."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

MakeTiny = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _own_folders(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if request.node.get_closest_marker("slow") is None:  # slow tests use the real models
        monkeypatch.setenv("LUSHAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LUSHAN_STORE", str(tmp_path / "store"))


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


@pytest.fixture
def own_llama(tiny_folder: MakeTiny, tmp_path: Path) -> Path:
    """Give a folder that a test may spoil."""
    shutil.copytree(tiny_folder("llama"), tmp_path / "spoilt")
    return tmp_path / "spoilt"


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: MakeTiny) -> Path:
    """Give a finished run of a tiny llama, tuned on the column `words` of `reviews.jsonl` beside it."""
    from lushan.model_store import certificate
    from tests.bad_inputs import good_rows, write_lines
    from tests.runs import QUICK, answers_of_this_process, tune

    folder = tmp_path_factory.mktemp("tiny-run")
    rows = [{"words": row["text"], "label": row["label"]} for row in good_rows()]
    data = write_lines(folder / "reviews.jsonl", rows)
    options = ("--model", str(tiny_folder("llama")), "--set", "data.columns.text=words")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificate, "_answers_of_fresh_process", answers_of_this_process)
        assert tune(data, folder / "run", *QUICK, *options) == 0
    return folder / "run"


@pytest.fixture(scope="session")
def many_runs(tmp_path_factory: pytest.TempPathFactory, tiny_folder: MakeTiny) -> Path:
    """Give a folder with one run of each of `tests.many_runs.KINDS`, all tuned from a tiny llama."""
    from tests.many_runs import KINDS, save_run

    folder = tmp_path_factory.mktemp("many-runs")
    for name, kind in KINDS.items():
        save_run(folder / name, tiny_folder("llama"), kind)
    return folder


@pytest.fixture(scope="session")
def compiled_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder that keeps compiled code from test to test: making it takes seconds."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(params=["native", "torch"])
def maker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who computes what we have code of our own for."""
    from lushan.backbones import native

    if request.param == "torch":
        monkeypatch.setattr(native, "why_missing", lambda: "it is a test")
    elif reason := native.why_missing():
        pytest.skip(reason)
    return request.param
