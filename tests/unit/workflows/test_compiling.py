"""A run uses compiled layers from its first step to its last, or never, whoever asks and however often it is resumed."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lushan.backbones import compiling
from lushan.backbones.adapters import attach
from lushan.backbones.load import Backbone, load_backbone
from lushan.errors import RunError, SettingError
from lushan.training.loop import Evaluated, StepDone
from lushan.training.processes import Team
from lushan.workflows import compiling as workflow
from lushan.workflows.compiling import compiled_layers
from lushan.workflows.recipe import TuneRecipe, make_recipe
from lushan.workflows.tune import tune
from tests.bad_inputs import good_rows, write_lines
from tests.conftest import MakeTiny
from tests.runs import answers_of_this_process, read, read_steps

pytestmark = [
    pytest.mark.filterwarnings(each)
    for each in (
        "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",  # torch imports it
        "ignore:The .grad attribute of a Tensor:UserWarning",  # torch looks itself
    )
]
needs_compiler = pytest.mark.skipif(
    compiling.find_compiler() is None, reason="no C++ compiler here, so nothing can be compiled"
)


class StoppedError(Exception):
    """Ends a run from outside."""


class StopAt:
    """A listener that stops a run after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, done: StepDone) -> None:
        if done.step == self.step:
            raise StoppedError

    def on_evaluation(self, epoch: int, step: int, found: Evaluated) -> None:
        """Nothing to do."""


def recipe_of(base: Path, *, compile_layers: bool) -> TuneRecipe:
    training = {"epochs": 2, "learning_rate": 0.01, "head_learning_rate": 0.01}
    model = {"name": str(base), "precision": "fp32"}
    values = {"model": model, "training": training, "engine": {"compile": compile_layers}}
    return make_recipe(None, {**values, "baselines": False}, [])


@pytest.mark.parametrize(
    ("missing", "found", "told"),
    [
        ("", None, None),
        ("", "products-1", None),
        ("no compiler", "", None),
        ("no compiler", "products-1", "which it cannot now: no compiler"),
        ("", "", "`CXX=none`"),
        ("", "products-2", "(`products-2`) that are not those of now (`products-1`)"),
    ],
)
@pytest.mark.parametrize(("precision", "optimizer"), [("bf16", "sgd"), ("fp32", "adamw")])
def test_run_goes_on_only_with_the_functions_that_it_began_with(
    missing: str,
    found: str | None,
    told: str | None,
    *,
    precision: str,
    optimizer: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workflow.native, "why_missing", lambda: missing)
    monkeypatch.setattr(workflow.native, "identity", lambda: "products-1")
    flags = {"model": {"precision": precision}, "training": {"optimizer": optimizer}}
    recipe = make_recipe(None, flags, [])
    if told is None:
        heard: list[str] = []
        name = workflow.library_of(recipe, found=found, tell=heard.append)
        assert name == ("" if missing else "products-1")
        assert all(missing in each for each in heard)
        assert len(heard) == bool(missing)
    else:
        with pytest.raises(RunError, match=re.escape(told)):
            workflow.library_of(recipe, found=found)


@pytest.mark.parametrize(("optimizer", "is_spread"), [("sgd", False), ("adamw", True)])
def test_what_needs_no_functions_goes_on_without(
    optimizer: str, is_spread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflow.native, "why_missing", lambda: "")
    monkeypatch.setattr(Team, "place", (0, 2))
    flags = {
        "model": {"precision": "fp32"},
        "training": {"optimizer": optimizer},
        "engine": {"spread_layers": is_spread},
    }
    assert not workflow.library_of(make_recipe(None, flags, []), found="")


def load(folder: Path) -> Backbone:
    backbone = load_backbone(folder, purpose="classify", labels=("a", "b"))
    attach(backbone, method="full")
    return backbone


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "reviews.jsonl", good_rows())


@needs_compiler
def test_resumed_run_goes_on_with_compiled_layers_to_the_same_steps(
    data: Path,
    tiny_folder: MakeTiny,
    tmp_path: Path,
    *,
    compiled_code: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(compiled_code))
    monkeypatch.setattr("lushan.training.checkpoint.LEAST_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr("lushan.training.checkpoint.SPENT_FRACTION", 1e9)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # it would stay for other tests
    monkeypatch.setattr(
        "lushan.model_store.certificate._answers_of_fresh_process", answers_of_this_process
    )
    recipe = recipe_of(tiny_folder("llama"), compile_layers=True)
    told: list[str] = []
    whole = tune(data, recipe, out=tmp_path / "whole", tell=told.append)
    assert any(line.startswith("Compiled 2 layers") for line in told)
    assert whole["seconds"]["compile"] > 0
    seconds = whole["seconds"]["train"] + whole["seconds"]["compile"]
    assert whole["train_tokens_per_second"] == pytest.approx(whole["num_train_tokens"] / seconds)

    options: dict[str, Any] = {"out": tmp_path / "cut", "tell": told.append}
    with pytest.raises(StoppedError):
        tune(data, recipe, **options, listeners=[StopAt(2)])
    assert read(tmp_path / "cut" / "run.json")["compiled"] is True
    tune(data, recipe, **options, resume=True)
    assert read_steps(tmp_path / "cut") == read_steps(tmp_path / "whole")


def test_run_goes_on_without_compiled_layers_if_it_began_so(tiny_folder: MakeTiny) -> None:
    base = tiny_folder("llama")
    recipe = recipe_of(base, compile_layers=True)
    options: dict[str, Any] = {"gain_decides": True, "tell": print}
    assert compiled_layers(load(base), recipe, found=False, **options) is None
    assert compiled_layers(load(base), recipe_of(base, compile_layers=False), **options) is None


def test_run_that_began_with_compiled_layers_stops_where_they_cannot_be_compiled(
    tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflow, "compile_layers", lambda *_, **__: None)
    base = tiny_folder("llama")
    recipe = recipe_of(base, compile_layers=True)
    assert compiled_layers(load(base), recipe, gain_decides=False, tell=print) is None
    with pytest.raises(RunError, match="cannot be compiled now"):
        compiled_layers(load(base), recipe, found=True, gain_decides=False, tell=print)


def test_compiling_that_is_asked_for_without_a_compiler_is_refused(
    data: Path, tiny_folder: MakeTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "find_compiler", lambda: None)
    recipe = recipe_of(tiny_folder("llama"), compile_layers=True)
    with pytest.raises(SettingError, match=r"`engine.compile` is on, but there is no C\+\+"):
        tune(data, recipe, out=tmp_path / "run", tell=print)
    assert not (tmp_path / "run").exists()
