"""Weights for answering: laid out once as products read them, and held in fewer bits where that is asked.

`pack_weights` takes the linear layers and the vocabulary of a model that is not trained any more; what they were is
freed. Only weights are rounded, to 8 or 4 bits, with a scale for each 32 inputs of an output (in torch's product with 8
bits, for each output); activations stay as fine as bfloat16. The vocabulary is not rounded further than to 8 bits.

Shapes: I inputs, O outputs.
"""

from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn
from transformers.pytorch_utils import Conv1D

from lushan.backbones import native
from lushan.backbones.fused_layers import fuse_layers, fused_norm, has_fused_layers
from lushan.backbones.hardware import choose_device, choose_precision, give_back_freed_memory
from lushan.backbones.load import Backbone, Purpose, WeightForm, load_backbone
from lushan.backbones.packed_linear import Packed, PackedEmbedding, PackedLinear, pack_matrix
from lushan.backbones.sources import cache_folder
from lushan.errors import SettingError

WeightsSetting = Literal["auto", "fp32", "bf16", "int8", "int4"]

BITS: dict[WeightForm, float] = {"fp32": 32, "bf16": 16, "int8": 8.5, "int4": 4.5}
"""Memory of one weight, its share of a scale included."""
_NOT_PACKED = {"lora_A", "lora_B", "modules_to_save", "original_module"}
"""Parts of PEFT's layers."""


def choose_weights(requested: str, precision: Literal["bf16", "fp32"]) -> WeightForm:
    """Decide how weights are held; `auto` keeps what the model was trained and measured with.

    Args:
        requested: What the user says, one of `WeightsSetting`.
        precision: Of the training; of an untuned model, what is fast here.

    Raises:
        SettingError: If weights cannot be held so here.
    """
    if requested not in get_args(WeightsSetting):
        raise SettingError(
            f"`--weights` must be one of {', '.join(get_args(WeightsSetting))}, got `{requested}`."
        )
    if requested == "int4" and (reason := native.why_missing()):
        raise SettingError(
            f"`--weights int4` cannot be computed here: {reason}. Use `int8`, `bf16` or `auto`."
        )
    return precision if requested == "auto" else requested  # pyright: ignore[reportReturnType] - checked above


def describe_weights(backbone: Backbone) -> str:
    """Say how weights are held, how much memory they take, and who multiplies them; for people."""
    form = backbone.weight_form or "fp32"
    reason = "" if form == "fp32" else native.why_missing()
    by_torch = f" Products are those of torch, because {reason}." if reason else ""
    fused = " Layers run fused." if has_fused_layers(backbone) else ""
    size = weight_bytes(backbone.model) / 1e6
    return f"Weights are held in {form}: {size:,.0f} MB.{by_torch}{fused}"


def pack_weights(backbone: Backbone, form: WeightForm) -> None:
    """Have a model hold its weights in a form; those of class layers and adapters stay as they are.

    Args:
        backbone: On a processor, not trained any more; changed in place. Its weights are bfloat16, but for `fp32`,
            which changes nothing.
        form: How weights are held.
    """
    if form == "fp32":
        return
    core = backbone.core
    for name, layer in list(core.named_modules()):
        if type(layer) in (nn.Linear, Conv1D) and not _NOT_PACKED & set(name.split(".")):
            core.set_submodule(name, _packed_layer(layer, form))
        elif (fused := fused_norm(layer)) is not None:
            core.set_submodule(name, fused)
    _pack_vocabulary(backbone.plain_model, "bf16" if form == "bf16" else "int8")
    backbone.weight_form = form
    fuse_layers(backbone)
    give_back_freed_memory()


def _packed_layer(layer: Any, form: WeightForm) -> PackedLinear:  # noqa: ANN401 - two classes
    weight_OI = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
    packed = PackedLinear(pack_matrix(weight_OI, form), *weight_OI.shape)
    packed.bias = layer.bias
    return packed


def _pack_vocabulary(model: Any, form: WeightForm) -> None:  # noqa: ANN401 - a `transformers` model
    """Pack the vocabulary layer and the embedding: once, where they are the same weights."""
    output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    is_tied = output is not None and output.weight is getattr(embedding, "weight", None)
    product: Packed | None = None
    if type(output) is nn.Linear:
        packed = _packed_layer(output, form)
        product = packed.product if is_tied else None
        model.set_output_embeddings(packed)
    if isinstance(embedding, nn.Embedding) and (product or form != "bf16"):
        product = product or pack_matrix(embedding.weight, form)
        model.set_input_embeddings(PackedEmbedding(product, embedding))


def weight_bytes(model: nn.Module, *, beside: nn.Module | None = None) -> int:
    """Memory of a model's weights, packed or not, without those that another has too."""
    others = set(_weights(beside)) if beside is not None else set[int]()
    return sum(size for key, size in _weights(model).items() if key not in others)


def _weights(model: nn.Module) -> dict[int, int]:
    """The bytes of everything that a model holds, by its identity."""
    plain = {id(each): each.nbytes for each in model.parameters()}
    packed = (
        each.product for each in model.modules() if isinstance(each, PackedLinear | PackedEmbedding)
    )
    return plain | {id(each): each.num_bytes for each in packed}


def arithmetic_of(form: WeightForm) -> Literal["bf16", "fp32"]:
    """In which precision a model computes whose weights are held so."""
    return "fp32" if form == "fp32" else "bf16"


def untuned_form(weights: str) -> WeightForm:
    """Decide how the weights of a pretrained model are held that answers as it is.

    Args:
        weights: One of `WeightsSetting`; `auto` takes the precision that is fast here.

    Raises:
        SettingError: If weights cannot be held so here.
    """
    fast = choose_precision("auto", choose_device().value, cache=cache_folder()).value
    return choose_weights(weights, "bf16" if fast == "bf16" else "fp32")


def load_untuned(folder: Path, *, purpose: Purpose, weights: str) -> Backbone:
    """Load a pretrained model that answers as it is.

    Args:
        folder: A Hugging Face model folder.
        purpose: What it has to answer with.
        weights: How weights are held, one of `WeightsSetting`; `auto` takes the precision that is fast here.

    Raises:
        ModelError: If the folder cannot be used for this purpose.
        SettingError: If weights cannot be held so here.
    """
    form = untuned_form(weights)
    backbone = load_backbone(folder, purpose=purpose, precision=arithmetic_of(form))
    pack_weights(backbone, form)
    return backbone
