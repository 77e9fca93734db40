"""What stands between products, forward and backward, beside torch in float64; AdamW beside torch's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lushan.backbones import native
from lushan.backbones.native_training import (
    Dropout,
    Looks,
    Moving,
    adamw,
    adapt,
    adapt_backward,
    add_and_norm,
    add_gradient,
    attend,
    attend_backward,
    can_adapt,
    can_add,
    can_move,
    cross_entropy,
    drop,
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


@pytest.mark.parametrize("heads", [(9, 3, 64), (4, 1, 96), (2, 2, 32)])
@pytest.mark.parametrize(
    ("causal", "window"), [(True, None), (True, 70), (False, None), (False, 40)]
)
def test_longer_documents_attend_as_the_formula_says(
    heads: tuple[int, int, int], causal: bool, window: int | None
) -> None:
    lengths_N = torch.tensor([20, 129, 144, 301])
    num_tokens, width = int(lengths_N.sum()), heads[2]
    looks = Looks(lengths_N, width, causal, window, 0.2)
    num_heads = (heads[0], heads[1], heads[1])
    rows = [random(num_tokens, each * width, seed=seed) for seed, each in enumerate(num_heads)]
    query, key, value = rows
    back = random(*query.shape, seed=8)
    given = [exact(each) for each in rows]
    expected = looked(tuple(given), looks)
    gradients = torch.autograd.grad(expected, given, back.double())
    assert error_of(attend((query, key, value), looks), expected.detach()) < 2 * ROUNDING
    made = attend_backward((query, key, value), back, looks)
    assert all(error_of(*pair) < 2 * ROUNDING for pair in zip(made, gradients, strict=True))
    torch.set_num_threads(1)
    assert all(map(torch.equal, made, attend_backward((query, key, value), back, looks)))


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


@pytest.mark.parametrize("size", [7, 40_000])
def test_gradients_of_parts_add_up_in_float32(size: int) -> None:
    first, second, third = (random(size, seed=seed) for seed in range(3))
    assert can_add(first, second)
    total = add_gradient(first, second)
    assert torch.equal(total, first.float() + second.float())
    assert torch.equal(first, random(size, seed=0))
    assert add_gradient(total, third) is total
    assert torch.equal(total, first.float() + second.float() + third.float())
    assert not can_add(first, second.float())
    assert not can_add(first, random(2 * size, seed=0)[::2])


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


def philox(seed: int, counter: int, *, rounds: int) -> list[int]:
    """Philox 4x32 as its authors write it down, for counters below 2**64."""
    words = [counter & 0xFFFFFFFF, counter >> 32, 0, 0]
    keys = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(rounds):
        one, two = 0xD2511F53 * words[0], 0xCD9E8D57 * words[2]
        words = [
            two >> 32 ^ words[1] ^ keys[0],
            two & 0xFFFFFFFF,
            one >> 32 ^ words[3] ^ keys[1],
            one & 0xFFFFFFFF,
        ]
        keys = [
            (key + by) & 0xFFFFFFFF for key, by in zip(keys, (0x9E3779B9, 0xBB67AE85), strict=True)
        ]
    return words


def test_what_is_dropped_follows_from_philox() -> None:
    # The first answer that its authors publish: `kat_vectors` of Random123, ten rounds.
    assert philox(0, 0, rounds=10) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    seed, count = 0x1234567890ABCDEF, 333
    bits: list[int] = []
    for block in range(3):
        sixteen = [philox(seed, block * 16 + lane, rounds=7) for lane in range(16)]
        for word in range(4):
            bits += [each[word] >> 16 * half & 0xFFFF for each in sixteen for half in (0, 1)]
    made = drop(torch.ones(count).bfloat16(), Dropout(0.25, seed))
    expected = [0.0 if each < 1 << 14 else 4 / 3 for each in bits[:count]]
    assert torch.equal(made, torch.tensor(expected).bfloat16())


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999999])
def test_the_share_is_dropped_and_the_sum_is_kept(share: float) -> None:
    rows = torch.ones(1000, 1000).bfloat16()
    made = drop(rows, Dropout(share, 3))
    dropped = made == 0
    spread = (share * (1 - share) / rows.numel()) ** 0.5 + 1 / (1 << 16)
    assert abs(float(dropped.float().mean()) - share) < 4 * spread
    if share < 0.9:
        kept = 1 - float(dropped.float().mean())
        assert made.double().mean() == pytest.approx(kept / (1 - share), rel=0.004)
    assert not torch.equal(dropped, drop(rows, Dropout(share, 4)) == 0) or share == 0


@pytest.mark.parametrize("num_rows", [1, 5, 200])
def test_the_way_back_drops_the_same_and_adds(num_rows: int) -> None:
    rows, back, beside = (random(num_rows, 96, seed=seed) for seed in range(3))
    dropout = Dropout(0.5, 7)
    stays = drop(torch.ones_like(rows), dropout)
    assert torch.equal(drop(rows, dropout), rows * stays)
    expected = (back.double() * stays + beside.double()).bfloat16()
    made = drop(back, dropout, added=beside)
    assert made is beside
    assert torch.equal(made, expected)
    torch.set_num_threads(1)
    assert torch.equal(drop(rows, dropout), rows * stays)


def test_seeds_of_dropout_are_drawn_by_torch() -> None:
    torch.manual_seed(5)
    first, second = Dropout.drawn(0.1), Dropout.drawn(0.1)
    assert first != second
    torch.manual_seed(5)
    assert Dropout.drawn(0.1) == first


@pytest.mark.parametrize("width", [1, 15, 16, 37, 1000])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_cross_entropy_and_its_gradients_are_those_of_float64(width: int, scale: float) -> None:
    scores, weights = 20 * random(9, width, seed=0), torch.linspace(0.5, 2, 9)
    targets = torch.arange(9) * 7 % width
    wide = exact(scores)
    losses = functional.cross_entropy(wide * scale, targets, reduction="none") * weights.double()
    (gradients,) = torch.autograd.grad(losses.sum(), [wide])
    before = scores.clone()
    found = cross_entropy(scores, targets, weights, scale=scale, trains=False)
    assert torch.equal(scores, before)
    assert torch.equal(found, cross_entropy(scores, targets, weights, scale=scale, trains=True))
    torch.testing.assert_close(found.double(), losses.detach(), rtol=1e-5, atol=1e-5)
    assert width == 1 or error_of(scores, gradients) < ROUNDING


def test_scores_that_are_no_numbers_or_no_end_give_a_loss_that_is_none() -> None:
    for wrong in (float("nan"), float("inf")):
        scores = random(1, 40, seed=0)
        scores[0, 7] = wrong
        found = cross_entropy(scores, torch.tensor([3]), torch.ones(1), scale=1.0, trains=True)
        assert not found.isfinite().any()
    scores = random(1, 40, seed=0).index_fill_(1, torch.tensor([7]), -torch.inf)
    expected = functional.cross_entropy(scores.double(), torch.tensor([3]))
    found = cross_entropy(scores, torch.tensor([3]), torch.ones(1), scale=1.0, trains=True)
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-5, atol=1e-5)
    assert scores[0, 7] == 0


def test_target_outside_of_the_columns_is_refused() -> None:
    for target in (-1, 40):
        with pytest.raises(IndexError, match="outside of the 40 columns"):
            cross_entropy(
                random(1, 40, seed=0), torch.tensor([target]), torch.ones(1), scale=1, trains=False
            )


def test_rows_without_a_place_are_refused() -> None:
    rows, places = random(5, 64, seed=0), random(8, 32, seed=1)
    with pytest.raises(ValueError, match="5 rows and 8 places"):
        turn(rows, places, places)
