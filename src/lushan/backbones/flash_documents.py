"""Attention inside of documents on CUDA, by FlashAttention's kernels for rows of many lengths: no padding, no table.

Shapes: T tokens, N documents, F = heads * width.
"""

from functools import cache
from inspect import signature

import torch
from torch import Tensor
from torch.nn import functional

from lushan.backbones.native_training import Looks

_TYPES = frozenset({torch.bfloat16, torch.float16})
_OLDEST_CAPABILITY = (8, 0)
_MOST_WIDTH, _WIDTH_UNIT = 256, 8
_OPTIONS = frozenset({"scale", "window_size", "enable_gqa"})
"""What the kernels are told; older versions of torch lack them, or some of it."""


def can_attend(query_TF: Tensor, width: int) -> bool:
    """Whether torch has such kernels for these numbers, this device and heads of this width."""
    return (
        query_TF.device.type == "cuda"
        and query_TF.dtype in _TYPES
        and width <= _MOST_WIDTH
        and width % _WIDTH_UNIT == 0
        and torch.cuda.get_device_capability(query_TF.device) >= _OLDEST_CAPABILITY
        and torch.backends.cuda.is_flash_attention_available()
        and _is_in_torch()
    )


@cache
def _is_in_torch() -> bool:
    try:
        from torch.nn.attention import varlen  # registers its kernels, which only GPUs have
    except ImportError:
        return False
    return signature(varlen.varlen_attn).parameters.keys() >= _OPTIONS


def attend(flat: tuple[Tensor, Tensor, Tensor], looks: Looks) -> Tensor:
    """Attend inside each document, as https://docs.pytorch.org/docs/stable/nn.attention.varlen.html describes; (T, F).

    Args:
        flat: Queries, keys and values of all, (T, F) each.
        looks: How.
    """
    from torch.nn.attention import varlen

    query_THW, key_TGW, value_TGW = (each.unflatten(1, (-1, looks.width)) for each in flat)
    ends_N = functional.pad(looks.lengths_N.cumsum(0), (1, 0)).to(flat[0].device, torch.int32)
    longest = int(looks.lengths_N.max())
    reach = -1 if looks.window is None else looks.window - 1  # the kernel leaves the query out
    attended_THW = varlen.varlen_attn(
        query_THW,
        key_TGW,
        value_TGW,
        ends_N,
        ends_N,
        longest,
        longest,
        scale=looks.scaling,
        window_size=(reach, 0 if looks.causal else reach),
        enable_gqa=query_THW.shape[1] != key_TGW.shape[1],
    )
    assert isinstance(attended_THW, Tensor)  # noqa: S101 - a pair only where more is asked for
    return attended_THW.flatten(1)
