"""What a model folder must say beside the weights."""

from lushan.inference.predict import Predictor
from lushan.model_store.tuned_model import TunedModel
from lushan.workflows.outcome import adapter_name
from lushan.workflows.setup import Setup


def meaning_of(setup: Setup, predictor: Predictor, *, base_digest: str) -> TunedModel:
    """Say what a model folder needs beside the weights; `base_digest` is that of the pretrained weights."""
    recipe = setup.recipe
    return TunedModel(
        task=recipe.task,
        answer=recipe.answer,
        state=predictor.state,
        limit=setup.limit,
        precision="bf16" if recipe.model.precision == "bf16" else "fp32",
        adapter=adapter_name(recipe),
        base_model=recipe.model.name,
        base_digest=base_digest,
        tokenizer_fingerprint=predictor.backbone.tokenizer.fingerprint,
        generation=recipe.generation,
    )
