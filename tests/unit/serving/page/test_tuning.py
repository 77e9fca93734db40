"""Tables are recognised, and one run goes on at a time, which can be stopped."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lushan.catalog import load_task, names_in
from lushan.errors import DataError, RunError
from lushan.serving.page.tuning import Plan, Tuner, columns_of, guess_task

SPEAKS_AND_WAITS = "print('Epoch 1', flush=True); import time; time.sleep(60)"


@pytest.fixture
def tuner() -> Iterator[Tuner]:
    made = Tuner()
    yield made
    made.cancel()


@pytest.fixture
def make_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Plan]:
    """Give a function that plans to run a line of Python in place of `lushan tune`."""

    def make(code: str) -> Plan:
        monkeypatch.setattr(Plan, "command", lambda _: [sys.executable, "-c", code])
        out = tmp_path / "runs" / "reviews"
        return Plan(tmp_path / "reviews.csv", "classification", "tiny", "quick", out)

    return make


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert is_so()


@pytest.mark.parametrize("name", sorted({*names_in("lushan.tasks")} - {"relations"}))
def test_guess_of_the_columns_of_a_task_is_the_task(name: str) -> None:
    columns = list(load_task(name).sample_rows()[0].values)
    assert guess_task(columns) == name


@pytest.mark.parametrize(
    ("columns", "task"),
    [
        (["review", "sentiment"], "classification"),
        (["text", "head", "tail", "label"], "relations"),
        (["text", "spo_list"], "triples"),
        (["article", "highlights"], "summarization"),
        (["tokens", "ner_tags"], "tagging"),
        (["goal", "sol1", "sol2", "label"], "choice"),
        (["instruction", "output"], "dialogue"),
        (["id", "amount"], None),
    ],
)
def test_guess_knows_common_names(columns: list[str], task: str | None) -> None:
    assert guess_task(columns) == task


def test_columns_are_those_of_all_first_rows(tmp_path: Path) -> None:
    table = tmp_path / "a.jsonl"
    table.write_text('{"text": "a"}\n{"text": "b", "label": "c"}\n', encoding="utf-8")
    assert columns_of(table) == ["text", "label"]


def test_table_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.csv has no rows"):
        columns_of(tmp_path / "a.csv")


def test_command_is_the_one_that_people_type() -> None:
    plan = Plan(Path("a.csv"), "classification", "tiny", "quick", Path("runs/a"))
    words = "tune a.csv --task classification --model tiny --effort quick --out runs/a"
    assert plan.command() == [sys.executable, "-P", "-m", "lushan", *words.split()]


def test_run_that_ends_well_is_finished(tuner: Tuner, make_plan: Callable[[str], Plan]) -> None:
    assert tuner.state == "idle"
    tuner.start(make_plan("print('done')"))
    wait_until(lambda: tuner.state == "finished")
    assert tuner.last_lines() == ["done"]


def test_run_that_ends_badly_has_failed_and_says_why(
    tuner: Tuner, make_plan: Callable[[str], Plan]
) -> None:
    tuner.start(make_plan("import sys; sys.exit('Error: no rows')"))
    wait_until(lambda: tuner.state == "failed")
    assert tuner.last_lines() == ["Error: no rows"]


def test_cancelled_run_stops_with_its_process(
    tuner: Tuner, make_plan: Callable[[str], Plan]
) -> None:
    tuner.start(make_plan(SPEAKS_AND_WAITS))
    wait_until(lambda: tuner.last_lines() == ["Epoch 1"])
    assert tuner.state == "running"
    tuner.cancel()
    assert tuner.state == "cancelled"


def test_second_run_is_refused_while_one_is_going(
    tuner: Tuner, make_plan: Callable[[str], Plan]
) -> None:
    tuner.start(make_plan(SPEAKS_AND_WAITS))
    with pytest.raises(RunError, match="`reviews` is being tuned"):
        tuner.start(make_plan("print('too early')"))
