"""Models of every task with random heads, written in a form and asked through the program that is to load it."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from lushan.backbones.encoding import LengthLimit
from lushan.backbones.load import load_backbone
from lushan.catalog import load_task
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.predict import Predictor, head_outputs
from lushan.model_store import export_certificate
from lushan.model_store.export_certificate import certify_export
from lushan.model_store.export_program import Questions, answer
from lushan.model_store.exports import load_form
from lushan.model_store.merged import Merged
from lushan.records import AnswerMode, Example, Features
from lushan.tasks import Preparation, Task
from lushan.workflows import export_check
from tests.saved import meaning_of

LIMIT = LengthLimit(128, "truncate")
_USUAL = Preparation()


def ask_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask programs in this process, which takes no seconds to start."""
    for module in (export_check, export_certificate):
        monkeypatch.setattr(module, "ask_program", answer)


@cache
def examples_of(task_name: str) -> tuple[Example, ...]:
    """Give the examples of a task's own rows."""
    task: Task = load_task(task_name)
    return tuple(task.read(row) for row in task.sample_rows())


def merged_of(
    base: Path, task_name: str, answer: AnswerMode, preparation: Preparation = _USUAL
) -> Merged:
    """Give a model of a task as if it were tuned: what the base does not have is drawn at random."""
    task: Task = load_task(task_name)
    state = task.prepare(list(examples_of(task_name)), preparation, multi_label=False)
    layer = task.layer(state, answer=answer)
    backbone = load_backbone(base, **layer._asdict(), seed=5)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name in backbone.fresh_weights:
            weight = backbone.plain_model.get_parameter(name)
            weight.copy_(torch.randn(weight.shape, generator=generator))
    settings = GenerationSettings(max_new_tokens=8)
    predictor = Predictor(backbone, task, state, answer, LIMIT, generation=settings)
    meaning = replace(meaning_of(backbone, base, answer, state), task=task_name, limit=LIMIT)
    return Merged(predictor, replace(meaning, generation=settings), base)


def write_form(merged: Merged, form: str, folder: Path, quantise: str = "none") -> list[str]:
    """Write an export into a new folder, without comparing anything."""
    folder.mkdir()
    return load_form(form).write(merged, folder, quantise=quantise)


def certify_form(merged: Merged, form: str, folder: Path, quantise: str = "none") -> None:
    """Give an export that was written a certificate about the task's own rows."""
    certify_export(
        form,
        folder,
        quantise=quantise,
        run=merged.predictor,
        reads=load_form(form).reread(merged, folder),
        probes=examples_of(merged.meaning.task),
    )


def features_of(merged: Merged) -> list[Features]:
    """Encode the task's own rows as they are asked about."""
    return merged.predictor.encode(examples_of(merged.meaning.task))


def own_outputs(merged: Merged, features: Sequence[Features]) -> list[np.ndarray]:
    """What Lushan says of documents."""
    predictor = merged.predictor
    with torch.inference_mode():
        return list(head_outputs(predictor.task, predictor.backbone, features))


def program_outputs(
    merged: Merged, form: str, folder: Path, features: Sequence[Features]
) -> list[np.ndarray]:
    """What the program says of the same documents, asked in this process."""
    predictor = merged.predictor
    labels = predictor.task.layer(predictor.state, answer=predictor.answer).labels
    asked = Questions(form, str(folder), merged.meaning.task, len(labels), documents=features)
    return answer(asked).outputs


def assert_same_outputs(merged: Merged, form: str, folder: Path, *, atol: float = 1e-4) -> None:
    """Compare the two on the task's own rows."""
    features = features_of(merged)
    found = program_outputs(merged, form, folder, features)
    for ours, theirs in zip(own_outputs(merged, features), found, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=atol)
