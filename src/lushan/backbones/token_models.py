"""What class models say of their classes, and token models of architectures for which `transformers` has none, of its parts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForTokenClassification
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
)

from lushan.errors import ModelError

_SUFFIX = "ForTokenClassification"


def class_options(purpose: str, labels: Sequence[str], *, multi_label: bool) -> dict[str, Any]:
    """What the configuration of a class model says beyond that of its backbone."""
    if purpose not in ("classify", "tag"):
        return {}
    options: dict[str, Any] = {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    if purpose == "classify":
        problem_type = "multi_label" if multi_label else "single_label"
        options["problem_type"] = f"{problem_type}_classification"
    return options


def know_token_model(folder: Path) -> None:
    """Have `AutoModelForTokenClassification` know the architecture of a folder, as it does most.

    Gemma 3 has none in transformers 5.23. Its class is then put together as those of its neighbours are: the
    generic layer of `transformers` over the architecture's own base class. Others who load such a folder must
    do the same.

    Raises:
        ModelError: If the architecture is not made of those parts.
    """
    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if type(config) in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING:
        return
    base = _base_class(config)
    if base is None:
        raise ModelError(
            f"`{folder.name}`: transformers has no token layer for `{config.model_type}`. Choose another model."
        )
    name = f"{type(config).__name__.removesuffix('Config')}{_SUFFIX}"
    made = type(
        name,
        (GenericForTokenClassification, base),
        {"config_class": type(config), "__module__": __name__},
    )
    # Without `exist_ok` a configuration of transformers itself is passed over in silence.
    AutoModelForTokenClassification.register(type(config), made, exist_ok=True)


def _base_class(config: Any) -> type[PreTrainedModel] | None:  # noqa: ANN401
    """The architecture's own base class, by its class model."""
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return None
    class_model: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    parents = class_model.__mro__[1:]
    has_generic = any(each.__name__.startswith("Generic") for each in parents)
    bases = [each for each in parents if issubclass(each, PreTrainedModel)]
    return bases[0] if has_generic and bases else None


def is_token_model(model: object) -> bool:
    """Whether a model answers at every token."""
    return type(model).__name__.endswith(_SUFFIX)
