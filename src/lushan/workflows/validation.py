"""Ask a model about the validation rows, again and again while it is trained."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from lushan.inference.predict import Predictor, mean_loss
from lushan.records import Features
from lushan.training.loop import Evaluated
from lushan.workflows.encode import Encoder, encode, open_cache
from lushan.workflows.progress import Tell
from lushan.workflows.setup import Setup

Clock = Callable[[], AbstractContextManager[object]]


def asked_features(setup: Setup, predictor: Predictor, *, tell: Tell) -> Sequence[Features]:
    """Give the validation rows as the model is asked about them, for all evaluations."""
    tokenizer, limit = predictor.backbone.tokenizer, predictor.asked_limit
    encoder = Encoder(setup.task, setup.state, tokenizer, setup.recipe.answer, limit)
    cache = open_cache(setup.recipe)
    features = encode(setup.parts.validation, encoder, with_target=False, cache=cache, tell=tell)
    for note in cache.notes:
        tell(note)
    return features


def validated(
    setup: Setup, predictor: Predictor, features: Sequence[Features], clock: Clock
) -> Evaluated:
    """Ask about the validation rows and score what decides between weights; `clock` measures how long that takes."""
    with clock():
        examples = setup.parts.validation
        predictions = predictor.examine(examples, features=features, main_metric_only=True)
        if any(not math.isfinite(each.truth_log_likelihood or 0) for each in predictions):
            return Evaluated(-math.inf, math.nan)  # no score can be made of it
        scores = setup.task.score(predictions, examples, setup.state)
        loss = scores.details.get("log_loss")
        if loss is None:
            targets = setup.features["validation"]
            loss = mean_loss(setup.task, predictor.backbone, targets, setup.state)
        return Evaluated(scores.metrics[scores.main_metric].value, loss)
