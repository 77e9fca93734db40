"""A layer as one function: its way back is that of autograd through the same layer in float32."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lushan.backbones import layer_pass
from lushan.backbones.layer_pass import Adapter, How, Linear, Weights
from lushan.backbones.lora import FrozenProduct
from lushan.backbones.native_training import Dropout, Looks, drop
from tests.unit.backbones.fusable import needs_library
from tests.unit.backbones.packed_numbers import error_of

HEADS, KEY_HEADS, WIDTH, INNER, RANK = 4, 2, 32, 96, 5
MODEL = 64
LENGTHS = (3, 9, 21)
SIZES = (
    (HEADS * WIDTH, MODEL),
    (KEY_HEADS * WIDTH, MODEL),
    (KEY_HEADS * WIDTH, MODEL),
    (MODEL, HEADS * WIDTH),
    (INNER, MODEL),
    (INNER, MODEL),
    (MODEL, INNER),
)
NORM_SIZES = (MODEL, MODEL, MODEL, MODEL, WIDTH, WIDTH)
ROUNDING = 0.03
"""As a share of the norm: with six norms, whose factors are about 2, roundings were seen to make 0.021, else below 0.015."""
EPSILON, SCALING, STRENGTH = 1e-5, WIDTH**-0.5, 0.7


class Case(NamedTuple):
    """What a layer is made of."""

    biases: bool = False
    norms: tuple[int, ...] = (0, 1)
    adapted: tuple[int, ...] = ()
    adds_one: bool = False
    is_gelu: bool = False
    dropout: float = 0.0


CASES = {
    "llama": Case(),
    "qwen2": Case(biases=True),
    "qwen3": Case(norms=(0, 1, 4, 5)),
    "gemma3": Case(norms=(0, 1, 2, 3, 4, 5), adds_one=True, is_gelu=True),
    "adapters": Case(adapted=tuple(range(7)), biases=True),
    "some adapters": Case(adapted=(0, 2, 4)),
    "dropout": Case(adapted=tuple(range(7)), dropout=0.5),
}


def drawn(case: Case) -> tuple[Weights, list[Tensor]]:
    """Weights of a layer, and those that are frozen under adapters."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int, spread: float) -> Tensor:
        return (spread * torch.randn(*size, generator=generator)).bfloat16()

    linears: list[Linear] = []
    matrices: list[Tensor] = []
    for place, (outputs, inputs) in enumerate(SIZES):
        matrices.append(normal(outputs, inputs, spread=inputs**-0.5))
        bias = normal(outputs, spread=0.3) if case.biases else None
        if place in case.adapted:
            factors = normal(RANK, inputs, spread=0.2), normal(outputs, RANK, spread=0.2)
            linears.append(Linear(None, bias, *factors))
        else:
            linears.append(Linear(matrices[-1], bias))
    norms = [
        1 + normal(size, spread=0.3) if place in case.norms else None
        for place, size in enumerate(NORM_SIZES)
    ]
    return Weights(linears, norms), matrices


def places() -> tuple[Tensor, Tensor]:
    """Cosines and sines of the tokens' places; (T, W)."""
    positions_T = torch.cat([torch.arange(each) for each in LENGTHS])
    angles_TH = positions_T[:, None] / 100 ** (torch.arange(WIDTH // 2) / (WIDTH // 2))
    angles_TW = torch.cat([angles_TH, angles_TH], dim=1)
    return angles_TW.cos().bfloat16(), angles_TW.sin().bfloat16()


def in_float32(case: Case, hidden_TD: Tensor, weights: Weights, matrices: list[Tensor]) -> Tensor:
    """The layer in torch's own functions."""

    def linear(place: int, inputs: Tensor) -> Tensor:
        weight, bias, down, up = weights.linears[place]
        outputs = functional.linear(inputs, matrices[place] if weight is None else weight, bias)
        if down is None or up is None:
            return outputs
        dropout = dropout_of(case, place)
        stays = 1 if dropout is None else drop(torch.ones_like(inputs).bfloat16(), dropout)
        return outputs + STRENGTH * (inputs * stays) @ down.T @ up.T

    def norm(place: int, rows: Tensor) -> Tensor:
        weight = weights.norms[place]
        if weight is None:
            return rows
        parts = rows.unflatten(-1, (-1, len(weight)))
        factor = 1 + weight if case.adds_one else weight
        return functional.rms_norm(parts, factor.shape, factor, EPSILON).flatten(-2)

    cosine_T1W, sine_T1W = (each.float()[:, None] for each in places())

    def turned(rows: Tensor) -> Tensor:
        heads = rows.unflatten(-1, (-1, WIDTH))
        low, high = heads.chunk(2, dim=-1)
        return heads * cosine_T1W + torch.cat([-high, low], dim=-1) * sine_T1W

    normed = norm(0, hidden_TD)
    query, key = turned(norm(4, linear(0, normed))), turned(norm(5, linear(1, normed)))
    value = linear(2, normed).unflatten(-1, (-1, WIDTH))
    split = (each.split(LENGTHS) for each in (query, key, value))
    attended = torch.cat([
        functional.scaled_dot_product_attention(
            *(each.transpose(0, 1) for each in rows),
            is_causal=True,
            scale=SCALING,
            enable_gqa=True,
        ).transpose(0, 1)
        for rows in zip(*split, strict=True)
    ])
    between = hidden_TD + norm(2, linear(3, attended.flatten(1)))
    inner = norm(1, between)
    gate = linear(4, inner)
    opened = functional.gelu(gate, approximate="tanh") if case.is_gelu else functional.silu(gate)
    return between + norm(3, linear(6, opened * linear(5, inner)))


def widened(weights: Weights) -> Weights:
    """The same numbers in float32, to be trained."""

    def wide(each: Tensor | None) -> Tensor | None:
        return None if each is None else each.detach().float().requires_grad_()

    return Weights(
        [Linear(*map(wide, each)) for each in weights.linears],
        [wide(each) for each in weights.norms],
    )


def dropout_of(case: Case, place: int) -> Dropout | None:
    """Of what enters an adapter."""
    return Dropout(case.dropout, seed=place) if case.dropout else None


def how_of(case: Case, matrices: list[Tensor]) -> How:
    adapters = tuple(
        Adapter(FrozenProduct(each), STRENGTH, dropout_of(case, place))
        if place in case.adapted
        else None
        for place, each in enumerate(matrices)
    )
    looks = Looks(torch.tensor(LENGTHS), WIDTH, causal=True, window=None, scaling=SCALING)
    return How(looks, EPSILON, case.adds_one, case.is_gelu, adapters)


def tensors_of(weights: Weights) -> list[Tensor]:
    linears = [each for linear in weights.linears for each in linear]
    return [each for each in (*linears, *weights.norms) if each is not None]


@needs_library
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_it_makes_and_all_gradients_are_those_of_autograd(case: Case) -> None:
    weights, matrices = drawn(case)
    generator = torch.Generator().manual_seed(1)
    hidden_TD, back_TD = (
        torch.randn(sum(LENGTHS), MODEL, generator=generator).bfloat16() for _ in range(2)
    )
    found: list[list[Tensor]] = []
    wide = widened(weights)
    for each in tensors_of(weights):
        each.requires_grad_()
    for rows_TD, own in ((hidden_TD, weights), (hidden_TD.float(), wide)):
        rows_TD.requires_grad_()
        if own is wide:
            made_TD = in_float32(case, rows_TD, own, [each.float() for each in matrices])
        else:
            made_TD = layer_pass.run(how_of(case, matrices), places(), rows_TD, own)
        gradients = torch.autograd.grad(
            made_TD, [rows_TD, *tensors_of(own)], back_TD.to(made_TD.dtype), allow_unused=True
        )
        found.append([made_TD.detach() - rows_TD.detach(), *gradients])
    for mine, expected in zip(*found, strict=True):
        # A bias beside an adapter is frozen.
        assert mine is None or error_of(mine, expected) < ROUNDING
    assert sum(each is None for each in found[0]) == len(case.adapted) * case.biases


@needs_library
def test_only_what_is_trained_gets_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, matrices = drawn(CASES["llama"])
    down = weights.linears[layer_pass.DOWN].weight
    assert down is not None
    down.requires_grad_()
    calls: list[tuple[int, ...]] = []
    multiply = torch.mm
    monkeypatch.setattr(
        torch, "mm", lambda one, two: calls.append(tuple(one.shape)) or multiply(one, two)
    )
    hidden_TD = torch.randn(sum(LENGTHS), MODEL).bfloat16()
    made_TD = layer_pass.run(how_of(CASES["llama"], matrices), places(), hidden_TD, weights)
    made_TD.sum().backward()
    others = [each for each in tensors_of(weights) if each is not down]
    assert down.grad is not None
    assert not any(each.grad is not None for each in others)
    # Of the three products in front, none is gone back through: nobody asks for what entered.
    assert (sum(LENGTHS), HEADS * WIDTH) not in calls


@needs_library
def test_a_linear_layer_needs_a_weight_or_an_adapter() -> None:
    weights, matrices = drawn(CASES["llama"])
    linears = [Linear(None, None), *weights.linears[1:]]
    with pytest.raises(ValueError, match="Linear layer 0 has neither"):
        layer_pass.run(
            how_of(CASES["llama"], matrices),
            places(),
            torch.zeros(sum(LENGTHS), MODEL).bfloat16(),
            Weights(linears, weights.norms),
        )
