"""The label curve: how many labels it takes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lushan.baselines import Baseline
from lushan.data.batching import PackedSource
from lushan.data.splits import Parts, subsample
from lushan.evaluation.phrases import label_outlook
from lushan.inference.predict import Predictor
from lushan.model_store import certificate
from lushan.model_store.run_folder import RunFolder
from lushan.records import Features, Interval, Prediction, Scores, TaskState
from lushan.workflows import label_curve
from lushan.workflows.label_curve import (
    _baseline_scores,
    _joined,
    _Point,
    _strongest,
    _with_few_rows,
    run_label_curve,
)
from lushan.workflows.tune import _unwatched, train_apart, untrained
from tests.bad_inputs import good_rows, write_lines, write_splits
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


@pytest.mark.parametrize(("adapter", "num_draws"), [("full", 1), ("top:1", 1), ("head", 5)])
def test_curve_has_a_point_for_each_size_below_the_rows_and_stands_in_the_report(
    adapter: str, num_draws: int, data: Path, *, tiny_folder: MakeTiny,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(certificate, "_answers_of_fresh_process", answers_of_this_process)
    monkeypatch.setattr(label_curve, "SIZES", (4, 8, 64))
    monkeypatch.setattr(label_curve, "FEWEST_STEPS", 3)
    monkeypatch.setattr(label_curve, "FEWEST_HEAD_STEPS", 3)
    out = data / "run"
    options = ["--task", "classification", "--model", str(tiny_folder("llama")), "--epochs", "1"]
    options += ["--adapter", adapter, "--overlap", "keep", "--set", "model.precision=fp32"]
    assert tune(data, out, *options, "--set", "data.label_curve=true") == 0
    curve = read(out / "results.json")["label_curve"]
    assert [point["num_rows"] for point in curve] == [4, 8, 24]
    assert [point["num_draws"] for point in curve] == [num_draws, num_draws, 1]
    assert [point["num_steps"] for point in curve] == [3, 3, None]
    assert all(0 <= point["low"] <= point["score"] <= point["high"] <= 1 for point in curve)
    assert all(0 <= point["baseline_score"] <= 1 for point in curve)
    kept = max(each["score"] for each in read(out / "results.json")["validation"])
    assert curve[-1]["score"] == pytest.approx(kept)
    assert all(
        point["rise"]["value"] == pytest.approx(kept - point["score"]) for point in curve[:-1]
    )
    page = (out / "report.html").read_text(encoding="utf-8")
    section = page[page.index("How many labels it takes") :]
    assert re.findall(r'<th scope="row" class="number">(\d+)</th>', section)[:3] == ["4", "8", "24"]


def test_few_rows_are_drawn_by_the_seed_and_repeated_to_enough_steps(
    build_setup: BuildSetup,
) -> None:
    setup = build_setup("llama")
    few = _with_few_rows(setup, 4, seed=setup.recipe.seed)
    expected = subsample(setup.parts.train, 4, seed=setup.recipe.seed)
    assert [each.id for each in few.parts.train] == [each.id for each in expected]
    rows_per_step = setup.recipe.training.rows_per_step
    source = PackedSource(few.features["train"], rows_per_step=rows_per_step, seed=0)
    steps = [
        sum((each.features for each in step.micro_batches), ()) for step in source.rest_of_epoch()
    ]
    assert len(steps) == label_curve.FEWEST_STEPS
    assert {len(step) for step in steps} == {rows_per_step}
    assert {each.token_ids for step in steps for each in step} == {
        each.token_ids for each in few.features["train"][:4]
    }
    assert few.state == setup.state
    assert len(few.features["validation"]) == len(setup.features["validation"])
    assert few.recipe.training.keep == "last"


def test_few_rows_are_learned_as_they_are_in_the_whole_run(build_setup: BuildSetup) -> None:
    texts = [f"{row['text']} " * 6 + "End" for row in good_rows()]
    rows = [
        {"text": text, "entities": [[0, 3, "x"], [len(text) - 3, len(text), "x"]]} for text in texts
    ]
    cut = {"over_length": "truncate"}
    setup = build_setup("llama", rows=rows, task="tagging", answer="generate", data=cut)
    few = _with_few_rows(setup, 8, seed=0)
    learned = {each.token_ids for each in setup.features["train"]}
    assert {each.token_ids for each in few.features["train"]} <= learned
    assert {each.num_cut_items for each in few.features["train"]} == {1}


def test_head_begins_anew_in_every_draw_and_reads_what_frozen_layers_made(
    build_setup: BuildSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = build_setup("llama", adapter={"method": "head"}, engine={"batch_tokens": 512})
    source = label_curve._Source(setup, lambda few: untrained(few, tell=lambda _: None))
    assert source.is_cheap
    few = _with_few_rows(source.setup, 4, seed=0)
    monkeypatch.setattr(type(source.give(few).backbone), "_run", pytest.fail)
    seen: list[list[float]] = []
    for _ in range(2):
        predictor = source.give(few)
        train_apart(predictor, few, tell=lambda _: None)
        found = predictor.examine(few.parts.validation)
        seen.append([each.log_likelihood for each in found])
    assert seen[0] == seen[1]


def test_training_apart_reads_the_documents_of_one_validation_row(build_setup: BuildSetup) -> None:
    setup = build_setup("llama")
    documents = [
        replace(each, example_index=each.example_index // 2)
        for each in setup.features["validation"]
    ]
    read: list[int] = []

    class Counting(Sequence[Features]):
        def __len__(self) -> int:
            return len(documents)

        def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 - slices are not needed
            read.append(index)
            return documents[index]

    found = _unwatched(replace(setup, features={**setup.features, "validation": Counting()}))
    assert found.features["validation"] == documents[:2]
    assert read == [0, 1, 2]
    assert len(documents) > len(read)


@dataclass(frozen=True)
class Examined:
    """Stands for a model that is asked."""

    answers: list[Prediction]
    state: TaskState

    def examine(self, _: object) -> list[Prediction]:
        return self.answers


def test_rows_that_a_model_added_are_neither_drawn_nor_counted(
    build_setup: BuildSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = [{**row, "text": f"{row['text']} Once more.", "augmented": True} for row in good_rows()]
    added = write_lines(tmp_path / "new.jsonl", new)
    setup = build_setup("llama", data={"added": str(added), "overlap": "keep"})
    labelled = len(setup.parts.train) - len(new)
    monkeypatch.setattr(label_curve, "SIZES", (4, labelled - 1, labelled))
    answers = [Prediction(each.id, "sea", {"sea": 1.0}) for each in setup.parts.validation]
    examined = Examined(answers, setup.state)
    monkeypatch.setattr(label_curve, "load_predictor", lambda _: examined)
    texts: list[str] = []
    notes: dict[str, Any] = {}
    run = SimpleNamespace(path=Path(), get=notes.get, note=notes.update)
    run_label_curve(
        cast("RunFolder", run), setup, untrained=lambda _: cast("Predictor", examined),
        train=lambda _, few: texts.extend(each.text for each in few.parts.train) or 1, tell=lambda _: None,
    )  # fmt: skip
    assert len(texts) == 4 + labelled - 1
    assert not [text for text in texts if text.endswith("Once more.")]
    told = [(each["num_rows"], each["num_added"]) for each in notes["label_curve"]]
    assert told == [(4, 0), (labelled - 1, 0), (labelled, len(new))]


@pytest.mark.parametrize("num_there", [1, 2, 3])
def test_points_that_are_there_are_not_made_again(
    num_there: int, build_setup: BuildSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = build_setup("llama")
    monkeypatch.setattr(label_curve, "SIZES", (4, 8))
    answers = [Prediction(each.id, "sea", {"sea": 1.0}) for each in setup.parts.validation]
    examined = Examined(answers, setup.state)
    monkeypatch.setattr(label_curve, "load_predictor", lambda _: examined)
    trained: list[int] = []
    notes: dict[str, Any] = {
        "label_curve": [{"num_rows": n, "rise": None} for n in (4, 8, 99)][:num_there]
    }
    run = SimpleNamespace(path=Path(), get=notes.get, note=notes.update)
    run_label_curve(
        cast("RunFolder", run), setup, untrained=lambda _: cast("Predictor", examined),
        train=lambda _, few: trained.append(len(few.parts.train)) or 1, tell=lambda _: None,
    )  # fmt: skip
    assert trained == [4, 8][num_there:]
    sizes = [each["num_rows"] for each in notes["label_curve"]]
    assert sizes == [4, 8, 99 if num_there == 3 else len(setup.parts.train)]


def test_baseline_of_the_curve_is_the_strongest_wherever_the_task_names_it(
    build_setup: BuildSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = build_setup("llama")
    assert setup.task.baselines == ("majority", "tf_idf")

    def answer(parts: Parts, *, name: str, state: TaskState) -> Baseline:
        del state
        labels = [str(each.target) if name == "majority" else "hill" for each in parts.test]
        rows = zip(parts.test, labels, strict=True)
        return Baseline([Prediction(each.id, label, {label: 1.0}) for each, label in rows], "")

    def load(name: str) -> SimpleNamespace:
        return SimpleNamespace(answer=partial(answer, name=name))

    monkeypatch.setattr(label_curve, "load_baseline", load)
    found = _baseline_scores(setup, setup.parts)
    assert found["majority"] == 1.0 > found["tf_idf"]
    point = _joined([_Point(Scores("accuracy", {}), found)], None, 8)
    assert point["baseline_score"] == 1.0


def test_strongest_baseline_is_that_of_all_draws_by_the_scale_of_the_metric() -> None:
    draws = [{"a": 1.0, "b": 0.5}, {"a": 0.0, "b": 0.75}]
    assert _strongest(draws, "accuracy") == 0.625
    assert _strongest(draws, "perplexity") == 0.5
    assert _strongest([{}], "accuracy") is None


def test_curve_is_not_certain_where_a_draw_answers_every_row_as_the_whole_run() -> None:
    scores = Scores("accuracy", {"accuracy": Interval(0.75, 0.5, 0.9)}, correct=[1, 1, 1, 0])
    one = _joined([_Point(scores, {})], scores, 8)["rise"]
    assert one["low"] == -one["high"] < -0.5
    told = label_outlook([{"num_rows": 8, "rise": one}, {"num_rows": 64, "rise": None}], "Accuracy")
    assert "would hardly bring more than +20." in told
    worse = Scores("accuracy", {}, correct=[0, 0, 0, 0])
    several = _joined([_Point(scores, {}), _Point(worse, {})], scores, 8)["rise"]
    assert (several["low"], several["high"]) == (-1, 1)
