"""How much is trained within a wall time, and what is told where asking alone takes longer."""

from typing import Any

import pytest

from lushan.workflows import budget
from lushan.workflows.budget import Plan, Workload, limit_of, plan_training
from lushan.workflows.recipe import TuneRecipe, make_recipe
from tests.unit.workflows.test_resolve import FACTS


@pytest.fixture(autouse=True)
def _known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rows of 20 tokens are trained on in a second, and fifteen read."""
    monkeypatch.setattr(budget, "predict_tokens_per_second", lambda *_, **__: 100.0)


def recipe_of(**values: object) -> TuneRecipe:
    return make_recipe(None, values, [])


def plan(work: Workload, **values: object) -> Plan:
    return plan_training(recipe_of(**values), FACTS, work, precision="fp32")


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def test_rows_get_what_asking_about_validation_and_test_rows_leaves() -> None:
    work = Workload(
        5_000, 20.0, num_validation_rows=600, num_test_rows=2_100, readings=(20.0, 20.0)
    )
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
    work = Workload(
        5_000, 20.0, num_validation_rows=300, num_test_rows=25_000, readings=(20.0,) * 3
    )
    found = plan(work, budget_seconds=600.0)
    assert found.max_train_rows == 250  # a quarter of the time
    (note,) = map(plain, found.notes)
    assert "may take longer than the 10 min 0 s of `--budget`: training about 2 min 30 s" in note
    assert "300 validation rows after each of 3 epochs about 1 min 0 s" in note
    assert "reading 25,000 test rows 3 time(s) about 1 h 23 min" in note
    assert "`--no-baselines`; fewer test rows" in note
    bare = plan(work._replace(readings=(20.0, 20.0)), budget_seconds=600.0, baselines=False)
    assert "`--no-baselines`" not in bare.notes[0]


def test_quick_run_is_told_of_as_such_and_one_without_a_budget_not_at_all() -> None:
    work = Workload(500, 20.0, num_test_rows=25_000, readings=(20.0,))
    (note,) = map(plain, plan(work, effort="quick").notes)
    assert "the 6 min 0 s of `--effort quick`" in note
    assert "a longer time, such as `--budget 1h`" in note
    assert plan(work).notes == ()
    assert plan(work).max_train_rows is None


@pytest.mark.parametrize(
    ("values", "told"),
    [({"budget_seconds": 60.0, "effort": "quick"}, "`--budget`"), ({"effort": "quick"}, "`--effort quick`")],
)  # fmt: skip
def test_limit_is_named_as_on_the_command_line(values: dict[str, Any], told: str) -> None:
    assert limit_of(recipe_of(**values)) == told


@pytest.mark.parametrize(
    ("adapter", "num_rows"),
    [
        ({}, 500),
        ({"method": "lora"}, 750),  # two thirds of 500
        ({"method": "head"}, 4_464),  # a third once, and next to nothing in each epoch
        ({"method": "head", "cache_gigabytes": 0.0}, 1_497),  # a third in each
        ({"method": "top", "layers": 3}, 1_500),  # 3 of 12 layers in each, and a third of 9 once
        ({"method": "top", "layers": 3, "cache_gigabytes": 0.0}, 1_000),
        ({"method": "top", "layers": 3, "cache_gigabytes": 0.011}, 1_000),  # 1,500 rows take 0.012
        ({"method": "top", "layers": 12}, 500),
    ],
)
def test_rows_count_what_an_adapter_takes_and_frozen_layers_once_where_they_are_kept(
    adapter: dict[str, Any], num_rows: int
) -> None:
    found = plan(Workload(5_000, 20.0), budget_seconds=600.0, adapter=adapter)
    assert (found.max_train_rows, found.epochs) == (num_rows, 3)
    assert found.notes == ()


def test_head_that_reads_one_token_of_a_row_keeps_no_more() -> None:
    adapter = {"method": "head", "cache_gigabytes": 0.01}
    every = Workload(5_000, 20.0)
    assert plan(every, budget_seconds=600.0, adapter=adapter).max_train_rows == 1_497
    one = every._replace(reads_one_token=True)
    assert plan(one, budget_seconds=600.0, adapter=adapter).max_train_rows == 4_464


@pytest.mark.parametrize(
    ("method", "percent"), [("lora", 67), ("head", 11), ("top", 41)]
)  # fmt: skip
def test_share_of_full_tuning_that_an_adapter_takes_is_told(method: str, percent: int) -> None:
    work, adapter = Workload(5_000, 20.0), {"method": method}
    found = plan(work, budget_seconds=600.0, adapter=adapter, training={"epochs": 3})
    told = "about 100 tokens/s expected on this machine"
    assert found.why_rows.endswith(
        f"{told} in full tuning, of whose time `--adapter {method}` takes {percent} %"
    )
    assert plan(work, budget_seconds=600.0).why_rows.endswith(told)


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        ("head", 60),
        ("generate", 150),
    ],  # 600 rows: a third of 9 layers once; 3 layers in each, or 12
)
def test_validation_rows_count_behind_kept_layers_where_a_head_is_asked(
    answer: str, seconds: int
) -> None:
    work = Workload(5_000, 20.0, num_validation_rows=600)
    adapter = {"method": "top", "layers": 3}
    found = plan(work, budget_seconds=600.0, adapter=adapter, answer=answer)
    assert f"and about {seconds} s to ask about validation" in found.why_rows


def test_few_rows_of_a_head_are_drawn_so_that_their_many_epochs_fit_and_drawn_again_alike() -> None:
    work, adapter = Workload(5_000, 20.0), {"method": "head"}
    found = plan(work, budget_seconds=60.0, adapter=adapter)
    assert (found.max_train_rows, found.epochs) == (427, 18)
    assert "427 of 5000 rows, drawn per class, 18 times each" in found.why_rows
    drawn = {"data": {"max_train_rows": 427}, "training": {"epochs": 18}}
    again = plan(work._replace(num_train_rows=427), budget_seconds=60.0, adapter=adapter, **drawn)
    assert (again.max_train_rows, again.epochs) == (None, 18)


def test_test_rows_count_every_token_that_is_read_of_them_and_each_reader_is_told() -> None:
    work = Workload(5_000, 20.0, num_test_rows=600, readings=(20.0, 300.0, 3_000.0))
    found = plan(work, budget_seconds=600.0)
    assert found.max_train_rows == 250  # 600 * 3,320 / 20 / 3 passes are more than all 3,000
    (note,) = map(plain, found.notes)
    assert (
        "reading 600 test rows 3 time(s) about 1 h 50 min (the tuned model 40 s, the untouched one 10 min 0 s, that "
        "one with worked examples 1 h 40 min)"
    ) in note
