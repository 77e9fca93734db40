"""Self-training: how sure a label must be, which rows stay, and when they are written."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from numpy.typing import NDArray

from lushan.errors import DataError, SettingError
from lushan.records import Example, Prediction
from lushan.workflows import self_training
from lushan.workflows.recipe import make_recipe
from lushan.workflows.self_training import (
    Threshold,
    choose_threshold,
    over_share,
    self_train,
)
from lushan.workflows.setup import Setup
from tests.bad_inputs import good_rows, write_lines
from tests.conftest import MakeTiny
from tests.unit.workflows.conftest import BuildSetup


def said(probabilities: Sequence[float]) -> list[Prediction]:
    return [Prediction("", "sea", {}, math.log(each)) for each in probabilities]


def test_threshold_is_the_lowest_that_halves_the_errors() -> None:
    generator = np.random.default_rng(0)
    sure = generator.uniform(0.5, 1.0, size=300)
    correct = (generator.random(300) < sure).astype(float)
    found = choose_threshold(said(sure.tolist()), correct.tolist())
    assert found is not None
    is_sure = sure >= found.probability - 1e-12
    assert found.num_validation_rows == is_sure.sum()
    assert found.error_fraction == pytest.approx(1 - correct[is_sure].mean())
    assert found.error_fraction <= (1 - correct.mean()) / 2
    lower = sorted(each for each in sure if each < found.probability - 1e-12)
    assert all((1 - correct[sure >= x].mean()) > (1 - correct.mean()) / 2 for x in lower)


def test_a_model_that_is_always_right_is_always_sure() -> None:
    found = choose_threshold(said([0.6] * 5 + [0.9] * 15), [1.0] * 20)
    assert found is not None
    assert (round(found.probability, 6), found.num_validation_rows) == (0.6, 20)


def test_errors_of_a_few_rows_make_no_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    sure = [0.5 + 0.01 * n for n in range(40)]
    correct = [float(n % 2) for n in range(36)] + [1.0] * 4
    assert choose_threshold(said(sure), correct) is None
    monkeypatch.setattr(self_training, "FEWEST_SURE_ROWS", 4)
    assert choose_threshold(said(sure), correct) is not None


def lowest(sure: NDArray[np.float64], correct: NDArray[np.float64]) -> Threshold | None:
    """Try one probability after the other."""
    for probability in np.unique(sure):
        errors = 1 - correct[sure >= probability]
        is_enough = len(errors) >= self_training.FEWEST_SURE_ROWS
        if is_enough and errors.mean() <= (1 - correct).mean() / 2:
            return Threshold(float(probability), len(errors), float(errors.mean()))
    return None


@pytest.mark.parametrize("num_rows", [1, 9, 10, 40, 300])
def test_threshold_is_what_trying_each_gives_also_where_rows_are_equally_sure(
    num_rows: int,
) -> None:
    generator = np.random.default_rng(num_rows)
    for _ in range(20):
        logs = np.log(generator.integers(1, 9, size=num_rows) / 8)
        correct = (generator.random(num_rows) < np.exp(logs)).astype(float)
        predictions = [Prediction("", "sea", {}, float(each)) for each in logs]
        assert choose_threshold(predictions, correct.tolist()) == lowest(np.exp(logs), correct)


def test_threshold_of_many_rows_is_found_at_once() -> None:
    generator = np.random.default_rng(0)
    sure = generator.uniform(0.5, 1.0, size=200_000)
    correct = (generator.random(len(sure)) < sure).astype(float)
    found = choose_threshold(said(sure.tolist()), correct.tolist())
    assert found is not None
    assert found.error_fraction <= (1 - correct.mean()) / 2


def test_no_label_gets_more_than_its_share_and_the_surest_stay() -> None:
    labels = ["sea"] * 8 + ["hill"] * 2
    sure = [0.9, 0.5, 0.8, 0.7, 0.6, 0.95, 0.55, 0.85, 0.4, 0.3]
    assert over_share(labels, sure, {"sea": 50, "hill": 50}) == {1, 4, 6}
    assert over_share(labels, sure, {"sea": 80, "hill": 20}) == set()


class SelfTrain(Protocol):
    """What `self_train_with` gives: the workflow, with answers as if a model had given them."""

    def __call__(self, *settings: str, keep: bool = False) -> dict[str, Any]: ...


TEXTS = [
    f"A {noun} near the station." for noun in ("whale", "crab", "goat", "eagle", "heron", "fox")
]


class Says:
    """A model that is sure of some texts, and right on every validation row."""

    def examine(self, examples: Sequence[Example]) -> list[Prediction]:
        return [Prediction(each.id, str(each.target), {}, math.log(0.8)) for each in examples]

    def predict(self, examples: Sequence[Example]) -> list[Prediction]:
        return [
            Prediction(each.id, "sea" if "whale" in each.text or "crab" in each.text else "hill", {},
                       math.log(0.9 if "fox" not in each.text else 0.6))
            for each in examples
        ]  # fmt: skip


@pytest.fixture
def self_train_with(
    tmp_path: Path, tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> SelfTrain:
    def run(*settings: str, keep: bool = False) -> dict[str, Any]:
        rows = good_rows()
        data = write_lines(tmp_path / "data.jsonl", rows)
        known = [{"text": rows[0]["text"].upper()}, {"text": TEXTS[0].upper()}]
        new = write_lines(tmp_path / "texts.jsonl", [*({"text": x} for x in TEXTS), *known])
        flags = {"model": {"name": str(tiny_folder("llama"))}, "training": {"epochs": 1}}
        settings = ("data.validation_fraction=0.4", "model.precision=fp32", *settings)
        recipe = make_recipe(None, flags, settings)
        monkeypatch.setattr(self_training, "tuned_apart", lambda *_, **__: (Says(), 1))
        return self_train(
            data, recipe, unlabelled=new, out=tmp_path / "new.jsonl", keep=keep, tell=lambda _: None
        )

    return run


@pytest.mark.parametrize(
    ("low", "keep", "is_written"), [(0.1, False, True), (0.0, False, False), (-0.1, True, True)]
)
def test_sure_rows_are_written_with_label_and_mark_where_they_clearly_help(
    low: float, keep: bool, is_written: bool, *, self_train_with: SelfTrain,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    gain = {"difference": {"value": low, "low": low, "high": 0.5}, "p_value": 0.01}
    monkeypatch.setattr(self_training, "measure_gain", lambda *_, **__: gain)
    found = self_train_with(keep=keep)
    gone = sum(found["dropped"].values())
    assert found["num_asked"] == len(TEXTS) + 2 == gone + found["num_new_rows"]
    assert found["dropped"]["unsure"] == 1
    assert found["dropped"]["repeats_new"] == 1
    assert (found["helps"], found["written"]) == (low > 0, is_written)
    assert (tmp_path / "new.jsonl").exists() == is_written
    if is_written:
        lines = (tmp_path / "new.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(each) for each in lines]
        assert {each["label"] for each in rows if "crab" in each["text"]} == {"sea"}
        assert all(each["augmented"] is True for each in rows)
        assert not any("fox" in each["text"] for each in rows)


def test_rows_that_were_added_before_count_by_themselves_and_set_no_shares(
    self_train_with: SelfTrain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    earlier = [{"text": f"A {x} by the mill.", "label": "sea", "augmented": True} for x in "abcdef"]
    file = write_lines(tmp_path / "earlier.jsonl", earlier)
    monkeypatch.setattr(self_training, "measure_gain", lambda *_, **__: None)
    shares: list[dict[str, int]] = []

    def nothing_over(_: object, __: object, counts: dict[str, int]) -> set[int]:
        shares.append(dict(counts))
        return set()

    monkeypatch.setattr(self_training, "over_share", nothing_over)
    found, plain = self_train_with(f"data.added={file}"), self_train_with()
    assert (found["num_added"], plain["num_added"]) == (len(earlier), 0)
    assert found["num_train_rows"] == plain["num_train_rows"]
    assert shares[0] == shares[1]


def test_whole_way_keeps_nothing_of_a_model_that_knows_nothing(
    tmp_path: Path, tiny_folder: MakeTiny
) -> None:
    data = write_lines(tmp_path / "data.jsonl", good_rows())
    new = write_lines(tmp_path / "texts.jsonl", [{"text": each} for each in TEXTS])
    flags = {"model": {"name": str(tiny_folder("llama"))}, "training": {"epochs": 1}}
    recipe = make_recipe(None, flags, ["model.precision=fp32", "data.validation_fraction=0.4"])
    out = tmp_path / "new.jsonl"
    found = self_train(data, recipe, unlabelled=new, out=out, tell=lambda _: None)
    assert found["num_asked"] == len(TEXTS)
    assert sum(found["dropped"].values()) + found["num_new_rows"] == len(TEXTS)
    assert (found["threshold"], found["num_new_rows"]) == (None, 0)
    assert not found["helps"]
    assert not found["written"]
    assert not out.exists()


@pytest.mark.parametrize(
    ("settings", "columns", "error", "message"),
    [
        (
            ["task=summarization"],
            ("document", "summary"),
            SettingError,
            "no label of a closed list",
        ),
        (["task_settings.multi_label=true"], ("text", "label"), SettingError, "several labels"),
    ],
)
def test_answers_that_no_probability_can_be_trusted_for_are_refused(
    settings: list[str], columns: tuple[str, str], error: type[Exception], message: str, *,
    tmp_path: Path, tiny_folder: MakeTiny,
) -> None:  # fmt: skip
    rows = [{columns[0]: each["text"], columns[1]: each["label"]} for each in good_rows()]
    data = write_lines(tmp_path / "data.jsonl", rows)
    recipe = make_recipe(None, {"model": {"name": str(tiny_folder("llama"))}}, settings)
    with pytest.raises(error, match=message):
        self_train(data, recipe, unlabelled=data, out=tmp_path / "new.jsonl", tell=lambda _: None)


def test_rows_too_long_for_the_model_are_found_before_anything_is_tuned(
    build_setup: BuildSetup, tmp_path: Path
) -> None:
    setup: Setup = build_setup()
    long = write_lines(tmp_path / "texts.jsonl", [{"text": "sea " * 1000}])
    with pytest.raises(DataError, match=r"texts\.jsonl, row 1"):
        self_training._read(long, setup, tell=lambda _: None)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path, tiny_folder: MakeTiny) -> None:
    data = write_lines(tmp_path / "data.jsonl", good_rows())
    recipe = make_recipe(None, {"model": {"name": str(tiny_folder("llama"))}}, [])
    gone, out = tmp_path / "gone.jsonl", tmp_path / "new.jsonl"
    with pytest.raises(DataError, match=r"`--unlabelled .*gone.jsonl`: there is no such file"):
        self_train(data, recipe, unlabelled=gone, out=out, tell=lambda _: None)
