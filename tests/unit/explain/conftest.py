"""Tiny models that answer for a task, with weights so large that answers differ clearly from text to text."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import MakeTiny

if TYPE_CHECKING:
    from lushan.inference.predict import Predictor
    from lushan.records import Example


@dataclass(frozen=True)
class Asked:
    """A model and the sample rows of its task."""

    predictor: "Predictor"
    examples: "list[Example]"


AskModel = Callable[..., Asked]


@pytest.fixture
def ask_model(tiny_folder: MakeTiny) -> AskModel:
    """Give a function from a task and a way of answering to a model with random weights."""
    import torch

    from lushan.backbones.encoding import LengthLimit
    from lushan.backbones.load import load_backbone
    from lushan.catalog import load_task
    from lushan.inference.generation_settings import GenerationSettings
    from lushan.inference.predict import Predictor
    from lushan.tasks import Preparation, Task

    def build(
        name: str = "classification",
        answer: Any = "head",  # noqa: ANN401
        model_type: str = "llama",
        *,
        multi_label: bool = False,
        limit: Any = None,  # noqa: ANN401
    ) -> Asked:
        task: Task = load_task(name)
        rows = task.sample_rows()
        examples = [task.read(row, multi_label=multi_label) for row in rows]
        state = task.prepare(examples, Preparation(run_code=True), multi_label=multi_label)
        layer = task.layer(state, answer=answer)
        backbone = load_backbone(tiny_folder(model_type), **layer._asdict())
        generator = torch.Generator().manual_seed(3)
        for weight in backbone.model.parameters():
            if weight.ndim == 2:
                weight.data = torch.randn(weight.shape, generator=generator) * 0.3
        predictor = Predictor(
            backbone,
            task,
            state,
            answer,
            limit or LengthLimit(128, "error"),
            "v1",
            GenerationSettings(max_new_tokens=8),
        )
        return Asked(predictor, examples)

    return build
