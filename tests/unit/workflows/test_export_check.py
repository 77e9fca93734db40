"""What an export is held against, and how far it may be away."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lushan.errors import CertificateError, ModelError
from lushan.model_store.export_program import Answers, Questions, answer
from lushan.model_store.exports import Form, Tolerance, hf, load_form
from lushan.model_store.merged import Merged
from lushan.records import AnswerMode, Prediction
from lushan.workflows import export_check
from lushan.workflows.export_check import (
    ExportCheck,
    Rows,
    ask,
    equal_tokens,
    largest_difference,
    lost_per_token,
)
from lushan.workflows.predict import ignore
from tests.conftest import MakeTiny
from tests.exported import ask_here, examples_of, merged_of, write_form

Spoil = Callable[[Answers], Answers]


@pytest.fixture(autouse=True)
def _asked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    ask_here(monkeypatch)


def spoil_answers(monkeypatch: pytest.MonkeyPatch, spoil: Spoil) -> None:
    def spoiled(questions: Questions) -> Answers:
        return spoil(answer(questions))

    monkeypatch.setattr(export_check, "ask_program", spoiled)


def check_of(
    base: Path, folder: Path, task: str = "classification", mode: AnswerMode = "head"
) -> tuple[ExportCheck, Merged]:
    merged = merged_of(base, task, mode)
    write_form(merged, "hf", folder)
    rows = Rows("rows", list(examples_of(task)))
    return ExportCheck(load_form("hf"), "hf", "none", folder, merged, rows), merged


def run(check: ExportCheck, merged: Merged) -> dict[str, Any]:
    return check.run(ask(merged.predictor, check.rows), seed=0, tell=ignore)


@pytest.mark.parametrize("task", ["classification", "tagging", "answering", "relations"])
def test_export_of_a_head_agrees_and_keeps_its_score(
    task: str, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    told = run(*check_of(tiny_folder("llama"), tmp_path / "hf", task))
    quality = told["quality"]
    assert quality["agreement"]["value"] == 1
    assert quality["run"] == quality["export"]
    assert quality["comparison"]["difference"]["value"] == 0
    assert 0 <= told["program"]["largest_difference"] < 1e-5
    assert quality["num_examples"] == len(examples_of(task))


def test_export_of_a_model_that_writes_is_held_to_its_tokens_and_the_truth(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    told = run(*check_of(tiny_folder("llama"), tmp_path / "hf", "summarization", "generate"))
    assert told["program"]["equal_tokens"] == 1
    assert abs(told["quality"]["lost_nats_per_token"]["value"]) < 1e-5
    assert "agreement" not in told["quality"]
    assert told["quality"]["main_metric"] == "rouge_l"


def test_rows_without_a_truth_are_compared_and_not_scored(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    check, merged = check_of(tiny_folder("llama"), tmp_path / "hf")
    rows = replace(check.rows, has_truth=False, is_scored=False)
    quality = run(replace(check, rows=rows), merged)["quality"]
    assert quality.keys() == {"rows", "num_examples", "agreement"}


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda x: replace(x, labels=x.labels[::-1]), "names its labels"),
        (lambda x: replace(x, outputs=[y + 1 for y in x.outputs]), "gives scores that differ by"),
        (
            lambda x: replace(x, outputs=[y * np.nan for y in x.outputs]),
            "scores that differ by nan",
        ),
        (lambda x: replace(x, outputs=x.outputs[1:]), "more or fewer scores"),
    ],
    ids=["labels", "scores", "nan", "number"],
)
def test_program_that_says_something_else_is_refused(
    spoil: Spoil,
    told: str,
    *,
    tiny_folder: MakeTiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil_answers(monkeypatch, spoil)
    with pytest.raises(CertificateError, match=told):
        run(*check_of(tiny_folder("llama"), tmp_path / "hf"))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda x: replace(x, token_ids=[[1], *x.token_ids[1:]]), "cuts the text 'The sun"),
        (
            lambda x: replace(x, followed=[y[::-1] for y in x.followed]),
            "% of the tokens that Lushan",
        ),
    ],
    ids=["tokens", "written"],
)
def test_program_that_writes_something_else_is_refused(
    spoil: Spoil,
    told: str,
    *,
    tiny_folder: MakeTiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil_answers(monkeypatch, spoil)
    with pytest.raises(CertificateError, match=told):
        run(*check_of(tiny_folder("llama"), tmp_path / "hf", "completion", "generate"))


class _Strict(hf.Form):
    """Asks for more than any export can give."""

    tolerances = {  # noqa: RUF012
        "none": Tolerance(1, 0, 1.1, -1.0),
        "int8": Tolerance(1, 0, 1.1, -1.0),
    }


@pytest.mark.parametrize(
    ("quantise", "error", "told"),
    [
        ("none", CertificateError, "The export answers 100.0% of the rows as the run does"),
        ("int8", ModelError, "`--quantise int8` answers 100.0%.*at least 110%.*choose none"),
    ],
)
def test_answers_beyond_the_tolerance_are_refused(
    quantise: str, error: type[Exception], told: str, *, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    check, merged = check_of(tiny_folder("llama"), tmp_path / "hf")
    strict: Form = _Strict()
    with pytest.raises(error, match=told):
        run(replace(check, form=strict, quantise=quantise), merged)


def test_truth_that_becomes_less_likely_is_refused(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    check, merged = check_of(tiny_folder("llama"), tmp_path / "hf", "completion", "generate")
    with pytest.raises(
        CertificateError, match=r"less likely by -?0\.000 per token, surely by .*at most -1"
    ):
        run(replace(check, form=_Strict()), merged)


def test_difference_is_a_share_of_the_largest_score() -> None:
    assert largest_difference([np.array([10.0, -20.0])], [np.array([10.0, -19.0])]) == 0.05
    assert largest_difference([np.array([0.1])], [np.array([0.2])]) == pytest.approx(0.1)


def test_tokens_are_compared_place_by_place() -> None:
    assert equal_tokens([[1, 2], [3, 4]], [[1, 9], [3, 4]]) == 0.75
    assert equal_tokens([[]], [[]]) == 0
    with pytest.raises(ValueError, match="shorter"):
        equal_tokens([[1, 2]], [[1]])


def told(row: str, log_likelihood: float, num_tokens: int) -> Prediction:
    return Prediction(row, "x", truth_log_likelihood=log_likelihood, num_truth_tokens=num_tokens)


def test_loss_is_that_of_a_token_of_the_truth_with_its_paired_interval() -> None:
    own = [told("a", -3.0, 1), told("b", -1.0, 3)]
    worse = [told("a", -3.5, 1), told("b", -2.5, 3)]
    lost = lost_per_token(own, worse, seed=0)
    assert lost.value == 0.5
    assert (lost.low, lost.high) == (0.5, 0.5)  # both rows lose half a nat per token
    assert lost_per_token(own, own, seed=0).value == 0


def test_few_rows_that_differ_by_chance_are_not_refused(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    check, merged = check_of(tiny_folder("llama"), tmp_path / "hf")
    own = ask(merged.predictor, check.rows)
    swap = dict(
        zip(merged.predictor.state.labels, merged.predictor.state.labels[::-1], strict=True)
    )
    swapped = [replace(each, answer=swap[str(each.answer)]) for each in own]
    quality = check.run([swapped[0], *own[1:]], seed=0, tell=ignore)
    assert 0.5 < quality["quality"]["agreement"]["value"] < 0.97
    with pytest.raises(CertificateError, match=r"answers 0\.0% of the rows"):
        check.run(swapped, seed=0, tell=ignore)
