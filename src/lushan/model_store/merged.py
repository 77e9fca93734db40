"""A tuned model as one piece in float32: its adapter merged into the base, and matrices parted that it made different."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lushan.backbones.load import Backbone
from lushan.backbones.quiet import quiet_transformers
from lushan.inference.predict import Predictor
from lushan.model_store.tuned_model import TunedModel, load_predictor, model_folder, read_meaning


@dataclass(frozen=True, slots=True)
class Merged:
    """A tuned model without an adapter."""

    predictor: Predictor
    """In float32; asks and answers as the run does."""
    meaning: TunedModel
    """Of the run, with its adapter and precision."""
    folder: Path
    """The model folder that it came from."""
    notes: tuple[str, ...] = ()
    """What became of shared matrices, for a person."""


def load_merged(run: Path) -> Merged:
    """Load the tuned model of a run folder as one piece.

    Raises:
        UserError: If there is no whole tuned model; see `load_predictor`.
    """
    predictor = load_predictor(run, precision="fp32")
    notes = merge_adapter(predictor.backbone)
    folder = model_folder(run)
    return Merged(predictor, read_meaning(folder), folder, tuple(notes))


def merge_adapter(backbone: Backbone) -> list[str]:
    """Put what an adapter adds into the weights beside it; gives what a person should know.

    Args:
        backbone: Changed in place; one without an adapter stays as it is.
    """
    if isinstance(backbone.model, PreTrainedModel):
        return []
    notes = _part_shared_matrices(backbone.plain_model)
    with quiet_transformers():
        backbone.model = backbone.model.merge_and_unload().eval()
    return notes


def _part_shared_matrices(model: Any) -> list[str]:  # noqa: ANN401 - transformers' classes share no useful type
    """Give input and output a matrix each where an adapter changes one of two that are the same.

    Merged as they are, what is meant for one would be added to both.
    """
    output = model.get_output_embeddings()
    if not model.config.tie_word_embeddings or output is None:
        return []
    layers = {"input": model.get_input_embeddings(), "output": output}
    changed = [name for name, layer in layers.items() if _pretrained(layer) is not layer]
    if not changed:
        return []
    pretrained = _pretrained(output)
    pretrained.weight = nn.Parameter(pretrained.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False
    return [
        f"The adapter changes the {' and the '.join(changed)} embedding, which the base shares: both are now kept, which "
        f"adds {pretrained.weight.numel():,} weights."
    ]


def _pretrained(layer: Any) -> Any:  # noqa: ANN401
    """The layer inside of what PEFT has put around it; itself where there is nothing."""
    return getattr(layer, "base_layer", getattr(layer, "original_module", layer))
