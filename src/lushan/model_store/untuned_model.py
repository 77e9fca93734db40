"""A pretrained model as it is: how it is asked where nobody tuned it."""

from lushan.backbones.encoding import LengthLimit
from lushan.backbones.load import Backbone
from lushan.catalog import load_task
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.predict import Predictor
from lushan.records import TaskState

MOST_ANSWER_TOKENS = 1024
"""Of a model that is not told how long its answer may be."""
PLAIN_TURN = "\n\nUser:"
"""Begins the next turn where a model has no chat template of its own, and may never have learned to stop."""


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
        untuned_state(backbone),
        "generate",
        LengthLimit(context_tokens, "error"),
        version=digest[:12],
        generation=untuned_generation(backbone),
    )


def untuned_generation(backbone: Backbone) -> GenerationSettings:
    """Say how long an answer may be where nobody says so: half the context at most."""
    half = backbone.facts.context_tokens // 2
    return GenerationSettings(max_new_tokens=min(MOST_ANSWER_TOKENS, half))


def untuned_state(backbone: Backbone) -> TaskState:
    """Tell where answers in conversations end: before the model speaks for the user, where it is a base model."""
    return TaskState(stop_strings=(PLAIN_TURN,) if backbone.tokenizer.chat.is_plain else ())
