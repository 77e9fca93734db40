"""The class layer that a pretrained model brings along: for which labels it is, and another one in its place."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from lushan.backbones.inspect import describe, is_head
from lushan.backbones.load import AnswerLayer, Backbone
from lushan.backbones.quiet import quiet_transformers

_MOST_NAMED = 5


def own_labels(folder: Path) -> tuple[str, ...] | None:
    """Give the labels of the class layer of a model folder, in the order of their numbers; None where it has none."""
    if not describe(folder).has_class_layer:
        return None
    with quiet_transformers():
        config: Any = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    return tuple(str(config.id2label[number]) for number in sorted(config.id2label))


def has_other_layer(folder: Path, layer: AnswerLayer) -> bool:
    """Whether the class layer of a model folder is for other labels, or for the same in another order."""
    own = own_labels(folder) if layer.labels else None
    return own is not None and own != tuple(layer.labels)


def notes_on_layer(folder: Path, layer: AnswerLayer) -> list[str]:
    """Tell what becomes of the class layer that a model folder has, where one is asked for."""
    own = own_labels(folder) if layer.labels else None
    if own is None:
        return []
    if own == tuple(layer.labels):
        return ["The model has a class layer for these labels: the training goes on from it."]
    named = ", ".join(f"`{label}`" for label in own[:_MOST_NAMED])
    more = ", ..." if len(own) > _MOST_NAMED else ""
    return [
        f"The model has a class layer for {len(own)} labels ({named}{more}), which are not those of these rows in their "
        "order: a new one is drawn."
    ]


def draw_class_layer(backbone: Backbone, *, seed: int) -> None:
    """Give a model another class layer, drawn as it is for a model that has none.

    Args:
        backbone: Loaded for labels, without an adapter; changed in place.
        seed: Of the draw.
    """
    model = backbone.plain_model
    names = [name for name, _ in model.named_parameters() if is_head(name)]
    parts = [each for name, each in model.named_modules() if is_head(name)]
    # What is marked so, `transformers` leaves as it is; some architectures draw their layer as the whole model's.
    for each in (model, *parts, *map(model.get_parameter, names)):
        each._is_hf_initialized = False
    torch.manual_seed(seed)
    model.initialize_weights()
    backbone.fresh_weights = tuple(sorted({*backbone.fresh_weights, *names}))
