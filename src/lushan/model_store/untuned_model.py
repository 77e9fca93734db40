"""A pretrained model as it is: how it is asked where nobody tuned it."""

from lushan.backbones.encoding import LengthLimit
from lushan.backbones.load import Backbone
from lushan.catalog import load_task
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.predict import Predictor
from lushan.records import TaskState

MOST_ANSWER_TOKENS = 1024
"""Of a model that is not told how long its answer may be."""


def untuned_predictor(backbone: Backbone, *, digest: str) -> Predictor:
    """Put together what answers conversations for a pretrained model; half its context is left to what is asked.

    Args:
        backbone: The model.
        digest: Of its weights.
    """
    context_tokens = backbone.facts.context_tokens
    return Predictor(
        backbone,
        load_task("dialogue"),
        TaskState(),
        "generate",
        LengthLimit(context_tokens, "error"),
        version=digest[:12],
        generation=GenerationSettings(max_new_tokens=min(MOST_ANSWER_TOKENS, context_tokens // 2)),
    )
