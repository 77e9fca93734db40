"""From what every system answered to `results.json`: fields, what was right, and the worst errors."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix

from lushan.data.overlap import PairCounts
from lushan.errors import RunError
from lushan.model_store.run_folder import RunFolder, read_correct
from lushan.records import Example, Interval, Prediction, Scores
from lushan.workflows.outcome import (
    adapter_name,
    collect_results,
    peak_rss_bytes,
    plain,
    worst_errors,
    write_outcome,
)
from lushan.workflows.recipe import make_recipe
from lushan.workflows.setup import Setup
from tests.unit.workflows.conftest import BuildSetup

TRAINING = {
    "num_tokens": 900,
    "seconds": 3.0,
    "validation": [{"epoch": 1, "step": 3, "score": 0.5, "loss": 0.7}],
    "best_epoch": 1,
    "kept_epoch": 2,
    "num_weights": {"trained": 10, "frozen": 20},
    "packing": "packed",
}


def answer(example: Example, label: str, *, probability: float = 0.75) -> Prediction:
    other = {"sea": "hill", "hill": "sea"}[label]
    probabilities = {label: probability, other: 1 - probability}
    return Prediction(example.id, label, probabilities, math.log(probability), "abc123")


def begin(folder: Path, **status: object) -> RunFolder:
    known = {"training": TRAINING, "seconds": {"train": 3.0}, "choices": [], "versions": {}}
    return RunFolder.create(folder, recipe={}, status={**known, **status}, overwrite=False)


def answered(setup: Setup, run: RunFolder) -> None:
    """Before, everything is `hill`; after, all is right but the first row, which is surely wrong."""
    test = setup.parts.test
    wrong = {"sea": "hill", "hill": "sea"}[str(test[0].target)]
    after = [answer(test[0], wrong, probability=0.9)]
    after += [answer(each, str(each.target)) for each in test[1:]]
    run.save_predictions("before", [answer(each, "hill") for each in test])
    run.save_predictions("after", after)


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return begin(tmp_path / "run")


@pytest.fixture
def setup(build_setup: BuildSetup, run: RunFolder) -> Setup:
    found = build_setup("llama")
    answered(found, run)
    return found


def test_results_are_written_with_report_and_model_card(setup: Setup, run: RunFolder) -> None:
    results = write_outcome(run, setup)
    assert results == read(run.path / "results.json")
    assert "<html" in (run.path / "report.html").read_text(encoding="utf-8")
    assert (run.path / "README.md").is_file()


def test_scores_are_those_of_the_answers_on_the_test_rows(setup: Setup, run: RunFolder) -> None:
    results = write_outcome(run, setup)
    truth = [str(each.target) for each in setup.parts.test]
    before = accuracy_score(truth, ["hill"] * len(truth))
    assert results["main_metric"] == "accuracy"
    assert results["before"]["accuracy"]["value"] == pytest.approx(before)
    assert results["after"]["accuracy"]["value"] == pytest.approx(1 - 1 / len(truth))
    after = run.predictions("after")
    assert after is not None
    expected = confusion_matrix(truth, [str(each.answer) for each in after])
    assert results["labels"] == ["hill", "sea"]
    assert results["positive_label"] == "sea"
    assert results["confusion"] == expected.tolist()


def test_speed_is_the_trained_tokens_over_the_training_time(setup: Setup, run: RunFolder) -> None:
    results = write_outcome(run, setup)
    assert results["num_train_tokens"] == 900
    assert results["train_tokens_per_second"] == pytest.approx(300.0)


def test_results_tell_of_rows_weights_and_model(setup: Setup, run: RunFolder) -> None:
    results = write_outcome(run, setup)
    parts = setup.parts
    assert results["num_examples"] == {
        "train": len(parts.train),
        "validation": len(parts.validation),
        "test": len(parts.test),
    }
    assert results["num_weights"] == {"trained": 10, "frozen": 20}
    assert (results["adapter"], results["answer"]) == ("full", "head")
    assert results["model_version"] == "abc123"
    assert (results["best_epoch"], results["kept_epoch"]) == (1, 2)


def test_every_answer_is_kept_with_whether_it_was_right(setup: Setup, run: RunFolder) -> None:
    write_outcome(run, setup)
    test = setup.parts.test
    assert read_correct(run.path) == {each.id: each != test[0] for each in test}
    lines = (run.path / "predictions" / "before.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["correct"] for line in lines] == [
        each.target == "hill" for each in test
    ]


def test_answers_with_many_choices_are_scored_when_they_are_read_back(
    build_setup: BuildSetup, run: RunFolder
) -> None:
    words = ["one", "two", "three", "four", "five", "six", "seven"]
    rows = [
        {"question": f"Behind {n} comes", "choices": words, "answer": 5 + n % 2} for n in range(30)
    ]
    data = {"overlap": "keep"}
    setup = build_setup("llama", rows=rows, task="choice", answer="generate", data=data)
    shares = dict(zip(words, (0.3, 0.2, 0.15, 0.14, 0.1, 0.06, 0.05), strict=True))
    logs = {name: math.log(share) for name, share in shares.items()}
    test = setup.parts.test
    told = [Prediction(each.id, "one", shares, logs["one"], "v1", logs) for each in test]
    for name in ("before", "after"):
        run.save_predictions(name, told)
    assert write_outcome(run, setup)["after"]["accuracy"]["value"] == 0
    found = run.predictions("after") or []
    assert found == told
    scores, expected = (setup.task.score(each, test, setup.state) for each in (found, told))
    assert scores.details["log_loss"] == expected.details["log_loss"] > -logs["six"]


def test_answers_to_other_rows_are_refused(setup: Setup, run: RunFolder) -> None:
    answers = run.predictions("before")
    assert answers is not None
    for other in (answers[1:], answers[::-1]):
        run.save_predictions("before", other)
        with pytest.raises(RunError, match=r"before\.jsonl` does not answer .* `--resume`"):
            write_outcome(run, setup)
    assert not (run.path / "results.json").exists()


def test_without_baselines_only_before_is_compared(setup: Setup, run: RunFolder) -> None:
    results = write_outcome(run, setup)
    assert results["baselines"] == {}
    assert set(results["comparisons"]) == {"before"}


def test_with_baselines_the_untouched_model_is_the_zero_shot_one(
    setup: Setup, run: RunFolder
) -> None:
    test = setup.parts.test
    run.save_predictions("majority", [answer(each, "sea") for each in test])
    run.note(baselines={"majority": "Always `sea`."})
    results = write_outcome(run, setup)
    assert set(results["baselines"]) == {"majority", "zero_shot"}
    assert results["baselines"]["zero_shot"] == results["before"]
    assert set(results["comparisons"]) == {"before", "majority", "zero_shot"}
    assert results["baseline_notes"] == {"majority": "Always `sea`."}


def test_wins_and_losses_count_rows_that_only_one_got_right(setup: Setup, run: RunFolder) -> None:
    compared = write_outcome(run, setup)["comparisons"]["before"]
    test = setup.parts.test
    right_before = [each.target == "hill" for each in test]
    assert compared["wins"] == sum(not right for right in right_before[1:])
    assert compared["losses"] == int(right_before[0])


def test_outcome_written_again_is_the_same(setup: Setup, run: RunFolder) -> None:
    first = write_outcome(run, setup)
    again = write_outcome(run, setup)
    assert {**first, "peak_rss_bytes": 0} == {**again, "peak_rss_bytes": 0}


def test_memory_of_an_earlier_part_of_the_run_counts(
    build_setup: BuildSetup, tmp_path: Path
) -> None:
    run, setup = begin(tmp_path / "run", peak_rss_bytes=10**15), build_setup("llama")
    answered(setup, run)
    assert write_outcome(run, setup)["peak_rss_bytes"] == 10**15


def test_peak_memory_is_in_bytes_and_covers_what_is_held_now() -> None:
    held = psutil.Process().memory_info().rss
    # The system counts pages in lots, so its peak may lag a little.
    assert 0.9 * held < peak_rss_bytes() < 1000 * held


def test_a_system_without_row_scores_is_not_compared(setup: Setup, run: RunFolder) -> None:
    answers = {name: found for name in ("before", "after") if (found := run.predictions(name))}
    scores = {
        name: setup.task.score(found, setup.parts.test, setup.state)
        for name, found in answers.items()
    }
    scores["majority"] = replace(scores["before"], correct=())
    results = collect_results(run, setup, answers=answers, scores=scores)
    assert set(results["comparisons"]) == {"before", "zero_shot"}
    assert set(results["baselines"]) == {"majority", "zero_shot"}


def test_worst_errors_are_the_wrong_answers_that_were_surest_first() -> None:
    examples = [Example(f"id{n}", f"text {n}", "sea") for n in range(40)]
    surenesses = [0.5 + (n * 7 % 40) / 100 for n in range(40)]
    predictions = [
        answer(each, "hill" if n % 40 else "sea", probability=sure)
        for n, (each, sure) in enumerate(zip(examples, surenesses, strict=True))
    ]
    scores = Scores("accuracy", {}, correct=[n == 0 for n in range(40)])
    found = worst_errors(predictions, examples, scores)
    assert len(found) == 25
    assert [each["probability"] for each in found] == pytest.approx(
        sorted(surenesses[1:], reverse=True)[:25]
    )
    number = int(found[0]["id"].removeprefix("id"))
    assert found[0] == {
        "id": f"id{number}",
        "text": f"text {number}",
        "truth": "sea",
        "answer": "hill",
        "probability": pytest.approx(surenesses[number]),
    }


def test_worst_errors_of_graded_rows_are_the_lowest_scores_below_1() -> None:
    examples = [Example(f"id{n}", f"text {n}", "the truth") for n in range(4)]
    predictions = [answer(each, "hill") for each in examples]
    scores = Scores("rouge_l", {}, correct=[0.7, 1.0, 0.0, 0.2])
    found = worst_errors(predictions, examples, scores)
    assert [(each["id"], each["score"]) for each in found] == [
        ("id2", 0),
        ("id3", 0.2),
        ("id0", 0.7),
    ]
    assert {each["probability"] for each in found} == {None}


@pytest.mark.parametrize(
    ("adapter", "name"),
    [
        ({"method": "full"}, "full"),
        ({"method": "lora"}, "lora"),
        ({"method": "head"}, "head"),
        ({"method": "top", "layers": 2}, "top:2"),
    ],
)
def test_adapter_is_named_as_on_the_command_line(adapter: dict[str, object], name: str) -> None:
    assert adapter_name(make_recipe(None, {"adapter": adapter}, [])) == name


def test_metrics_become_plain_values_with_their_intervals() -> None:
    scores = Scores("accuracy", {"accuracy": Interval(0.5, 0.25, 0.75)})
    assert plain(scores) == {"accuracy": {"value": 0.5, "low": 0.25, "high": 0.75}}


@pytest.mark.parametrize(("policy", "kept"), [("keep", {"train": 3}), ("remove", {})])
def test_test_rows_that_others_have_too_are_told_where_they_are_kept(
    policy: str, kept: dict[str, int], build_setup: BuildSetup, run: RunFolder
) -> None:
    setup = build_setup("llama", data={"overlap": policy})
    answered(setup, run)
    pairs = (
        PairCounts("train", "validation", 9, 9, num_later_exact=9, num_later_near=9),
        PairCounts("train", "test", 5, 5, num_later_exact=1, num_later_near=2),
        PairCounts("validation", "test", 0, 0, num_later_exact=0, num_later_near=0),
    )
    setup = replace(setup, ledger=replace(setup.ledger, overlap=pairs))
    assert write_outcome(run, setup)["kept_overlap"] == kept


@pytest.mark.parametrize(("settings", "left_out"), [({}, 0), ({"max_train_rows": 20}, 14)])
def test_training_rows_that_were_not_drawn_are_counted(
    settings: dict[str, int], left_out: int, build_setup: BuildSetup, run: RunFolder
) -> None:
    setup = build_setup("llama", data=settings)
    answered(setup, run)
    results = write_outcome(run, setup)
    assert results["num_not_drawn"] == left_out
    assert results["num_examples"]["train"] + left_out == 34
