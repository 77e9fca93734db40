"""What of a model is trained: everything, the last layers, the new layer alone, or low-rank adapters."""

from typing import Literal

from torch import nn

from lushan.backbones.frozen import keep_in_eval
from lushan.backbones.inspect import is_head
from lushan.backbones.load import Backbone
from lushan.backbones.lora import compute_in_one_piece
from lushan.backbones.quiet import quiet_transformers
from lushan.backbones.token_models import is_token_model
from lushan.errors import SettingError

Method = Literal["full", "lora", "head", "top"]


def attach(
    backbone: Backbone,
    *,
    method: Method,
    layers: int = 4,
    rank: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.0,
) -> None:
    """Freeze what stays and free what is trained; `lora` wraps `backbone.model` in a PEFT model.

    Args:
        backbone: Changed in place.
        method: `full`, `lora`, `head`, or `top`.
        layers: With `top`: how many of the last layers are trained, with the norm behind them.
        rank: With `lora`: inner width.
        alpha: With `lora`: scale, divided by the rank.
        dropout: With `lora`: dropout in front of the adapters.

    Raises:
        SettingError: If nothing would be trained, or the model has fewer layers.
    """
    model = backbone.plain_model
    if method == "lora":
        _attach_lora(backbone, rank=rank, alpha=alpha, dropout=dropout)
        return
    model.requires_grad_(method == "full")
    if method == "full":
        return
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_head(name) or name in backbone.fresh_weights)
    if method == "top":
        for part in _top_parts(backbone, layers):
            part.requires_grad_(True)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise SettingError(
            "`--adapter head` has nothing to train with `--answer generate`: the vocabulary layer is the "
            "pretrained one. Choose `--answer head`, or `--adapter lora`, `top:N` or `full`."
        )
    for part in _frozen_parts(backbone, num_frozen_layers(backbone, method=method, layers=layers)):
        keep_in_eval(part)


def num_frozen_layers(backbone: Backbone, *, method: Method, layers: int) -> int:
    """How many layers, counted from the first, compute the same in every pass of a method."""
    num_layers = len(backbone.layers)
    return {"head": num_layers, "top": num_layers - layers}.get(method, 0)


def _frozen_parts(backbone: Backbone, depth: int) -> list[nn.Module]:
    """The first layers and what stands in front of them."""
    stack = backbone.layers
    others = [
        each
        for each in _children_beside(backbone)
        if not any(p.requires_grad for p in each.parameters())
    ]
    return [*stack[:depth], *others]


def _top_parts(backbone: Backbone, num_layers: int) -> list[nn.Module]:
    """The last layers and what stands behind them, but never an embedding or the vocabulary."""
    stack = backbone.layers
    if num_layers > len(stack):
        raise SettingError(
            f"`--adapter top:{num_layers}`: the model has only {len(stack)} layers. Choose fewer, or `full`."
        )
    behind = [
        each
        for each in _children_beside(backbone)
        if not any(isinstance(m, nn.Embedding) for m in each.modules())
    ]
    dense = getattr(backbone.plain_model, "head", None)  # modernbert's, in front of its class layer
    return [*stack[len(stack) - num_layers :], *behind, *([dense] if dense is not None else [])]


def _children_beside(backbone: Backbone) -> list[nn.Module]:
    """Parts of the core in front of its layers and behind them."""
    stack = backbone.layers
    return [each for each in backbone.core.children() if stack not in list(each.modules())]


def _attach_lora(backbone: Backbone, *, rank: int, alpha: float, dropout: float) -> None:
    from peft import LoraConfig, TaskType, get_peft_model  # slow to import, rarely needed

    classifies = any(is_head(name) for name, _ in backbone.model.named_parameters())
    task_type = TaskType.SEQ_CLS if classifies else TaskType.CAUSAL_LM
    tags = is_token_model(backbone.plain_model)
    if tags:
        task_type = TaskType.TOKEN_CLS
    fresh = {name.rpartition(".")[0] for name in backbone.fresh_weights if not is_head(name)}
    config = LoraConfig(
        task_type=task_type,
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType] - PEFT takes floats
        lora_dropout=dropout,
        target_modules="all-linear",
        # "all-linear" leaves a class layer out, but not one for tokens.
        exclude_modules=["score", "classifier"] if tags else None,
        # An adapter file must hold what its base does not have.
        modules_to_save=sorted(fresh) or None,
    )
    with quiet_transformers():
        # Adapters keep the precision of the weights beside them; their float32 masters are the optimizer's.
        backbone.model = get_peft_model(backbone.model, config, autocast_adapter_dtype=False)
    compute_in_one_piece(backbone.model)


def trained_parts(model: nn.Module) -> dict[str, int]:
    """How many weights are trained and how many are frozen."""
    counts = {"trained": 0, "frozen": 0}
    for name, parameter in model.named_parameters():
        if ".original_module." in name:
            continue  # what PEFT keeps of a layer that is trained; nothing reads it
        counts["trained" if parameter.requires_grad else "frozen"] += parameter.numel()
    return counts
