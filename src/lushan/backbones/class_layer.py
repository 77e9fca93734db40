"""The class layer that a pretrained model brings along: for which labels it is, and one that fits others in its place."""

from collections.abc import Sequence
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


def notes_on_layer(folder: Path, layer: AnswerLayer) -> list[str]:
    """Tell what becomes of the class layer that a model folder has, where one is asked for."""
    own = own_labels(folder) if layer.labels else None
    if own is None:
        return []
    if own == tuple(layer.labels):
        return ["The model has a class layer for these labels: the training goes on from it."]
    if _has_same_names(own, layer.labels):
        return [
            "The model has a class layer for these labels in another order: its rows are put into the order of these, and "
            "the training goes on from it."
        ]
    named = ", ".join(f"`{label}`" for label in own[:_MOST_NAMED])
    more = ", ..." if len(own) > _MOST_NAMED else ""
    return [
        f"The model has a class layer for {len(own)} labels ({named}{more}), which are not those of these rows: a new one "
        "is drawn."
    ]


def fit_class_layer(backbone: Backbone, folder: Path, layer: AnswerLayer, *, seed: int) -> None:
    """Have the class layer that a model folder has answer with other labels.

    For the same labels in another order its rows change places; for others another layer is drawn, as for a model that
    has none.

    Args:
        backbone: Loaded from the folder for these labels, without an adapter; changed in place.
        folder: The model folder.
        layer: What is asked for.
        seed: Of the draw.
    """
    own = own_labels(folder) if layer.labels else None
    if own is None or own == tuple(layer.labels):
        return
    if _has_same_names(own, layer.labels):
        _put_in_order(backbone, [own.index(label) for label in layer.labels])
    else:
        draw_class_layer(backbone, seed=seed)


def _has_same_names(own: Sequence[str], labels: Sequence[str]) -> bool:
    return sorted(own) == sorted(labels)


def _put_in_order(backbone: Backbone, rows: Sequence[int]) -> None:
    """Give each label the row of the layer that is its own, and its bias."""
    for name, weight in backbone.plain_model.named_parameters():
        # The layer before the last may be as wide as there are labels.
        is_last = is_head(name) and ".dense." not in name
        if is_last and len(weight) == len(rows):
            weight.data = weight.data[torch.tensor(rows, device=weight.device)]


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
