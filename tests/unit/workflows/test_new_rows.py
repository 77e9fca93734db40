"""Rows that a model made: each is taken out once, and their gain is that over the better model without them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lushan.atomic import is_locked
from lushan.data.example_store import ExampleStore
from lushan.errors import RunError
from lushan.records import Example, Interval, Scores
from lushan.workflows import new_rows
from lushan.workflows.new_rows import (
    Measured,
    NewRow,
    Sifted,
    check_place,
    drop,
    lock_of,
    measure_gain,
    reserved,
)
from tests.unit.workflows.conftest import BuildSetup

REAL, WITH_NEW = (0.0, 0.0, 1.0, 0.0), (1.0, 0.0, 1.0, 1.0)


def scores(correct: Sequence[float]) -> Scores:
    mean = sum(correct) / len(correct)
    return Scores("accuracy", {"accuracy": Interval(mean, 0.0, 1.0)}, correct)


@pytest.mark.parametrize(
    ("first", "rival", "gain", "wins"),
    [(None, 0.25, 0.5, 2), ((1.0, 1.0, 1.0, 0.0), 0.75, 0.0, 1), ((0.0,) * 4, 0.25, 0.5, 2)],
)
def test_gain_is_over_the_better_of_the_runs_on_real_rows(
    first: Sequence[float] | None, rival: float, gain: float, wins: int, *,
    build_setup: BuildSetup, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    setup = build_setup()
    answers = iter([REAL, WITH_NEW])
    monkeypatch.setattr(
        new_rows, "_measured", lambda *_, **__: Measured(scores(next(answers)), num_steps=3)
    )
    monkeypatch.setattr(new_rows, "with_train", lambda *_: setup)
    prepared: Any = None
    known = None if first is None else scores(first)
    found = measure_gain([], prepared, setup, first=known, tell=lambda _: None)
    assert found["difference"]["value"] == gain
    assert (found["without"]["value"], found["with"]["value"]) == (rival, 0.75)
    assert (found["wins"], found["losses"]) == (wins, wins - (2 if gain else 0))


def test_rows_of_both_runs_are_in_files_and_stand_behind_those_of_the_data(
    build_setup: BuildSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = build_setup()
    known, trained = list(setup.parts.train), list[Sequence[Example]]()

    def with_train(rows: Sequence[Example], *_: object) -> object:
        trained.append(rows)
        return setup

    monkeypatch.setattr(new_rows, "with_train", with_train)
    monkeypatch.setattr(new_rows, "_measured", lambda *_, **__: Measured(scores(REAL), num_steps=3))
    new = [Example(f"{n}", f"A whale sings {n}.", "sea") for n in range(len(known) + 2)]
    prepared: Any = None
    measure_gain([NewRow({}, each) for each in new], prepared, setup, tell=lambda _: None)
    without, with_new = trained
    assert isinstance(without, ExampleStore)
    assert isinstance(with_new, ExampleStore)
    assert list(with_new) == known + new
    seen = Counter(each.id for each in without)
    assert set(seen) == {each.id for each in known}
    assert sorted(seen.values()) == [2] * (len(known) - 2) + [3] * 2


def test_each_row_counts_at_the_first_filter_that_takes_it() -> None:
    example = Example("1", "A whale sings.", "sea")
    sifted = Sifted([NewRow({}, example), NewRow({}, example)])
    drop(sifted, "repeats_new", {1})
    drop(sifted, "disagrees", {0})
    assert sifted.rows == []
    assert sifted.num_dropped == {"repeats_new": 1, "disagrees": 1}


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("new.csv", r"`--out .*new\.csv` must end in `\.jsonl`"),
        ("data/new.jsonl", "is in the data: .*Name a file elsewhere"),
    ],
)
def test_place_that_no_command_reads_or_that_is_in_the_data_is_refused(
    out: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=message):
        check_place(tmp_path / out, tmp_path / "data")
    check_place(tmp_path / "new.jsonl", tmp_path / "data")


def test_place_of_a_file_is_kept_for_one_process_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder" / "rows.jsonl"
    with reserved(out, overwrite=False):
        assert is_locked(lock_of(out))
        with (
            pytest.raises(RunError, match=r"Another process is making `.*rows\.jsonl`"),
            reserved(out, overwrite=True),
        ):
            pytest.fail("two make one file")
    assert list(tmp_path.iterdir()) == []
    with reserved(out, overwrite=False):
        out.touch()
    assert list(out.parent.iterdir()) == [out]
    with (
        pytest.raises(RunError, match="is there already"),
        reserved(out, overwrite=False),
    ):
        pytest.fail("what is there would be replaced")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux' own folder")
def test_place_that_cannot_be_written_is_refused_at_once() -> None:
    with (
        pytest.raises(RunError, match=r"`--out /proc/rows\.jsonl` cannot be written"),
        reserved(Path("/proc/rows.jsonl"), overwrite=False),
    ):
        pytest.fail("nothing can be written there")
