"""How much is trained within a wall time, and what is told where asking alone takes longer."""

from dataclasses import replace
from typing import Any

import pytest

from lushan.backbones.inspect import Family, ModelFacts
from lushan.catalog import load_task
from lushan.workflows import budget
from lushan.workflows.budget import Plan, Workload, count_readings, limit_of, plan_training
from lushan.workflows.recipe import TuneRecipe, make_recipe
from tests.unit.workflows.test_resolve import FACTS


def facts(family: Family = "decoder") -> ModelFacts:
    return replace(FACTS, family=family)


@pytest.fixture(autouse=True)
def _known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rows of 20 tokens are trained on in a second, and fifteen read."""
    monkeypatch.setattr(budget, "predict_tokens_per_second", lambda *_, **__: 100.0)


def recipe_of(**values: object) -> TuneRecipe:
    return make_recipe(None, values, [])


def plan(work: Workload, **values: object) -> Plan:
    return plan_training(recipe_of(**values), facts(), work, precision="fp32")


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def test_rows_get_what_asking_about_validation_and_test_rows_leaves() -> None:
    work = Workload(5_000, 20.0, num_validation_rows=600, num_test_rows=2_100, num_readings=2)
    found = plan(work, budget_seconds=600.0)
    # 3,000 rows in the time, less 2,100 * 2 / 3 and three times 600 / 3.
    assert found.max_train_rows == 1_000 // 3
    assert "about 400 s to ask about validation and test rows" in found.why_rows
    assert found.notes == ()


def test_epochs_of_few_rows_count_the_validation_after_each() -> None:
    few = Workload(50, 20.0)
    assert plan(few, budget_seconds=200.0).epochs == 10
    watched = few._replace(num_validation_rows=300)
    assert plan(watched, budget_seconds=200.0).epochs == 6  # each takes 50 + 100 of 1,000


def test_asking_that_takes_longer_than_the_budget_is_told_with_its_minutes_and_what_helps() -> None:
    work = Workload(5_000, 20.0, num_validation_rows=300, num_test_rows=25_000, num_readings=3)
    found = plan(work, budget_seconds=600.0)
    assert found.max_train_rows == 250  # a quarter of the time
    (note,) = map(plain, found.notes)
    assert "may take longer than the 10 min 0 s of `--budget`: training about 2 min 30 s" in note
    assert "300 validation rows after each of 3 epochs about 1 min 0 s" in note
    assert "reading 25,000 test rows 3 time(s) about 1 h 23 min" in note
    assert "`--no-baselines`; fewer test rows" in note
    bare = plan(work._replace(num_readings=2), budget_seconds=600.0, baselines=False)
    assert "`--no-baselines`" not in bare.notes[0]


def test_quick_run_is_told_of_as_such_and_one_without_a_budget_not_at_all() -> None:
    work = Workload(500, 20.0, num_test_rows=25_000)
    (note,) = map(plain, plan(work, effort="quick").notes)
    assert "the 6 min 0 s of `--effort quick`" in note
    assert "a longer time, such as `--budget 1h`" in note
    assert plan(work).notes == ()
    assert plan(work).max_train_rows is None


@pytest.mark.parametrize(
    ("task", "family", "baselines", "times"),
    [
        ("classification", "decoder", True, 3),
        ("classification", "decoder", False, 2),
        ("classification", "encoder", True, 2),
        ("tagging", "encoder", True, 1),
    ],
)
def test_test_rows_are_read_by_every_model_that_is_asked(
    task: str, family: Family, *, baselines: bool, times: int
) -> None:
    recipe = recipe_of(task=task, baselines=baselines)
    assert count_readings(recipe, load_task(task), facts(family)) == times


@pytest.mark.parametrize(
    ("values", "told"),
    [({"budget_seconds": 60.0, "effort": "quick"}, "`--budget`"), ({"effort": "quick"}, "`--effort quick`")],
)  # fmt: skip
def test_limit_is_named_as_on_the_command_line(values: dict[str, Any], told: str) -> None:
    assert limit_of(recipe_of(**values)) == told
