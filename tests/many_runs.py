"""Runs of many kinds that were tuned from one base; their trained weights are drawn at random."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import pytest

from lushan.backbones.adapters import Method, attach
from lushan.backbones.load import load_backbone
from lushan.catalog import load_task
from lushan.inference.generation_settings import GenerationSettings
from lushan.model_store.tuned_model import TunedModel, save_model, weights_digest
from lushan.records import AnswerMode, Example, Prediction, TaskState
from lushan.tasks import Preparation, Task
from tests.saved import LIMIT, draw_trained_weights


@dataclass(frozen=True)
class Kind:
    """What was tuned, and how."""

    task: str
    answer: AnswerMode = "head"
    method: Method = "lora"
    rank: int = 4
    seed: int = 1
    precision: Literal["bf16", "fp32"] = "fp32"
    attention: Literal["causal", "bidirectional"] = "causal"
    no_answer_threshold: float | None = None


KINDS = {
    "topics": Kind("classification", rank=2),
    "names": Kind("tagging", rank=4, seed=2),
    "answers": Kind("answering", rank=8, seed=3),
    "stars": Kind("classification", method="head", seed=4),
    "links": Kind("relations", method="head", seed=5),
    "chooses": Kind("classification", "generate", rank=3, seed=6),
    "quiz": Kind("choice", "generate", rank=5, seed=7),
    "talks": Kind("dialogue", "generate", rank=4, seed=8),
    "sums": Kind("summarization", "generate", rank=6, seed=9),
    "tells": Kind("answering", "generate", rank=3, seed=10, no_answer_threshold=6.3e-21),
}


@cache
def examples_of(task: str) -> list[Example]:
    """Examples that runs of a task are asked."""
    loaded: Task = load_task(task)
    return [loaded.read(row) for row in loaded.sample_rows()]


def save_run(run: Path, base: Path, kind: Kind) -> Path:
    """Save a model as a run would."""
    task: Task = load_task(kind.task)
    preparation = Preparation(run_code=True, attention=kind.attention)
    state: TaskState = task.prepare(examples_of(kind.task), preparation, multi_label=False)
    state = replace(state, no_answer_threshold=kind.no_answer_threshold)
    layer = task.layer(state, answer=kind.answer)
    backbone = load_backbone(base, **layer._asdict(), precision=kind.precision, seed=kind.seed)
    attach(backbone, method=kind.method, layers=1, rank=kind.rank)
    draw_trained_weights(backbone, kind.seed)
    meaning = TunedModel(
        task=kind.task,
        answer=kind.answer,
        state=state,
        limit=replace(LIMIT, policy="error"),
        precision=kind.precision,
        adapter="top:1" if kind.method == "top" else kind.method,
        base_model=str(base),
        base_digest=weights_digest(base),
        tokenizer_fingerprint=backbone.tokenizer.fingerprint,
        generation=GenerationSettings(max_new_tokens=12),
    )
    run.mkdir(parents=True)
    save_model(run / "model", backbone, meaning)
    return run


def assert_same(
    found: Sequence[Prediction], expected: Sequence[Prediction], *, tolerance: float = 1e-5
) -> None:
    """Answers are equal, and so are all numbers, to a tolerance."""
    for ours, theirs in zip(found, expected, strict=True):
        bare = {"probabilities": {}, "log_likelihood": 0.0, "log_likelihoods": {}}
        bare |= {"no_answer_probability": 0.0}
        assert replace(ours, **bare) == replace(theirs, **bare)
        absences = ours.no_answer_probability, theirs.no_answer_probability
        assert (absences[0] is None) is (absences[1] is None)
        assert absences[0] == pytest.approx(absences[1] or 0.0, rel=1e-3, abs=0) or None in absences
        for mine, other in (
            (ours.probabilities, theirs.probabilities),
            (ours.log_likelihoods, theirs.log_likelihoods),
        ):
            assert dict(mine) == pytest.approx(dict(other), abs=tolerance)
        assert ours.log_likelihood == pytest.approx(theirs.log_likelihood, abs=10 * tolerance)
