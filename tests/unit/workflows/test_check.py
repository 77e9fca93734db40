"""The pre-flight: with and without a model."""

from pathlib import Path

import pytest

from lushan.errors import DataError, ModelError
from lushan.workflows.check import check
from lushan.workflows.recipe import make_recipe
from tests.bad_inputs import good_rows, write_lines
from tests.conftest import MakeTiny


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "data.jsonl", good_rows())


def test_without_a_model_rows_are_counted_and_the_missing_tokens_told(data: Path) -> None:
    told: list[str] = []
    findings = check(data, make_recipe(None, {}, []), tell=told.append)
    assert findings["num_examples"] == {"train": 34, "validation": 4, "test": 10}
    assert findings["ledger"]["splits"]["train"]["total"]["num_tokens"] == 0
    assert told == findings["notes"]
    assert "Tokens were not counted. Model `SmolLM2-135M-Instruct`" in told[-1]


def test_a_model_that_was_asked_for_must_be_there(data: Path) -> None:
    recipe = make_recipe(None, {"model": {"name": "SmolLM2-135M-Instruct"}}, [])
    with pytest.raises(ModelError, match="lushan models get SmolLM2-135M-Instruct"):
        check(data, recipe, tell=lambda _: None)


def test_with_a_model_every_token_is_counted(data: Path, tiny_folder: MakeTiny) -> None:
    recipe = make_recipe(None, {"model": {"name": str(tiny_folder("llama"))}}, [])
    splits = check(data, recipe, tell=lambda _: None)["ledger"]["splits"]
    for split in splits.values():
        assert split["total"]["num_tokens"] > split["total"]["num_examples"]
        assert split["total"]["num_supervised"] == split["total"]["num_examples"]


def test_a_text_that_is_too_long_blocks_or_is_told_to_be_cut(
    data: Path, tiny_folder: MakeTiny
) -> None:
    model = {"name": str(tiny_folder("llama")), "max_length": 8}
    with pytest.raises(DataError, match="tokens"):
        check(data, make_recipe(None, {"model": model}, []), tell=lambda _: None)
    told: list[str] = []
    cut = make_recipe(None, {"model": model}, ["data.over_length=truncate"])
    check(data, cut, tell=told.append)
    assert "would be cut" in told[-1]
