"""What every task promises, whichever way it answers; a new file in `lushan/tasks` is tested by being there."""

import csv
import dataclasses
import importlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from lushan.backbones.encoding import LengthLimit, watch_encoding
from lushan.backbones.load import Backbone, load_backbone
from lushan.catalog import load_baseline, load_task, names_in
from lushan.data.batching import pack
from lushan.data.columns import Notes
from lushan.data.readers import read_rows
from lushan.data.splits import Parts
from lushan.errors import DataError, SettingError
from lushan.explain.explanation import explain
from lushan.explain.settings import ExplainSettings
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.predict import Predictor
from lushan.records import (
    AnswerMode,
    Example,
    Features,
    Prediction,
    Row,
    Span,
    TaskState,
    Triple,
    answer_from_plain,
    plain_answer,
)
from lushan.tasks import Preparation, Task
from lushan.workflows.prepare import columns_for
from lushan.workflows.recipe import TaskSettings
from tests.conftest import MakeTiny

LIMIT = LengthLimit(128, "error")
SHORT = GenerationSettings(max_new_tokens=12)
WAYS: list[tuple[str, AnswerMode]] = [
    (name, answer) for name in names_in("lushan.tasks") for answer in load_task(name).answers
]
SCALES = {
    "bleu": (0, 100.0001),  # a sum of logarithms does not end at 100 exactly
    "chrf": (0, 100),
    "perplexity": (1, math.inf),
    "answer_log_likelihood": (-math.inf, 0),
    "reply_length": (0, math.inf),
    "compression": (0, math.inf),
}
"""Least and most of metrics that are no fractions."""
PREDICTION_FIELDS = {"id", "answer", "probabilities", "log_likelihood", "model_version"}


@dataclass(frozen=True)
class Setup:
    """One task, answering in one way, with a tiny model and the examples of its sample rows."""

    task: Task
    answer: AnswerMode
    backbone: Backbone
    examples: list[Example]
    state: TaskState

    def encode(self, *, with_target: bool = True, limit: LengthLimit = LIMIT) -> list[Features]:
        return self.task.encode(
            self.examples,
            self.state,
            self.backbone.tokenizer,
            answer=self.answer,
            limit=limit,
            with_target=with_target,
        )

    def predict(self, examples: Sequence[Example]) -> list[Prediction]:
        return self.predictor(LIMIT).predict(examples)

    def predictor(self, limit: LengthLimit) -> Predictor:
        return Predictor(
            self.backbone, self.task, self.state, self.answer, limit, "v1", generation=SHORT
        )

    def mean_loss(self) -> torch.Tensor:
        found = self.task.loss(self.backbone, pack(self.encode()), self.state, dropout=0.0)
        return found.total / found.count


@pytest.fixture(params=names_in("lushan.tasks"))
def task(request: pytest.FixtureRequest) -> Task:
    return load_task(request.param)


@pytest.fixture(params=WAYS, ids="-".join)
def setup(request: pytest.FixtureRequest, tiny_folder: MakeTiny) -> Setup:
    name, answer = request.param
    task: Task = load_task(name)
    examples = [task.read(row) for row in task.sample_rows()]
    state = task.prepare(examples, Preparation(run_code=True), multi_label=False)
    layer = task.layer(state, answer=answer)
    backbone = load_backbone(tiny_folder("llama"), **layer._asdict())
    return Setup(task, answer, backbone, examples, state)


def test_docstring_names_the_columns(task: Task) -> None:
    docstring = importlib.import_module(type(task).__module__).__doc__ or ""
    assert [column for column in task.columns.required if f"`{column}`" not in docstring] == []


def test_sample_rows_are_read_and_have_different_ids(task: Task) -> None:
    ids = {task.read(row).id for row in task.sample_rows()}
    assert len(ids) == len(task.sample_rows()) >= 4


def test_rows_of_a_csv_file_whose_lists_are_json_are_read_as_others(
    task: Task, tmp_path: Path
) -> None:
    rows = task.sample_rows()
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for row in rows:
            values = (row.values.get(name, "") for name in names)
            writer.writerow(each if isinstance(each, str) else json.dumps(each) for each in values)
    wanted = columns_for(task, multi_label=False)
    found = read_rows(tmp_path / "rows.csv", columns={}, wanted=wanted, notes=Notes("rows.csv"))
    read, expected = (
        [dataclasses.replace(task.read(row), place="") for row in each] for each in (found, rows)
    )
    assert read == expected


def test_row_without_a_column_is_refused_by_row_and_column(task: Task) -> None:
    for column in task.columns.required:
        complete = task.sample_rows()[0]
        values = {name: value for name, value in complete.values.items() if name != column}
        with pytest.raises(DataError, match=rf"reviews\.csv, row 7.*`{column}`"):
            task.read(Row(values, "reviews.csv", 7))


def test_row_without_its_target_can_be_asked(task: Task) -> None:
    kept = task.columns.asked.names
    values = {name: x for name, x in task.sample_rows()[0].values.items() if name in kept}
    example = task.read(Row(values, "a", 1), needs_target=False)
    assert example.target is None


def test_encoding_is_the_same_every_time_and_keeps_the_limit(setup: Setup) -> None:
    longest = max(len(each.token_ids) for each in setup.encode())
    limit = LengthLimit(longest - 3, "truncate")
    features = setup.encode(limit=limit)
    assert features == setup.encode(limit=limit)
    assert max(len(each.token_ids) for each in features) == longest - 3
    assert max(each.num_cut_tokens for each in features) == 3


def test_encoding_without_target_supervises_nothing_and_tells_nothing(setup: Setup) -> None:
    known = setup.encode(with_target=False)
    blank = [dataclasses.replace(example, target=None) for example in setup.examples]
    asked = dataclasses.replace(setup, examples=blank).encode(with_target=False)
    assert [each.token_ids for each in known] == [each.token_ids for each in asked]
    assert all(each.target == -1 and each.targets_from == -1 for each in known)


def test_tokens_of_an_example_do_not_depend_on_what_else_is_encoded(setup: Setup) -> None:
    together = setup.encode()
    for index, example in enumerate(setup.examples):
        alone = dataclasses.replace(setup, examples=[example]).encode()
        found = [each.token_ids for each in together if each.example_index == index]
        assert found == [each.token_ids for each in alone]


def test_every_example_is_supervised(setup: Setup) -> None:
    features = setup.encode()
    assert {each.example_index for each in features} == set(range(len(setup.examples)))
    assert all(each.num_supervised > 0 and each.weight > 0 for each in features)


def test_loss_is_a_finite_scalar_with_a_gradient(setup: Setup) -> None:
    loss = setup.mean_loss()
    loss.backward()
    gradients = [
        weight.grad for weight in setup.backbone.model.parameters() if weight.grad is not None
    ]
    assert loss.shape == ()
    assert math.isfinite(loss.item())
    assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0


def test_30_steps_on_the_samples_lower_the_loss(setup: Setup) -> None:
    optimizer = torch.optim.AdamW(setup.backbone.model.parameters(), lr=1e-2)
    before = setup.mean_loss().item()
    for _ in range(30):
        optimizer.zero_grad()
        setup.mean_loss().backward()
        optimizer.step()
    assert setup.mean_loss().item() < 0.7 * before


def test_there_is_one_prediction_per_example_in_order(setup: Setup) -> None:
    predictions = setup.predict(setup.examples)
    assert [each.id for each in predictions] == [each.id for each in setup.examples]
    assert {each.model_version for each in predictions} == {"v1"}
    assert all(each.log_likelihood <= 0 for each in predictions)


def test_prediction_does_not_depend_on_what_else_is_asked(setup: Setup) -> None:
    together = setup.predict(setup.examples)
    alone = [setup.predict([example])[0] for example in setup.examples]
    assert [each.answer for each in together] == [each.answer for each in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_names_that_are_answered_stand_in_the_text_as_whole_words_with_known_labels(
    setup: Setup,
) -> None:
    if not setup.state.most_items:
        pytest.skip("its answers are no lists of names")
    for example, found in zip(setup.examples, setup.predict(setup.examples), strict=True):
        for part in found.answer:
            assert isinstance(part, Span | Triple)
            assert part.label in setup.state.labels
            for each in (part,) if isinstance(part, Span) else (part.head, part.tail):
                assert example.text[each.start : each.end] == each.text
                edges = (each.start - 1, each.start + 1), (each.end - 1, each.end + 1)
                around = [example.text[max(first, 0) : end] for first, end in edges]
                assert not any(re.fullmatch("[A-Za-z]{2}", pair) for pair in around)


def test_prediction_does_not_depend_on_the_truth(setup: Setup) -> None:
    blank = [dataclasses.replace(example, target=None) for example in setup.examples]
    assert setup.predict(blank) == setup.predict(setup.examples)


def test_text_in_windows_gets_one_answer_per_example(setup: Setup) -> None:
    longest = max(len(each.token_ids) for each in setup.encode(with_target=False))
    limit = LengthLimit(longest - 3, "window")
    if setup.predictor(limit).writes:
        with pytest.raises(SettingError, match=r"`data\.over_length=window`.*truncate"):
            setup.encode(limit=limit)
        return
    windows = setup.encode(with_target=False, limit=limit)
    assert len(windows) > len(setup.encode(with_target=False))
    predictions = setup.predictor(limit).predict(setup.examples)
    assert [each.id for each in predictions] == [each.id for each in setup.examples]


def test_setting_of_a_task_is_one_that_there_is(task: Task) -> None:
    assert task.settings <= set(TaskSettings.model_fields)
    assert task.answers


def test_baseline_of_a_task_is_there_and_answers_its_samples(setup: Setup) -> None:
    parts = Parts(setup.examples, setup.examples, setup.examples)
    for name in setup.task.baselines:
        found = load_baseline(name).answer(parts, state=setup.state)
        assert [each.id for each in found.predictions] == [each.id for each in setup.examples]
        assert setup.task.score(found.predictions, setup.examples, setup.state).metrics
        few = load_baseline(name).answer(
            dataclasses.replace(parts, train=setup.examples[:2]), state=setup.state
        )
        assert found.learns or few.predictions == found.predictions


def test_wording_fits_into_its_sentences(task: Task) -> None:
    assert task.wording.use.format(count=2, labels="a, b").endswith(".")
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", task.wording.pipeline_tag)
    assert task.wording.limits.keys() <= set(task.answers)
    assert task.writes or task.wording.limits.keys() == set(task.answers)
    assert all(each.endswith(".") for each in task.wording.limits.values())


def test_predictions_survive_json(setup: Setup) -> None:
    (prediction, *_) = setup.predict(setup.examples)
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(prediction)))
    assert set(values) >= PREDICTION_FIELDS
    assert values["answer"] == plain_answer(prediction.answer)
    values["answer"] = answer_from_plain(values["answer"])
    values["samples"] = tuple(values["samples"])
    values["tool_calls"] = tuple(values["tool_calls"])
    assert Prediction(**values) == prediction


def test_state_survives_json(setup: Setup) -> None:
    values = json.loads(json.dumps(dataclasses.asdict(setup.state)))
    assert tuple(values["labels"]) == setup.state.labels


def test_what_the_user_gave_is_found_in_the_text_that_the_model_sees(setup: Setup) -> None:
    with watch_encoding() as seen:
        setup.encode()
    for rendered, _ in seen:
        given = [rendered.text[start:end] for start, end in rendered.given_ranges]
        supervised = [range(*place) for place in rendered.supervised]
        lines = [line for part in given for line in part.splitlines()]
        assert "".join(lines).strip()
        told = [str((each.shown, *each.extra.values())) for each in setup.examples]
        assert any(all(part in text for part in lines) for text in told)
        assert not any(start in place for start, _ in rendered.given_ranges for place in supervised)


def test_explanation_shares_out_the_score_of_the_answer(setup: Setup) -> None:
    settings = ExplainSettings(most_steps=64, num_draws=1)
    found = list(explain(setup.predictor(LIMIT), setup.examples[:3], settings=settings))
    assert [each.id for each in found] == [each.id for each in setup.examples[:3]]
    for explanation in found:
        for part in explanation.parts:
            weights = [each.weight for each in (*part.tokens, *part.template)]
            difference = part.score - part.baseline_score
            assert sum(weights) == pytest.approx(difference, abs=0.02 * sum(map(abs, weights)))
            assert part.completeness_gap <= settings.most_gap
            assert all(x.text == explanation.text[x.start : x.end] for x in part.words)


def test_perfect_answers_score_the_maximum(setup: Setup) -> None:
    certain = {"truth_log_likelihood": 0.0, "num_truth_tokens": 1}
    truth = [
        dataclasses.replace(each, answer=example.target, **certain)
        for each, example in pairs(setup)
    ]
    scores = setup.task.score(truth, setup.examples, setup.state)
    best = SCALES.get(scores.main_metric, (0, 1))[1]
    assert scores.metrics[scores.main_metric].value == pytest.approx(best)
    assert list(scores.correct) == pytest.approx([1] * len(setup.examples))


def test_scores_and_their_intervals_are_in_range(setup: Setup) -> None:
    predictions = setup.predictor(LIMIT).examine(setup.examples)
    scores = setup.task.score(predictions, setup.examples, setup.state)
    assert scores.main_metric in scores.metrics
    for name, interval in scores.metrics.items():
        least, most = SCALES.get(name, (0, 1))
        assert least <= interval.low <= interval.value <= interval.high <= most


def pairs(setup: Setup) -> list[tuple[Any, Example]]:
    """Give each prediction with its example."""
    return list(zip(setup.predict(setup.examples), setup.examples, strict=True))
