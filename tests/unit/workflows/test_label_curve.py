"""The label curve: how many labels it takes."""

import re
from pathlib import Path

import pytest

from lushan.data.splits import subsample
from lushan.model_store import certificate
from lushan.workflows import label_curve
from lushan.workflows.label_curve import _with_few_rows
from tests.bad_inputs import write_splits
from tests.conftest import MakeTiny
from tests.runs import answers_of_this_process, read, tune
from tests.unit.workflows.conftest import BuildSetup

GOOD, BAD = (
    ("a great film", "a brave little fox", "I would watch it again"),
    ("the food was cold", "never again", "slow service"),
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {"text": f"{text} {number}", "label": label}
        for number in range(4)
        for label, texts in (("good", GOOD), ("bad", BAD))
        for text in texts
    ]
    return write_splits(tmp_path, train=rows, validation=rows[:8], test=rows[:8])


@pytest.mark.parametrize("adapter", ["full", "top:1"])
def test_curve_has_a_point_for_each_size_below_the_rows_and_stands_in_the_report(
    adapter: str, data: Path, tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "_answers_of_fresh_process", answers_of_this_process)
    monkeypatch.setattr(label_curve, "SIZES", (4, 8, 64))
    monkeypatch.setattr(label_curve, "FEWEST_STEPS", 3)
    out = data / "run"
    options = ["--task", "classification", "--model", str(tiny_folder("llama")), "--epochs", "1"]
    options += ["--adapter", adapter, "--overlap", "keep", "--set", "model.precision=fp32"]
    assert tune(data, out, *options, "--set", "data.label_curve=true") == 0
    curve = read(out / "results.json")["label_curve"]
    assert [point["num_rows"] for point in curve] == [4, 8]
    assert all(0 <= point[name] <= 1 for point in curve for name in ("score", "baseline_score"))
    page = (out / "report.html").read_text(encoding="utf-8")
    section = page[page.index("How many labels it takes") :]
    assert re.findall(r'<th scope="row" class="number">(\d+)</th>', section)[:3] == ["4", "8", "24"]


def test_few_rows_are_drawn_by_the_seed_and_repeated_to_enough_steps(
    build_setup: BuildSetup,
) -> None:
    setup = build_setup("llama")
    few = _with_few_rows(setup, 4)
    expected = subsample(setup.parts.train, 4, seed=setup.recipe.seed)
    assert [each.id for each in few.parts.train] == [each.id for each in expected]
    rows_per_step = setup.recipe.training.rows_per_step
    assert len(few.features["train"]) >= label_curve.FEWEST_STEPS * rows_per_step
    assert {each.example_index for each in few.features["train"]} == set(range(4))
    assert few.state == setup.state
    assert len(few.features["validation"]) == len(setup.features["validation"])
    assert few.recipe.training.keep == "last"
