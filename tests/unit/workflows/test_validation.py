"""Validation rows are asked about as a user would ask, whether their tokens are kept or not."""

import math
from contextlib import nullcontext
from pathlib import Path

import pytest

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
