"""Tuned models in run folders, without the minutes that tuning takes: their trained weights are drawn at random."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from lushan.backbones.adapters import Method, attach
from lushan.backbones.encoding import LengthLimit
from lushan.backbones.load import Backbone, load_backbone
from lushan.catalog import load_task
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.predict import Predictor
from lushan.model_store import certificate
from lushan.model_store.tuned_model import (
    TunedModel,
    load_predictor,
    model_version,
    save_model,
    weights_digest,
)
from lushan.records import AnswerMode, Example, TaskState
from tests.runs import answers_of_this_process

LABELS = tuple(sorted(str(number) for number in range(11)))
"""As text, "10" comes before "2": whoever sorts again as numbers mixes up the classes."""
STATE = TaskState(labels=LABELS)
LIMIT = LengthLimit(128, "window")
TEXTS = (
    "a great film, 10 out of 10",
    "the soup was cold",
    "home along the river",
    "the fox",
    "never again, and again, and again",
)
EXAMPLES = [Example(f"id{number}", text, None) for number, text in enumerate(TEXTS)]


def save_tuned(
    run: Path,
    base: Path,
    *,
    answer: AnswerMode = "head",
    method: Method = "full",
    state: TaskState = STATE,
    precision: Literal["bf16", "fp32"] = "fp32",
) -> Predictor:
    """Save a model as a run would, and give it as it is in memory."""
    backbone = load_backbone(
        base,
        purpose="classify" if answer == "head" else "language",
        labels=state.labels,
        multi_label=state.multi_label,
        precision=precision,
        seed=5,
    )
    attach(backbone, method=method, layers=1, rank=4)
    draw_trained_weights(backbone)
    run.mkdir(parents=True, exist_ok=True)
    meaning = replace(meaning_of(backbone, base, answer, state), precision=precision)
    save_model(run / "model", backbone, meaning)
    return Predictor(
        backbone,
        load_task("classification"),
        state,
        answer,
        LIMIT,
        version=model_version(run / "model"),
    )


def save_writer(run: Path, base: Path) -> Path:
    """Save a certified adapter that writes what follows a text."""
    backbone = load_backbone(base, purpose="language", precision="fp32")
    attach(backbone, method="lora", layers=1, rank=4)
    draw_trained_weights(backbone)
    run.mkdir(parents=True)
    meaning = meaning_of(backbone, base, "generate", TaskState())
    generation = GenerationSettings(max_new_tokens=12)
    limit = LengthLimit(100, "error")
    meaning = replace(meaning, task="summarization", limit=limit, generation=generation)
    save_model(run / "model", backbone, meaning)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificate, "_answers_of_fresh_process", answers_of_this_process)
        certificate.certify(run, load_predictor(run), EXAMPLES)
    return run


def meaning_of(
    backbone: Backbone, base: Path, answer: AnswerMode = "head", state: TaskState = STATE
) -> TunedModel:
    """Say what a saved model means."""
    return TunedModel(
        task="classification",
        answer=answer,
        state=state,
        limit=LIMIT,
        precision="fp32",
        adapter="full",
        base_model=str(base),
        base_digest=weights_digest(base),
        tokenizer_fingerprint=backbone.tokenizer.fingerprint,
    )


def draw_trained_weights(backbone: Backbone, seed: int = 7) -> None:
    """Change whatever is trained so much that answers to different texts differ clearly."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in backbone.model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.requires_grad:
                weight.copy_(noise * 0.4 if weight.ndim == 2 else weight + noise * 0.1)
    backbone.model.eval()
