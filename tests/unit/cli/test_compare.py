"""`lushan compare` as a command."""

import json
import shutil
from pathlib import Path

import pytest

from lushan.cli.compare import show_comparison
from lushan.cli.main import run


def test_runs_are_compared_on_their_test_rows(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(tiny_run, tmp_path / "other"))
    assert run(["compare", str(tiny_run), str(other), "--json"]) == 0
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert found["comparisons"][0]["p_value_holm"] == 1.0
    assert "other - run" in output.err


def test_one_run_alone_is_refused(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", str(tiny_run)]) == 2
    assert "at least two runs, got 1" in capsys.readouterr().err


def test_a_difference_is_shown_with_its_sign_and_a_p_value(
    capsys: pytest.CaptureFixture[str],
) -> None:
    accuracy = {"value": 0.9, "low": 0.85, "high": 0.95}
    pair = {
        "first": "old",
        "second": "new",
        "difference": {"value": 0.04, "low": -0.01, "high": 0.09},
        "wins": 12,
        "losses": 4,
        "p_value_holm": 0.0768,
    }
    runs = [{"name": "old", "accuracy": accuracy}, {"name": "new", "accuracy": accuracy}]
    show_comparison({"runs": runs, "num_examples": 200, "comparisons": [pair]})
    shown = capsys.readouterr().err
    for words in ("new - old", "+0.040", "-0.010 to +0.090", "12 : 4", "0.077"):
        assert words in shown


def test_graded_rows_are_shown_by_their_mean_score(capsys: pytest.CaptureFixture[str]) -> None:
    score = {"value": 0.4, "low": 0.35, "high": 0.45}
    difference = {"value": 0.0, "low": -0.1, "high": 0.1}
    pair = {"first": "old", "second": "new", "difference": difference, "wins": 3, "losses": 5}
    runs = [{"name": name, "mean_row_score": score} for name in ("old", "new")]
    found = {"runs": runs, "num_examples": 9, "comparisons": [{**pair, "p_value_holm": 1.0}]}
    show_comparison(found)
    shown = capsys.readouterr().err
    for words in ("mean row score", "one is better", "0.400", "3 : 5"):
        assert words in shown
    assert "accuracy" not in shown
