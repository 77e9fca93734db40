"""Validation rows are asked about as a user would ask, whether their tokens are kept or not."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from lushan.inference import predict
from lushan.workflows import encode as encoding
from lushan.workflows.tune import untrained
from lushan.workflows.validation import asked_features, validated
from tests.unit.workflows.conftest import BuildSetup


@pytest.mark.parametrize("fewest_stored", [1, 10_000])
def test_the_score_of_the_validation_rows_is_that_of_their_predictions(
    fewest_stored: int, build_setup: BuildSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUSHAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(encoding, "FEWEST_STORED", fewest_stored)
    setup = build_setup()
    told: list[str] = []
    predictor = untrained(setup, tell=told.append)
    asked = asked_features(setup, predictor, tell=told.append)
    found = validated(setup, predictor, asked, nullcontext)
    examples = setup.parts.validation
    predictions = predictor.predict(examples)
    right = [one.answer == two.target for one, two in zip(predictions, examples, strict=True)]
    assert found.score == pytest.approx(sum(right) / len(right))
    truths = [
        one.probabilities[str(two.target)] for one, two in zip(predictions, examples, strict=True)
    ]
    assert found.loss == pytest.approx(-sum(map(math.log, truths)) / len(truths))


CONVERSATIONS = [
    {
        "messages": [
            {"role": "user", "content": f"What is {number} and one?"},
            {"role": "assistant", "content": f"That is {number + 1}."},
        ]
    }
    for number in range(40)
]
BEGINNINGS = [
    {"prompt": f"Room {number}", "completion": f"is on floor {number % 7}."} for number in range(40)
]


SUMMARIES = [
    {"document": f"Room {number}", "summary": f"It is on floor {number % 7}."}
    for number in range(40)
]


@pytest.mark.parametrize(
    ("task", "rows", "generation"),
    [
        ("dialogue", CONVERSATIONS, {}),
        ("summarization", SUMMARIES, {"temperature": 0.7}),
        ("summarization", SUMMARIES, {"num_beams": 2}),
    ],
)
def test_truth_of_no_likelihood_is_a_loss_that_is_no_number(
    task: str, rows: list[dict[str, Any]], generation: dict[str, Any], build_setup: BuildSetup
) -> None:
    how = {"max_new_tokens": 4, **generation}
    setup = build_setup("llama", rows=rows, task=task, answer="generate", generation=how)
    predictor = untrained(setup, tell=lambda _: None)
    asked = asked_features(setup, predictor, tell=lambda _: None)
    next(predictor.backbone.model.parameters()).data.fill_(math.nan)
    found = validated(setup, predictor, asked, nullcontext)
    assert found.score == -math.inf
    assert math.isnan(found.loss)


@pytest.mark.parametrize(
    ("task", "rows"), [("dialogue", CONVERSATIONS), ("completion", BEGINNINGS)]
)
def test_nothing_is_written_where_the_likelihood_of_the_truth_decides(
    task: str,
    rows: list[dict[str, Any]],
    build_setup: BuildSetup,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setup = build_setup(
        "llama", rows=rows, task=task, answer="generate", generation={"max_new_tokens": 4}
    )
    predictor = untrained(setup, tell=lambda _: None)
    asked = asked_features(setup, predictor, tell=lambda _: None)
    examples = setup.parts.validation
    whole = setup.task.score(predictor.examine(examples), examples, setup.state)
    monkeypatch.setattr(predict, "generate", lambda *_, **__: pytest.fail("something was written"))
    found = validated(setup, predictor, asked, nullcontext)
    assert whole.main_metric == "answer_log_likelihood"
    assert found.score == pytest.approx(whole.metrics[whole.main_metric].value)
