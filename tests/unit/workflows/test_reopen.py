"""A run is taken up with the data and the model that it began with, or refused by what changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lushan.catalog import load_task
from lushan.errors import DataError, SettingError
from lushan.workflows.prepare import prepare
from lushan.workflows.recipe import TuneRecipe, make_recipe
from lushan.workflows.reopen import digests_of_base, same_setup
from lushan.workflows.setup import Setup
from tests.bad_inputs import good_rows, write_lines


class Begun(NamedTuple):
    """What a run was begun with, and what it noted of that."""

    data: Path
    base: Path
    recipe: TuneRecipe
    noted: dict[str, Any]

    def again(self, **noted: object) -> Setup:
        return same_setup(self.data, self.recipe, noted=self.noted | noted)


@pytest.fixture
def begun(own_llama: Path, tmp_path: Path) -> Begun:
    data = write_lines(tmp_path / "data.jsonl", good_rows())
    model = {"name": str(own_llama), "precision": "fp32", "max_length": 128}
    recipe = make_recipe(None, {"model": model}, [])
    fingerprint = prepare(data, task=load_task(recipe.task), recipe=recipe).fingerprint
    noted = {"fingerprint": fingerprint, **digests_of_base(own_llama)}
    return Begun(data, own_llama, recipe, noted)


def with_config(base: Path) -> None:
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}), "utf-8")


def with_tokenizer(base: Path) -> None:
    text = (base / "tokenizer.json").read_text(encoding="utf-8")
    (base / "tokenizer.json").write_text(text + "\n", encoding="utf-8")


def with_template(base: Path) -> None:
    (base / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")


def without_settings(base: Path) -> None:
    (base / "generation_config.json").unlink()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (with_config, "config.json"),
        (with_tokenizer, "tokenizer.json"),
        (with_template, "chat_template.jinja"),
        (without_settings, "generation_config.json"),
    ],
)
def test_model_of_which_a_file_changed_is_refused_by_its_name(
    change: Callable[[Path], None], name: str, begun: Begun
) -> None:
    assert begun.again().base == begun.base
    change(begun.base)
    with pytest.raises(SettingError, match=f"run began with: `{name}` changed. Restore it, or"):
        begun.again()


def test_run_of_an_earlier_version_knows_the_weights_alone(begun: Begun) -> None:
    with_config(begun.base)
    assert begun.again(base_files=None).base == begun.base
    with pytest.raises(SettingError, match=r"run began with: its weights changed\."):
        begun.again(base_files=None, base_digest="of others")


def test_other_data_are_refused(begun: Begun) -> None:
    write_lines(begun.data, good_rows()[1:])
    with pytest.raises(DataError, match="is not the data that the run began with"):
        begun.again()


def test_model_that_stands_elsewhere_is_the_same(begun: Begun, tmp_path: Path) -> None:
    assert digests_of_base(shutil.copytree(begun.base, tmp_path / "copy")) == {
        name: begun.noted[name] for name in ("base_digest", "base_files")
    }
