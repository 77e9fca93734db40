"""`lushan evaluate` as a command."""

import json
from pathlib import Path

import pytest

from lushan.cli.evaluate import MOST_LABELS, show_scores
from lushan.cli.main import run
from lushan.errors import DataError
from tests.bad_inputs import good_rows, write_lines


def test_scores_are_shown_with_intervals_and_by_label(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_lines(tmp_path / "more.jsonl", good_rows())
    words = ["evaluate", str(tiny_run), str(data), "--set", "data.columns.text=text", "--json"]
    assert run(words) == 0
    output = capsys.readouterr()
    result = json.loads(output.out)
    assert f"{result['metrics']['accuracy']['value']:.3f}" in output.err
    assert "48 rows of" in output.err
    assert "f1 of sea" in output.err
    assert "recall of sea" in output.err
    assert [each["label"] for each in result["per_class"]] == ["hill", "sea"]


def test_of_many_labels_the_worst_are_shown_and_the_rest_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    labels = [
        {"label": f"label-{n}", "precision": 0.5, "recall": 0.5, "f1": n / 100, "support": 1}
        for n in range(MOST_LABELS + 5)
    ]
    result = {"metrics": {}, "num_examples": 25, "data": "more.jsonl", "per_class": labels[::-1]}
    result["task"] = "classification"
    show_scores(result)
    shown = capsys.readouterr().err
    assert f"of {len(labels)}" in shown
    assert "label-0" in shown
    assert f"label-{MOST_LABELS}" not in shown


def test_metrics_of_texts_are_shown_in_their_own_scale(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {
        "bleu": {"value": 36.18, "low": 34.96, "high": 38.2},
        "answer_log_likelihood": {"value": -1.532, "low": -1.6, "high": -1.5},
    }
    show_scores({"metrics": metrics, "num_examples": 9, "data": "x.csv", "task": "classification"})
    shown = capsys.readouterr().err
    for words in ("36.2", "35.0 to 38.2", "-1.53", "-1.60 to -1.50"):
        assert words in shown


@pytest.mark.parametrize(("options", "seed"), [([], None), (["--seed", "7"], 7)])
def test_seed_reaches_answers_that_are_drawn_where_it_is_given(
    options: list[str], seed: int | None, *, tiny_run: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    seen: list[object] = []

    def stop(*_: object, seed: int | None, **__: object) -> None:
        seen.append(seed)
        raise DataError("Seen.")

    monkeypatch.setattr("lushan.workflows.evaluate.open_run", stop)
    data = write_lines(tmp_path / "more.jsonl", good_rows())
    assert run(["evaluate", str(tiny_run), str(data), *options]) == 2
    assert run(["compare", str(tiny_run), str(tmp_path), "--data", str(data), *options]) == 2
    assert seen == [seed, seed]
