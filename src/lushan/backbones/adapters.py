"""What of a model is trained: everything, the last layers, the new layer alone, or low-rank adapters."""

from typing import Literal

import torch
from torch import nn

from lushan.backbones.frozen import keep_in_eval
from lushan.backbones.inspect import ModelFacts, is_head
from lushan.backbones.load import Backbone, run_alone
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
    """How many layers, counted from the first, compute the same in every pass of a method; one that is shared counts each time."""
    num_layers = backbone.facts.num_layers
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


def refuse_top(facts: ModelFacts, num_layers: int) -> None:
    """Refuse to train so many of the last layers where a model has fewer, or none that can be trained by themselves.

    Args:
        facts: The model.
        num_layers: How many are to be trained.

    Raises:
        SettingError: Says what it has, and what to choose.
    """
    if facts.shares_layers:
        raise SettingError(
            f"`--adapter top:{num_layers}`: the {facts.num_layers} layers of a model of type `{facts.model_type}` share "
            "their weights, so the last cannot be trained alone. Choose `full`, `lora` or `head`."
        )
    if facts.is_passed_whole:
        raise SettingError(
            f"`--adapter top:{num_layers}`: what the first layers of a model of type `{facts.model_type}` give cannot be kept "
            "for the others. Choose `full`, `lora` or `head`."
        )
    if num_layers > facts.num_layers:
        raise SettingError(
            f"`--adapter top:{num_layers}`: the model has only {facts.num_layers} layers. Choose fewer, or `full`."
        )


def _top_parts(backbone: Backbone, num_layers: int) -> list[nn.Module]:
    """The last layers and what stands behind them, but never an embedding or the vocabulary."""
    refuse_top(backbone.facts, num_layers)
    stack, model = backbone.layers, backbone.plain_model
    # In front of a class layer: modernbert's and distilbert's.
    dense = [getattr(model, name, None) for name in ("head", "pre_classifier")]
    return [
        *stack[len(stack) - num_layers :],
        *_children_behind(backbone),
        *(each for each in dense if each is not None),
    ]


def _children_behind(backbone: Backbone) -> list[nn.Module]:
    """Parts of the core that a pass comes to behind its last layer, and not before."""
    last, beside = backbone.layers[-1], _children_beside(backbone)
    called: list[nn.Module] = []

    def note(module: nn.Module, _: object) -> None:
        called.append(module)

    handles = [each.register_forward_pre_hook(note) for each in (*beside, last)]
    try:
        with torch.inference_mode():
            run_alone(backbone, torch.zeros(1, dtype=torch.long, device=backbone.device))
    finally:
        for handle in handles:
            handle.remove()
    place = called.index(last)
    return [each for each in beside if each in called[place:] and each not in called[:place]]


def _children_beside(backbone: Backbone) -> list[nn.Module]:
    """Parts of the core beside its layers, whatever module of it holds them."""
    stack, beside = backbone.layers, list[nn.Module]()
    holder: nn.Module = backbone.core
    while holder is not stack:
        parts = list(holder.children())
        holder = next(each for each in parts if stack in list(each.modules()))
        beside += [each for each in parts if each is not holder]
    return beside


def _attach_lora(backbone: Backbone, *, rank: int, alpha: float, dropout: float) -> None:
    from peft import LoraConfig, TaskType, get_peft_model  # slow to import, rarely needed

    classifies = any(is_head(name) for name, _ in backbone.model.named_parameters())
    task_type = TaskType.SEQ_CLS if classifies else TaskType.CAUSAL_LM
    tags = is_token_model(backbone.plain_model)
    if tags:
        task_type = TaskType.TOKEN_CLS
    fresh = {name.rpartition(".")[0] for name in backbone.fresh_weights if not is_head(name)}
    if hasattr(backbone.plain_model, "pre_classifier"):
        fresh.add("pre_classifier")  # which PEFT takes for a class layer, by the end of its name
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
