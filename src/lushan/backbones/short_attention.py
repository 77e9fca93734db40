"""Attention inside of documents that are not long, while they are trained on: one call forward, one backward, nothing kept but what it reads.

Shapes: T tokens, N documents, F = heads * width.
"""

from typing import Any

import torch
from torch import Tensor

from lushan.backbones import native_training
from lushan.backbones.native_training import Looks, can_train

SHORT_TOKENS = 1_024
"""Up to here: a document and a head of keys are what one thread takes, so that of few long ones some threads would have none."""
_WIDTH_UNIT = 16


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - the signature is that of torch
        ctx: Any,  # noqa: ANN401
        query_TF: Tensor,
        key_TF: Tensor,
        value_TF: Tensor,
        looks: Looks,
    ) -> Tensor:
        rows = query_TF.contiguous(), key_TF.contiguous(), value_TF.contiguous()
        ctx.save_for_backward(*rows)
        ctx.looks = looks
        return native_training.attend(rows, looks)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        rows = ctx.saved_tensors
        return *native_training.attend_backward(rows, gradients[0].contiguous(), ctx.looks), None


def can_attend(query_TF: Tensor, width: int, longest: int) -> bool:
    """Whether `attend` takes documents of such heads, the longest of so many tokens, and is fast."""
    return longest <= SHORT_TOKENS and width % _WIDTH_UNIT == 0 and can_train(query_TF)


def attend(flat: tuple[Tensor, Tensor, Tensor], looks: Looks) -> Tensor:
    """Attend inside each document; (T, F).

    Args:
        flat: Queries, keys and values of all, (T, F) each.
        looks: How.
    """
    return _ShortAttention.apply(*flat, looks)
