"""The loss of the tokens that follow, over a whole vocabulary, without a table in float32.

The gradient of a cross-entropy is known as soon as its softmax is: it is put where the logits stood, a few rows at a
time, so that what is made in float32 stays in the processor's cache and nothing is kept for the backward pass but the
gradients themselves.

Shapes: K chosen positions, D width, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lushan.backbones import native_training
from lushan.backbones.heads import logit_scale, logit_softcap

_MOST_BYTES = 1 << 28
"""Of a table of logits that is held at once."""
_NUMBERS_IN_CACHE = 1 << 19
"""Of the rows that are in float32 at once."""


class _Form(NamedTuple):
    """What is done to logits, and what each position counts."""

    targets_K: Tensor
    weights_K: Tensor
    scale: float
    softcap: float | None


def vocabulary_loss(
    model: nn.Module, hidden_KD: Tensor, targets_K: Tensor, weights_K: Tensor
) -> Tensor:
    """Sum of the weighted cross-entropies of the tokens that follow chosen positions; scalar, float32.

    Args:
        model: A causal language model of `transformers`.
        hidden_KD: Hidden states of the positions, and no others.
        targets_K: The token that follows each.
        weights_K: What each counts.
    """
    layer: Any = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    form = _Form(targets_K, weights_K.float(), logit_scale(model), logit_softcap(model))
    return _VocabularyLoss.apply(hidden_KD, layer.weight, layer.bias, form, torch.is_grad_enabled())


class _VocabularyLoss(torch.autograd.Function):
    """Takes the gradients of each part of the positions as soon as its loss is there."""

    @staticmethod
    def forward(  # noqa: PLR0917 - the signature is that of torch
        ctx: Any,  # noqa: ANN401
        hidden_KD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        form: _Form,
        trains: bool,
    ) -> Tensor:
        wanted = [trains and needed for needed in ctx.needs_input_grad[:3]]
        size = max(1, _MOST_BYTES // (len(weight_VD) * hidden_KD.element_size()))
        total = torch.zeros((), device=hidden_KD.device)
        of_hidden_KD = torch.empty_like(hidden_KD) if wanted[0] else None
        sums: list[Tensor | None] = [None, None]
        for start in range(0, len(hidden_KD), size):
            part = slice(start, start + size)
            hidden_PD = hidden_KD[part]
            table_PV = functional.linear(hidden_PD, weight_VD, bias_V)
            own = form._replace(targets_K=form.targets_K[part], weights_K=form.weights_K[part])
            total += _into_gradients(table_PV, own, trains=any(wanted))
            if of_hidden_KD is not None:
                torch.mm(table_PV, weight_VD, out=of_hidden_KD[part])
            if wanted[1]:
                sums[0] = _added(sums[0], table_PV.T @ hidden_PD)
            if wanted[2]:
                sums[1] = _added(sums[1], table_PV.sum(dim=0))
        rounded = (None if each is None else each.to(weight_VD.dtype) for each in sums)
        ctx.save_for_backward(of_hidden_KD, *rounded)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        found = (None if each is None else each * gradients[0] for each in ctx.saved_tensors)
        return (*found, None, None)


def _into_gradients(table_PV: Tensor, form: _Form, *, trains: bool) -> Tensor:
    """Give the loss of some positions, and put the gradients of their logits in the place of these."""
    if form.softcap is None and native_training.can_train(table_PV):
        targets_P, weights_P = form.targets_K, form.weights_K
        return native_training.cross_entropy(
            table_PV, targets_P, weights_P, scale=form.scale, trains=trains
        ).sum()
    total = torch.zeros((), device=table_PV.device)
    size = max(1, _NUMBERS_IN_CACHE // table_PV.shape[1])
    for start in range(0, len(table_PV), size):
        rows = slice(start, start + size)
        targets_R1, weights_R = form.targets_K[rows, None], form.weights_K[rows]
        logits_RV = table_PV[rows].float() * form.scale
        slope_RV = None
        if form.softcap is not None:
            bent_RV = torch.tanh(logits_RV / form.softcap)
            logits_RV, slope_RV = bent_RV * form.softcap, 1 - bent_RV.square()
        losses_R = functional.cross_entropy(logits_RV, targets_R1[:, 0], reduction="none")
        total += losses_R @ weights_R
        if not trains:
            continue
        of_logits_RV = logits_RV.softmax(dim=1).mul_(weights_R[:, None])
        of_logits_RV.scatter_add_(1, targets_R1, -weights_R[:, None])
        if slope_RV is not None:
            of_logits_RV.mul_(slope_RV)
        table_PV[rows] = of_logits_RV.mul_(form.scale)
    return total


def _added(total: Tensor | None, part: Tensor) -> Tensor:
    """Add up parts; in float32, as bf16 would lose what it adds."""
    return part if total is None else total.float().add_(part)
