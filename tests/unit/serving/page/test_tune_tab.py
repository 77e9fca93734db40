"""What was filled in becomes a plan inside the store, or is refused."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from lushan.errors import DataError, ModelError, RunError
from lushan.serving.hosted import HostedModel
from lushan.serving.page import tune_tab
from lushan.serving.page.texts import Texts
from lushan.serving.page.tune_tab import Wish, begin_run, guess, plan_of
from lushan.serving.page.tuning import Plan, Tuner
from tests.unit.serving.page.conftest import MakeStudio


@pytest.fixture(autouse=True)
def _one_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_tab, "bases", lambda: [SimpleNamespace(name="tiny")])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    file = tmp_path / "my reviews.csv"
    file.write_text("review,sentiment\nGood,yes\n", encoding="utf-8")
    return file


def test_plan_stays_in_the_store_whatever_the_run_is_called(
    table: Path, tmp_path: Path, english: Texts
) -> None:
    store = tmp_path / "store"
    wish = Wish(str(table), "classification", "tiny", "quick", "../../--overwrite x")
    plans = [plan_of(wish, store, english) for _ in range(2)]
    assert plans[0].data == store / "uploads" / "my-reviews.csv"
    assert plans[0].out == store / "runs" / "overwrite-x"
    assert plans[1].data == store / "uploads" / "my-reviews-2.csv"


def test_run_of_a_name_that_is_taken_gets_a_number(
    table: Path, tmp_path: Path, english: Texts
) -> None:
    (tmp_path / "runs" / "reviews").mkdir(parents=True)
    wish = Wish(str(table), "classification", "tiny", "quick", "reviews")
    assert plan_of(wish, tmp_path, english).out.name == "reviews-2"


class StillTuner(Tuner):
    def start(self, plan: Plan) -> None:
        self.plan = plan


def test_run_with_the_name_of_a_served_model_gets_a_number(
    table: Path, make_studio: MakeStudio, tuned: HostedModel, english: Texts
) -> None:
    studio = replace(make_studio(replace(tuned, name="reviews")), tuner=StillTuner())
    begin_run(Wish(str(table), "classification", "tiny", "quick", "reviews"), studio, english)
    assert studio.tuner.plan is not None
    assert studio.tuner.plan.out.name == "reviews-2"


class BusyTuner(Tuner):
    def start(self, plan: Plan) -> None:
        raise RunError(f"`{plan.out.name}` is being tuned.")


def test_table_of_a_run_that_cannot_begin_is_not_kept(
    table: Path, make_studio: MakeStudio, english: Texts
) -> None:
    studio = replace(make_studio(), tuner=BusyTuner())
    wish = Wish(str(table), "classification", "tiny", "quick", "reviews")
    with pytest.raises(RunError, match="is being tuned"):
        begin_run(wish, studio, english)
    assert list((studio.needed_store() / "uploads").iterdir()) == []
    assert table.is_file()


def test_plan_without_a_table_is_refused(tmp_path: Path, english: Texts) -> None:
    with pytest.raises(DataError, match="Choose a table first"):
        plan_of(Wish(None, "classification", "tiny", "quick", ""), tmp_path, english)


@pytest.mark.parametrize(
    "missing", [{"task": None}, {"model": "--out=/"}, {"effort": "endless"}, {"task": "--out=/"}]
)
def test_plan_without_a_choice_is_refused_and_keeps_nothing(
    missing: dict[str, str | None], table: Path, tmp_path: Path, english: Texts
) -> None:
    wish = Wish(str(table), "classification", "tiny", "quick", "")._replace(**missing)
    with pytest.raises(ModelError, match="Choose a table, a task and a model first"):
        plan_of(wish, tmp_path / "store", english)
    assert not (tmp_path / "store").exists()


def test_guess_names_the_task_and_the_run(table: Path, english: Texts) -> None:
    shown, task, name = guess(str(table), english)
    assert "review, sentiment" in shown
    assert (task, name) == ("classification", "my-reviews")


def test_guess_of_no_table_clears_what_was_guessed(english: Texts) -> None:
    assert guess(None, english) == ["", None, ""]
