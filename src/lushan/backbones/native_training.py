"""What training takes from the library of `native.py`: what stands between products, short attention, AdamW.

Everything is bfloat16 but for moments and masters. Shapes: T tokens, D width, F = heads * width of a head, W that width.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lushan.backbones import native
from lushan.backbones.native import address_of
from lushan.backbones.native_structures import LowRankJob, Moved, TrainedDocuments

_Three = tuple[Tensor, Tensor, Tensor]
_ADAPTED_UNIT, _RANK_UNIT = 32, 16
"""Inputs and outputs of a layer with an adapter are a multiple of the first; its rank is padded to one of the second."""
_SEEDS, _DROPOUT_STEPS = 1 << 62, 1 << 16
_HALF_BITS, _HALF = 16, 1 << 15
"""Of a float32 that bfloat16 leaves out, and half of the last one that it keeps."""


def can_train(weight: Tensor) -> bool:
    """Whether the library computes in the precision of a weight, where it is."""
    return (
        weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and not native.why_missing()
    )


def add_and_norm(
    inputs_TD: Tensor,
    added_TD: Tensor | None,
    weight_D: Tensor,
    *,
    epsilon: float,
    adds_one: bool,
) -> _Three:
    """Add two rows, and norm what that is by its root mean square.

    Args:
        inputs_TD: Contiguous, with D a multiple of 16.
        added_TD: The same; None adds nothing.
        weight_D: Of the norm.
        epsilon: Added to the mean of squares.
        adds_one: Whether the factors are 1 + `weight_D`.

    Returns:
        The sums (`inputs_TD` itself where nothing is added), what is normed, and the factor of each row in float32.
    """
    num_rows, width = inputs_TD.shape
    sums_TD = inputs_TD if added_TD is None else torch.empty_like(inputs_TD)
    outputs_TD, factors_T = torch.empty_like(inputs_TD), torch.empty(num_rows)
    native.library().lushan_add_and_norm(
        inputs_TD.data_ptr(),
        address_of(added_TD),
        *(each.data_ptr() for each in (weight_D, sums_TD, outputs_TD, factors_T)),
        *(num_rows, width, epsilon, adds_one, torch.get_num_threads()),
    )
    return sums_TD, outputs_TD, factors_T


def norm_backward(
    normed: _Three, gradient_TD: Tensor, beside_TD: Tensor | None, *, adds_one: bool, trains: bool
) -> tuple[Tensor, Tensor | None]:
    """Give the gradient of what was normed and, in float32, of the weight; (T, D), (D,).

    Args:
        normed: The rows that were normed, the weight of the norm, and the factors of `add_and_norm`.
        gradient_TD: Of the outputs, contiguous.
        beside_TD: What else asks for the gradient of the rows, contiguous.
        adds_one: As forward.
        trains: Whether the weight is trained.
    """
    inputs_TD, weight_D, factors_T = normed
    made_TD = torch.empty_like(inputs_TD)
    weight_gradient_D = torch.empty(inputs_TD.shape[1]) if trains else None
    native.library().lushan_norm_backward(
        *(each.data_ptr() for each in (inputs_TD, weight_D, factors_T, gradient_TD)),
        address_of(beside_TD),
        made_TD.data_ptr(),
        address_of(weight_gradient_D),
        *(*inputs_TD.shape, adds_one, torch.get_num_threads()),
    )
    return made_TD, weight_gradient_D


def gates(gate: Tensor, up: Tensor, *, is_gelu: bool) -> Tensor:
    """Give silu (or gelu by tanh) of `gate`, times `up`; contiguous, a multiple of 16 numbers."""
    made = torch.empty_like(gate)
    native.library().lushan_gates(
        *(each.data_ptr() for each in (gate, up, made)),
        *(gate.numel(), is_gelu, torch.get_num_threads()),
    )
    return made


def gates_backward(
    gate: Tensor, up: Tensor, gradient: Tensor, *, is_gelu: bool
) -> tuple[Tensor, Tensor]:
    """Give the gradients of `gate` and `up`."""
    made = torch.empty_like(gate), torch.empty_like(up)
    native.library().lushan_gates_backward(
        *(each.data_ptr() for each in (gate, up, gradient, *made)),
        *(gate.numel(), is_gelu, torch.get_num_threads()),
    )
    return made


def turn(rows_TF: Tensor, cosine_TW: Tensor, sine_TW: Tensor, *, goes_back: bool = False) -> Tensor:
    """Turn each head by its place, as rotary positions do, or turn a gradient back; W is a multiple of 32.

    Raises:
        ValueError: If there are not as many places as rows.
    """
    num_rows, width = cosine_TW.shape
    if len(rows_TF) != num_rows:
        raise ValueError(f"There are {len(rows_TF)} rows and {num_rows} places.")
    made_TF = torch.empty_like(rows_TF)
    native.library().lushan_turn(
        *(each.data_ptr() for each in (rows_TF, cosine_TW, sine_TW, made_TF)),
        *(num_rows, rows_TF.shape[1] // width, width, goes_back, torch.get_num_threads()),
    )
    return made_TF


@dataclass(frozen=True, slots=True)
class Looks:
    """How documents that stand behind each other are looked at."""

    lengths_N: Tensor
    """Tokens of each, int64."""
    width: int
    """Of a head, W; a multiple of 16."""
    causal: bool
    window: int | None
    """Tokens that a query sees on each side, itself included; None for all."""
    scaling: float


def attend(rows: _Three, looks: Looks) -> Tensor:
    """Attend inside of documents; (T, F).

    Args:
        rows: Queries, keys and values, contiguous.
        looks: How.
    """
    made_TF = torch.empty_like(rows[0])
    job = _job(rows, looks, (made_TF, *(None,) * 4))
    native.library().lushan_attend_trained(job, torch.get_num_threads())
    return made_TF


def attend_backward(rows: _Three, gradient_TF: Tensor, looks: Looks) -> _Three:
    """Give the gradients of queries, keys and values."""
    made = torch.empty_like(rows[0]), torch.empty_like(rows[1]), torch.empty_like(rows[2])
    job = _job(rows, looks, (None, gradient_TF, *made))
    native.library().lushan_attend_trained_backward(job, torch.get_num_threads())
    return made


def _job(rows: _Three, looks: Looks, others: Sequence[Tensor | None]) -> TrainedDocuments:
    given = (*rows, *others, looks.lengths_N)
    heads, key_heads = (each.shape[1] // looks.width for each in rows[:2])
    return TrainedDocuments(
        *map(address_of, given),
        *(len(looks.lengths_N), heads, key_heads, looks.width),
        *(looks.causal, looks.window or 0, looks.scaling),
    )


def cross_entropy(
    scores_KV: Tensor, targets_K: Tensor, weights_K: Tensor, *, scale: float, trains: bool
) -> Tensor:
    """Give the weighted cross-entropy of each row, in float32; (K,).

    Args:
        scores_KV: In bfloat16, contiguous; its gradients take its place if `trains`.
        targets_K: The right column of each row, int64.
        weights_K: What each counts, float32.
        scale: Of the scores.
        trains: Whether gradients are wanted.

    Raises:
        IndexError: If there is no such column.
    """
    num_rows, width = scores_KV.shape
    if num_rows and not 0 <= int(targets_K.min()) <= int(targets_K.max()) < width:
        raise IndexError(f"A target is outside of the {width:,} columns.")
    losses_K, targets_K, weights_K = (
        torch.empty(num_rows),
        targets_K.contiguous(),
        weights_K.contiguous(),
    )
    native.library().lushan_cross_entropy(
        *(each.data_ptr() for each in (scores_KV, targets_K, weights_K, losses_K)),
        *(num_rows, width, scale, trains, torch.get_num_threads()),
    )
    return losses_K


def can_adapt(inputs_TI: Tensor, down_RI: Tensor, up_OR: Tensor) -> bool:
    """Whether the library computes an adapter of such sizes in such a precision, laid out so."""
    sizes = down_RI.shape[1], up_OR.shape[0]
    kinds = inputs_TI.dtype, down_RI.dtype, up_OR.dtype
    return (
        kinds == (torch.bfloat16,) * 3
        and not any(size % _ADAPTED_UNIT for size in sizes)
        and down_RI.is_contiguous()
        and up_OR.is_contiguous()
        and can_train(inputs_TI)
    )


def adapt(
    inputs_TI: Tensor, factors: tuple[Tensor, Tensor], outputs_TO: Tensor, *, scaling: float
) -> Tensor:
    """Add to a layer's outputs what its adapter makes of the inputs; everything is contiguous.

    Args:
        inputs_TI: Rows that enter the adapter.
        factors: Its matrices, (R, I) and (O, R).
        outputs_TO: What the layer gave; changed in place.
        scaling: Of what is added.

    Returns:
        What is between the matrices, for the way back; (T, R), with R padded.
    """
    rank = len(factors[0])
    narrow_TR = inputs_TI.new_empty(len(inputs_TI), rank + -rank % _RANK_UNIT)
    job = _low_rank_job((inputs_TI, *factors, narrow_TR, outputs_TO), scaling=scaling)
    native.library().lushan_adapt(job, torch.get_num_threads())
    return narrow_TR


def adapt_backward(
    adapted: tuple[Tensor, Tensor, Tensor, Tensor],
    gradient_TO: Tensor,
    row_gradient_TI: Tensor | None,
    *,
    scaling: float,
) -> tuple[Tensor, Tensor]:
    """Give the gradients of an adapter's matrices; (R, I), (O, R).

    Args:
        adapted: The rows that entered, the matrices and what `adapt` gave.
        gradient_TO: Of the outputs, contiguous.
        row_gradient_TI: The gradient of the rows is added to it; None if nobody asks.
        scaling: As forward.
    """
    made = torch.empty_like(adapted[1]), torch.empty_like(adapted[2])
    parts = *adapted, None, gradient_TO, row_gradient_TI, *made
    job = _low_rank_job(parts, scaling=scaling)
    native.library().lushan_adapt_backward(job, torch.get_num_threads())
    return made


def _low_rank_job(parts: Sequence[Tensor | None], *, scaling: float) -> LowRankJob:
    rows_TI, down_RI, up_OR = parts[:3]
    assert rows_TI is not None and down_RI is not None and up_OR is not None  # noqa: PT018, S101 - ours
    addresses = [*map(address_of, parts), *(None,) * (9 - len(parts))]
    sizes = *rows_TI.shape, len(up_OR), len(down_RI)
    return LowRankJob(*addresses, *sizes, scaling)


@dataclass(frozen=True, slots=True)
class Dropout:
    """What of some rows is dropped: the same whenever it is asked for."""

    share: float
    """Of the numbers, from 0 up to, but not, 1; in steps of 1/65,536."""
    seed: int
    """Which numbers."""

    @classmethod
    def drawn(cls, share: float) -> Self:
        """Draw the seed by torch's own generator."""
        return cls(share, int(torch.randint(_SEEDS, ())))


def drop(rows: Tensor, dropout: Dropout, added: Tensor | None = None) -> Tensor:
    """Give rows without what is dropped, divided by the share that stays, plus `added`.

    The gradient of the rows is that of what is given, dropped the same way.

    Args:
        rows: In bfloat16, contiguous.
        dropout: What of them.
        added: The same shape, contiguous; it takes the sum.
    """
    made = torch.empty_like(rows) if added is None else added
    threshold = min(round(dropout.share * _DROPOUT_STEPS), _DROPOUT_STEPS - 1)
    native.library().lushan_drop(
        *(rows.data_ptr(), address_of(added), made.data_ptr(), rows.numel()),
        *(dropout.seed, threshold, torch.get_num_threads()),
    )
    return made


@dataclass(frozen=True, slots=True)
class Moving:
    """A weight that AdamW moves; all are contiguous."""

    gradient: Tensor
    """In bfloat16 or float32."""
    master: Tensor
    """Float32; or, beside `shown`, what `split` gives."""
    first_moment: Tensor
    second_moment: Tensor
    shown: Tensor | None
    """The weight in bfloat16, which is a part of its master; None where the master is whole."""
    rate: float
    decay: float


def can_move(each: Moving) -> bool:
    """Whether `adamw` moves such a weight."""
    return (
        each.master.device.type == "cpu"
        and each.master.dtype == (torch.float32 if each.shown is None else torch.int16)
        and each.gradient.dtype in (torch.bfloat16, torch.float32)
        and (each.shown is None or each.shown.dtype == torch.bfloat16)
        and all(part is None or part.is_contiguous() for part in _parts(each))
        and not native.why_missing()
    )


def split(master: Tensor) -> tuple[Tensor, Tensor]:
    """Part numbers in float32 into bfloat16, to which they are rounded, and what that lacks of their bits, in int16.

    Both together take the room of the float32, and `joined` gives it back bit for bit.
    """
    bits = master.view(torch.int32)
    upper = bits + _HALF >> _HALF_BITS
    return upper.to(torch.int16).view(torch.bfloat16), (bits - (upper << _HALF_BITS)).to(
        torch.int16
    )


def joined(shown: Tensor, rest: Tensor) -> Tensor:
    """Give the float32 that `split` parted."""
    upper = shown.contiguous().view(torch.int16).to(torch.int32) << _HALF_BITS
    return (upper + rest.to(torch.int32)).view(torch.float32)


def can_add(total: Tensor, found: Tensor) -> bool:
    """Whether `add_gradient` adds such gradients of a weight."""
    return (
        total.dtype in (torch.bfloat16, torch.float32)
        and total.device.type == "cpu"
        and total.is_contiguous()
        and found.is_contiguous()
        and total.shape == found.shape
        and can_train(found)
    )


def add_gradient(total: Tensor, found: Tensor) -> Tensor:
    """Add up gradients of a weight; float32.

    Args:
        total: What there is, in bfloat16; or in float32, and is changed in place.
        found: What is added, in bfloat16.
    """
    is_first = total.dtype != torch.float32
    made = torch.empty_like(total, dtype=torch.float32) if is_first else total
    native.library().lushan_add_gradient(
        *(made.data_ptr(), address_of(total if is_first else None), found.data_ptr()),
        *(made.numel(), torch.get_num_threads()),
    )
    return made


def gradient_norm(moving: Sequence[Moving]) -> float:
    """Give the norm of all gradients together."""
    return native.library().lushan_gradient_norm(
        _told(moving), len(moving), torch.get_num_threads()
    )


def adamw(
    moving: Sequence[Moving],
    *,
    scale: float,
    betas: tuple[float, float],
    epsilon: float,
    step: int,
) -> None:
    """Move weights, as `torch.optim.AdamW` does, and show them in bfloat16.

    Args:
        moving: The weights; of those that are shown the nearest bfloat16, or of two the one farther from 0.
        scale: Of the gradients.
        betas: Of the moments.
        epsilon: Below the fraction.
        step: Counts from 1.
    """
    native.library().lushan_adamw(
        _told(moving), len(moving), scale, *betas, epsilon, step, torch.get_num_threads()
    )


def _parts(each: Moving) -> tuple[Tensor | None, ...]:
    return each.gradient, each.master, each.first_moment, each.second_moment, each.shown


def _told(moving: Sequence[Moving]) -> ctypes.Array[Moved]:
    return (Moved * len(moving))(
        *(
            (
                *map(address_of, _parts(each)),
                *(each.master.numel(), each.gradient.dtype == torch.bfloat16),
                *(each.rate, each.decay),
            )
            for each in moving
        )
    )
