"""Runs up to the first step: checked rows as tokens of a tiny model, with nothing trained."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from tests.bad_inputs import good_rows, write_lines
from tests.conftest import MakeTiny

if TYPE_CHECKING:
    from lushan.workflows.setup import Setup


class BuildSetup(Protocol):
    """What `build_setup` gives: a setup of good rows, or of these, with settings by part."""

    def __call__(
        self,
        model_type: str = "llama",
        *,
        rows: Sequence[Mapping[str, Any]] | None = None,
        **settings: object,
    ) -> "Setup": ...


@pytest.fixture
def build_setup(tiny_folder: MakeTiny, tmp_path: Path) -> BuildSetup:
    """Give a function that sets a run up."""

    def build(
        model_type: str = "llama",
        *,
        rows: Sequence[Mapping[str, Any]] | None = None,
        **settings: object,
    ) -> "Setup":
        from lushan.backbones.tokenizer import Tokenizer
        from lushan.catalog import load_task
        from lushan.settings import merged
        from lushan.workflows.prepare import prepare
        from lushan.workflows.recipe import make_recipe
        from lushan.workflows.setup import make_setup

        base = tiny_folder(model_type)
        data = write_lines(tmp_path / "data.jsonl", [dict(row) for row in rows or good_rows()])
        known = {
            "model": {"name": str(base), "precision": "fp32", "max_length": 128},
            "training": {"epochs": 2, "learning_rate": 0.01, "head_learning_rate": 0.01},
        }
        recipe = make_recipe(None, merged(known, settings), [])
        task = load_task(recipe.task)
        prepared = prepare(data, task=task, recipe=recipe)
        return make_setup(prepared, recipe, task=task, base=base, tokenizer=Tokenizer.load(base))

    return build
