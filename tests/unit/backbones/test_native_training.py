"""What stands between products, forward and backward, beside torch in float64; AdamW beside torch's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lushan.backbones import native
from lushan.backbones.native_training import (
    Looks,
    Moving,
    adamw,
    adapt,
    adapt_backward,
    add_and_norm,
    attend,
    attend_backward,
    can_adapt,
    can_move,
    gates,
    gates_backward,
    gradient_norm,
    joined,
    norm_backward,
    split,
    turn,
)
from tests.unit.backbones.packed_numbers import error_of

pytestmark = pytest.mark.skipif(
    bool(native.why_missing()), reason="no library of our own on this machine"
)
ROUNDING = 0.003
"""Of one rounding to bfloat16, as a share of the norm; `transformers` rounds what is normed twice."""


@pytest.fixture(autouse=True)
def two_threads() -> Any:  # noqa: ANN401
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def random(*sizes: int, seed: int) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed)).bfloat16()


def exact(given: Tensor) -> Tensor:
    return given.double().requires_grad_()


@pytest.mark.parametrize("adds_one", [False, True])
@pytest.mark.parametrize("num_rows", [3, 37])
def test_norms_and_sums_are_those_of_torch(adds_one: bool, num_rows: int) -> None:
    rows, added, back, beside = (random(num_rows, 48, seed=seed) for seed in range(4))
    weight = random(48, seed=4)
    sums, normed, factors = add_and_norm(rows, added, weight, epsilon=0.1, adds_one=adds_one)
    made, of_weight = norm_backward(
        (sums, weight, factors), back, beside, adds_one=adds_one, trains=True
    )
    assert torch.equal(sums, rows + added)
    inputs, factor = exact(sums), exact(weight)
    expected = functional.rms_norm(inputs, (48,), factor + adds_one, eps=0.1)
    total = (expected * back.double()).sum() + (inputs * beside.double()).sum()
    of_inputs, of_factor = torch.autograd.grad(total, [inputs, factor])
    assert error_of(normed, expected.detach()) < ROUNDING
    assert error_of(made, of_inputs) < ROUNDING
    assert of_weight is not None
    assert error_of(of_weight, of_factor) < 1e-6


def test_rows_alone_are_normed_as_they_are() -> None:
    rows, weight = random(5, 32, seed=0), random(32, seed=1)
    sums, normed, factors = add_and_norm(rows, None, weight, epsilon=1e-5, adds_one=False)
    assert sums is rows
    assert torch.equal(normed, native.rms_norm(rows, weight, epsilon=1e-5, adds_one=False))
    made, of_weight = norm_backward(
        (rows, weight, factors), rows, None, adds_one=False, trains=False
    )
    assert of_weight is None
    inputs = exact(rows)
    expected = functional.rms_norm(inputs, (32,), weight.double(), eps=1e-5)
    (of_inputs,) = torch.autograd.grad(expected, inputs, rows.double())
    assert error_of(made, of_inputs) < ROUNDING


@pytest.mark.parametrize(
    ("is_gelu", "activation"),
    [(False, functional.silu), (True, lambda x: functional.gelu(x, approximate="tanh"))],
)
def test_gates_are_those_of_torch(is_gelu: bool, activation: Callable[[Tensor], Tensor]) -> None:
    gate, up, back = (4 * random(130, 96, seed=seed) for seed in range(3))
    given = exact(gate), exact(up)
    expected = activation(given[0]) * given[1]
    gradients = torch.autograd.grad(expected, given, back.double())
    assert error_of(gates(gate, up, is_gelu=is_gelu), expected.detach()) < ROUNDING
    made = gates_backward(gate, up, back, is_gelu=is_gelu)
    assert all(error_of(*pair) < ROUNDING for pair in zip(made, gradients, strict=True))


def test_gates_that_are_far_open_or_closed_stay_finite() -> None:
    gate = torch.tensor([-3e38, -100.0, -20, 0, 20, 100, 1e4, 3e38] * 2).bfloat16()
    one = torch.ones(16).bfloat16()
    expected = torch.tensor([0.0, 0, -20 / (1 + 2.718281828**20), 0, 20, 100, 1e4, 3e38] * 2)
    assert torch.allclose(gates(gate, one, is_gelu=False).float(), expected, rtol=0.01, atol=1e-7)
    made, _ = gates_backward(gate, one, one, is_gelu=False)
    assert torch.allclose(made.float(), torch.tensor([0.0, 0, 0, 0.5, 1, 1, 1, 1] * 2), atol=1e-2)


def test_heads_are_turned_and_turned_back() -> None:
    rows, cosine, sine = (random(20, size, seed=size) for size in (3 * 64, 64, 64))
    given = exact(rows)
    heads = given.view(20, 3, 64)
    first, second = heads.chunk(2, dim=-1)
    crossed = torch.cat([-second, first], dim=-1)
    expected = heads * cosine.double()[:, None] + crossed * sine.double()[:, None]
    back = random(20, 3 * 64, seed=1)
    (of_given,) = torch.autograd.grad(expected.flatten(1), given, back.double())
    assert error_of(turn(rows, cosine, sine), expected.detach().flatten(1)) < ROUNDING
    assert error_of(turn(back, cosine, sine, goes_back=True), of_given) < ROUNDING


def looked(rows: tuple[Tensor, ...], looks: Looks) -> Tensor:
    """Attention as its formula has it."""
    parts: list[Tensor] = []
    for query, key, value in zip(
        *(each.split(looks.lengths_N.tolist()) for each in rows), strict=True
    ):
        heads = [
            each.unflatten(1, (-1, looks.width)).transpose(0, 1) for each in (query, key, value)
        ]
        shared = heads[0].shape[0] // heads[1].shape[0]
        key_HLW, value_HLW = (each.repeat_interleave(shared, dim=0) for each in heads[1:])
        places_L = torch.arange(len(query))
        distance_LL = places_L[:, None] - places_L
        allowed_LL = distance_LL >= 0 if looks.causal else distance_LL == distance_LL
        if looks.window:
            allowed_LL = allowed_LL & (distance_LL.abs() < looks.window)
        scores = (heads[0] @ key_HLW.mT * looks.scaling).masked_fill(~allowed_LL, -torch.inf)
        parts.append((scores.softmax(-1) @ value_HLW).transpose(0, 1).flatten(1))
    return torch.cat(parts)


@pytest.mark.parametrize("heads", [(9, 3, 64), (4, 1, 96), (2, 2, 32)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 5, 20])
def test_short_documents_attend_as_the_formula_says(
    heads: tuple[int, int, int], causal: bool, window: int | None
) -> None:
    lengths_N = torch.tensor([1, 3, 16, 17, 33, 50])
    width = heads[2]
    looks = Looks(lengths_N, width, causal, window, 0.2)
    num_heads = (heads[0], heads[1], heads[1])
    rows = [random(120, each * width, seed=seed) for seed, each in enumerate(num_heads)]
    query, key, value = rows
    back = random(*query.shape, seed=8)
    given = [exact(each) for each in rows]
    expected = looked(tuple(given), looks)
    gradients = torch.autograd.grad(expected, given, back.double())
    assert error_of(attend((query, key, value), looks), expected.detach()) < ROUNDING
    made = attend_backward((query, key, value), back, looks)
    assert all(error_of(*pair) < ROUNDING for pair in zip(made[2:], gradients[2:], strict=True))
    if window == 1:  # each looks at itself alone, whatever it asks
        assert max(float(each.abs().max()) for each in made[:2]) < 1e-4
    else:
        assert all(error_of(*pair) < ROUNDING for pair in zip(made[:2], gradients[:2], strict=True))


def moving(weights: list[nn.Parameter], gradients: list[Tensor]) -> list[Moving]:
    masters = [each.detach().float().clone() for each in weights]
    return [
        Moving(
            gradient, master, torch.zeros_like(master), torch.zeros_like(master), None, 0.01, 0.1
        )
        for gradient, master in zip(gradients, masters, strict=True)
    ]


def test_adamw_moves_as_that_of_torch() -> None:
    weights = [nn.Parameter(random(*sizes, seed=1).float()) for sizes in ((70, 1001), (3,))]
    reference = torch.optim.AdamW(weights, lr=0.01, weight_decay=0.1)
    own = moving(weights, [torch.zeros_like(each) for each in weights])
    for step in (1, 2, 3):
        gradients = [0.3 * random(*each.shape, seed=step).float() for each in weights]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        reference.step()
        own = [
            Moving(2 * each, old.master, old.first_moment, old.second_moment, None, 0.01, 0.1)
            for each, old in zip(gradients, own, strict=True)
        ]
        adamw(own, scale=0.5, betas=(0.9, 0.999), epsilon=1e-8, step=step)
    for weight, each in zip(weights, own, strict=True):
        assert torch.allclose(weight.detach(), each.master, rtol=1e-6, atol=1e-7)


def test_gradients_in_bfloat16_are_widened_and_weights_are_a_part_of_their_masters() -> None:
    gradient = random(37, seed=0)
    master = torch.randn(37, generator=torch.Generator().manual_seed(1))
    shown, rest = split(master)
    half = Moving(gradient, rest, torch.zeros(37), torch.zeros(37), shown, 0.1, 0.0)
    whole = Moving(gradient.float(), master, torch.zeros(37), torch.zeros(37), None, 0.1, 0.0)
    for step in (1, 2):
        for each in (half, whole):
            assert can_move(each)
            adamw([each], scale=1.0, betas=(0.9, 0.999), epsilon=1e-8, step=step)
    assert torch.equal(joined(shown, rest), master)
    assert torch.equal(shown, master.bfloat16())


def test_parts_of_a_number_give_it_back_bit_for_bit() -> None:
    exact = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).float()
    small = (
        exact.view(torch.int32).bitwise_and(0x007F_FFFF).view(torch.float32)
    )  # below the normal ones
    halves = (torch.arange(60_000, dtype=torch.int32) << 15).view(torch.float32)
    for each in (exact, small, halves, torch.tensor([0.0, -0.0, 3.0e38])):
        shown, rest = split(each)
        assert torch.equal(joined(shown, rest).view(torch.int32), each.view(torch.int32))
        differs = shown != each.bfloat16()
        between = each.view(torch.int32).bitwise_and(0xFFFF) == 0x8000
        assert not (differs & ~between).any()


def test_the_norm_is_that_of_all_gradients_whatever_the_threads() -> None:
    gradients = [random(300, 401, seed=0), random(5, seed=1).float()]
    weights = [nn.Parameter(torch.zeros(each.shape)) for each in gradients]
    expected = torch.cat([each.double().flatten() for each in gradients]).norm()
    found = gradient_norm(moving(weights, gradients))
    torch.set_num_threads(1)
    assert found == gradient_norm(moving(weights, gradients))
    assert found == pytest.approx(float(expected), rel=1e-6)


def test_what_does_not_lie_side_by_side_is_not_moved_at_once() -> None:
    each = moving([nn.Parameter(torch.zeros(4, 6))], [torch.zeros(6, 4).T])[0]
    assert not can_move(each)


def with_adapter(
    parts: tuple[Tensor, ...], back: Tensor, *, scaling: float
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What a layer and its adapter give, and the gradients of rows, matrices and what the layer gave; float64."""
    rows, down, up, outputs = (exact(each) for each in parts)
    made = outputs + scaling * (rows @ down.T) @ up.T
    return made.detach(), torch.autograd.grad(made, [rows, down, up], back.double())


@pytest.mark.parametrize("rank", [3, 16, 24])
@pytest.mark.parametrize("num_rows", [1, 8, 37])
def test_adapters_give_what_float64_gives(rank: int, num_rows: int) -> None:
    rows, down, up = (
        random(num_rows, 64, seed=0),
        random(rank, 64, seed=1),
        random(96, rank, seed=2),
    )
    outputs, back, beside = (random(num_rows, size, seed=size) for size in (96, 96, 64))
    expected, (of_rows, *of_factors) = with_adapter((rows, down, up, outputs), back, scaling=0.25)
    made, of_rows_made = outputs.clone(), beside.clone()
    assert can_adapt(rows, down, up)
    narrow = adapt(rows, (down, up), made, scaling=0.25)
    adapted = rows, down, up, narrow
    of_factors_made = adapt_backward(adapted, back, of_rows_made, scaling=0.25)
    assert error_of(made, expected) < ROUNDING
    assert error_of(of_rows_made, of_rows + beside.double()) < ROUNDING
    for ours, theirs in zip(of_factors_made, of_factors, strict=True):
        assert error_of(ours, theirs) < ROUNDING
    without = adapt_backward(adapted, back, None, scaling=0.25)
    assert all(map(torch.equal, without, of_factors_made))


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [((48, 96), torch.bfloat16), ((64, 80), torch.bfloat16), ((64, 96), torch.float32)],
)
def test_adapters_of_other_sizes_and_precisions_are_left_to_torch(
    sizes: tuple[int, int], dtype: torch.dtype
) -> None:
    inputs, outputs = sizes
    rows, down, up = (
        torch.zeros(size, dtype=dtype) for size in ((2, inputs), (4, inputs), (outputs, 4))
    )
    assert not can_adapt(rows, down, up)


def test_adapters_that_do_not_lie_side_by_side_are_left_to_torch() -> None:
    rows, down, up = (torch.zeros(size).bfloat16() for size in ((2, 64), (64, 4), (96, 4)))
    assert not can_adapt(rows, down.T, up)
    assert can_adapt(rows, down.T.contiguous(), up)


def test_rows_without_a_place_are_refused() -> None:
    rows, places = random(5, 64, seed=0), random(8, 32, seed=1)
    with pytest.raises(ValueError, match="5 rows and 8 places"):
        turn(rows, places, places)
