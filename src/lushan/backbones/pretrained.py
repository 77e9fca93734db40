"""Weights of a model folder, read by transformers; those that do not fit or are broken are refused by name."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lushan.backbones import attention
from lushan.backbones.inspect import is_head
from lushan.backbones.quiet import quiet_transformers
from lushan.errors import ModelError

_HEAD_NAMES = ("score", "classifier", "pre_classifier", "pooler", "head")


def read_pretrained(
    folder: Path,
    model_class: Any,  # noqa: ANN401
    options: dict[str, Any],
) -> tuple[Any, tuple[str, ...]]:
    """Read the weights of a model folder in float32; nothing is fetched, and no code of the folder is run.

    Args:
        folder: A Hugging Face model folder.
        model_class: One of transformers' automatic classes.
        options: What it takes beside.

    Returns:
        The model, with the attention that keeps packed documents apart where its architecture lets it be replaced, and
        the names of weights of a class layer that the folder does not have, or has for another number of labels.

    Raises:
        ModelError: If the folder cannot be read, or its weights do not fit its configuration or are not finite.
    """
    try:
        model, info = _load_in_some_way(folder, model_class, options)
    except (AssertionError, OSError, RuntimeError, KeyError, ValueError) as error:
        raise ModelError(f"`{folder}` cannot be loaded: {error}") from None
    _check_keys(folder, info)
    check_values(folder, model.named_parameters())
    other_shapes = {name for name, _, _ in info["mismatched_keys"]}
    return model, tuple(sorted({*info["missing_keys"], *other_shapes}))


def _load_in_some_way(folder: Path, model_class: Any, options: dict[str, Any]) -> Any:  # noqa: ANN401
    try:
        return _load(folder, model_class, attention.ATTENTION_NAME, options)
    except (KeyError, ValueError) as error:
        # Some architectures (gpt_neo) have a fixed table of attention classes.
        if attention.ATTENTION_NAME not in str(error):
            raise
    return _load(folder, model_class, "eager", options)


def _load(folder: Path, model_class: Any, attention_name: str, options: dict[str, Any]) -> Any:  # noqa: ANN401
    with quiet_transformers():
        return model_class.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation=attention_name,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `_check_keys` refuses and names them
            **options,
        )


def _check_keys(folder: Path, info: dict[str, Any]) -> None:
    missing = [
        name
        for name in info["missing_keys"]
        if not any(part in _HEAD_NAMES for part in name.split("."))
    ]
    # A class layer for another number of labels has been drawn anew, as one that is missing.
    other_shapes = [
        f"{name} {list(found)} (expected {list(expected)})"
        for name, found, expected in info["mismatched_keys"]
        if not is_head(name)
    ]
    if missing or other_shapes:
        names = ", ".join([*sorted(missing), *sorted(other_shapes)][:5])
        raise ModelError(
            f"`{folder}`: the weights do not fit the configuration. Missing or of another shape: {names}."
        )


def check_values(folder: Path, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse weights, by name, that are not finite.

    Raises:
        ModelError: If there are any; names the folder and a weight.
    """
    for name, weight in weights:
        # The two extremes tell of every value, in a tenth of the time that looking at each takes.
        if not torch.stack(weight.aminmax()).isfinite().all():
            raise ModelError(
                f"`{folder}`: weights are broken: `{name}` holds values that are not finite. Fetch the model again."
            )
