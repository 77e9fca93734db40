"""A recipe from a file, flags and `--set`."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lushan.errors import SettingError
from lushan.workflows.recipe import (
    TuneRecipe,
    is_same_model,
    make_recipe,
    parse_adapter,
    parse_budget,
    with_added_path,
    with_model_path,
)


def test_nothing_given_is_the_default_recipe() -> None:
    assert make_recipe(None, {"task": None, "model": {"name": None}}, []) == TuneRecipe()


def test_flags_win_over_the_file_and_set_wins_over_flags(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("seed: 1\neffort: quick\ntraining: {epochs: 1, momentum: 0.5}\n", "utf-8")
    made = make_recipe(file, {"seed": 2, "training": {"epochs": 2}}, ["training.epochs=3"])
    assert (made.effort, made.seed) == ("quick", 2)
    assert (made.training.epochs, made.training.momentum) == (3, 0.5)


def test_saved_recipe_gives_the_same_recipe(tmp_path: Path) -> None:
    made = make_recipe(None, {"adapter": {"method": "lora"}}, ["data.columns.text=body"])
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(made.model_dump()), encoding="utf-8")
    assert make_recipe(tmp_path / "recipe.yaml", {}, []) == made


def test_patience_of_nothing_counts_as_given_from_a_file_set_and_python(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("training: {patience: null, epochs: null}\n", "utf-8")
    nothing = {"training": {"patience": None, "epochs": None}}
    recipes = [
        make_recipe(tmp_path / "mine.yaml", {}, []),
        make_recipe(None, {}, ["training.patience=None"]),
        make_recipe(None, nothing, []),
    ]
    assert all("patience" in each.training.model_fields_set for each in recipes)
    assert recipes[-1].training.model_fields_set == {"patience"}  # an option that was not given


def test_unknown_setting_in_a_file_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("training: {epoch: 3}\n", encoding="utf-8")
    with pytest.raises(SettingError, match=r"mine\.yaml: unknown setting `training\.epoch`"):
        make_recipe(tmp_path / "mine.yaml", {}, [])


def test_unknown_setting_on_the_command_line_names_set() -> None:
    with pytest.raises(SettingError, match=r"--set: unknown setting `training\.epoch`.*epochs"):
        make_recipe(None, {}, ["training.epoch=3"])


def test_wrong_option_is_not_put_down_to_set_or_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("seed: 1\n", encoding="utf-8")
    with pytest.raises(SettingError, match=r"^options: setting `training\.epochs` is wrong"):
        make_recipe(tmp_path / "mine.yaml", {"training": {"epochs": 0}}, ["effort=quick"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("full", {"method": "full"}),
        ("lora", {"method": "lora"}),
        ("head", {"method": "head"}),
        ("top:4", {"method": "top", "layers": 4}),
    ],
)
def test_adapter_is_read(text: str, expected: dict[str, Any]) -> None:
    assert parse_adapter(text) == expected


@pytest.mark.parametrize("text", ["top", "top:", "top:-1", "LoRA", "", "top:2.5"])
def test_adapter_that_is_none_is_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(SettingError, match=rf"`--adapter {text}`: expected `full`, `lora`"):
        parse_adapter(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90.0), ("8m", 480.0), ("1h", 3600.0), ("1.5h", 5400.0)]
)
def test_budget_is_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["8", "0m", "-1m", "8 m", "8min", "", "m"])
def test_budget_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match=rf"`--budget {text}`: expected a time such as `90s`"):
        parse_budget(text)


def test_model_that_is_a_folder_is_named_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "base").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    made = make_recipe(None, {"model": {"name": "../models/base", "precision": "fp32"}}, [])
    found = with_model_path(made, out=Path("run"))
    assert found.model.name == str((tmp_path / "models" / "base").resolve())
    assert found.model.precision == "fp32"
    assert is_same_model(found.model.name, "../models/base")
    assert not is_same_model(found.model.name, "../models")


def test_run_that_would_be_taken_for_its_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = make_recipe(None, {"model": {"name": "SmolLM2"}}, [])
    assert with_model_path(made, out=Path("runs/SmolLM2")) is made
    assert with_model_path(made) is made
    with pytest.raises(SettingError, match=r"taken for the model `SmolLM2`.*Name another folder"):
        with_model_path(made, out=tmp_path / "SmolLM2")


@pytest.mark.parametrize(
    ("said", "label"),
    [("1", "1"), ("good", "good"), ('"yes"', "yes"), ('"1"', "1"), ("'1.0'", "1.0")],
)
def test_positive_label_may_be_a_number_as_tables_have_it(said: str, label: str) -> None:
    recipe = make_recipe(None, {}, [f"task_settings.positive_label={said}"])
    assert recipe.task_settings.positive_label == label
    with pytest.raises(SettingError, match=r"`task_settings\.positive_label` is wrong: .*Got True"):
        make_recipe(None, {}, ["task_settings.positive_label=yes"])


@pytest.mark.parametrize(("said", "column"), [("0", "0"), ('"0"', "0"), ("'1.5'", "1.5")])
def test_column_may_be_called_by_a_number(said: str, column: str) -> None:
    assert make_recipe(None, {}, [f"data.columns.text={said}"]).data.columns == {"text": column}
    from_python = make_recipe(None, {"data": {"columns": {"text": 0}}}, [])
    assert from_python.data.columns == {"text": "0"}


def test_added_rows_are_named_by_their_whole_path_once_they_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = make_recipe(None, {}, ["data.added=new.jsonl"])
    assert with_added_path(made).data.added == "new.jsonl"
    Path("new.jsonl").touch()
    found = with_added_path(made)
    assert found.data.added == str((tmp_path / "new.jsonl").resolve())
    assert found.data.model_fields_set == {"added"}


def test_layers_of_top_must_be_positive() -> None:
    with pytest.raises(SettingError, match=r"`adapter\.layers` is wrong: .*Got 0\."):
        make_recipe(None, {"adapter": parse_adapter("top:0")}, [])
