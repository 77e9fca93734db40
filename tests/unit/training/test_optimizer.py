"""Optimizers against their formulas and against torch and transformers."""

import dataclasses
import math
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from transformers import get_scheduler

from lushan.backbones import native
from lushan.training import optimizer as optimizers
from lushan.training.optimizer import Optimizer, OptimizerSettings, schedule_factor
from tests.unit.training.whole_masters import in_one_piece

SETTINGS = OptimizerSettings(
    optimizer="adamw",
    learning_rate=1e-2,
    head_learning_rate=1e-1,
    momentum=0.9,
    weight_decay=0.1,
    warmup_fraction=0.0,
    schedule="constant",
    max_gradient_norm=1e9,
)
SGD = dataclasses.replace(SETTINGS, optimizer="sgd")


class Model(nn.Module):
    """A weight matrix, a norm, a bias and a class layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)
        self.norm = nn.LayerNorm(3)
        self.score = nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.score(self.norm(self.layer(inputs))).square().sum()


def inputs(seed: int) -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))


def train(model: nn.Module, optimizer: Optimizer, seeds: range) -> None:
    dtype = next(model.parameters()).dtype
    for seed in seeds:
        model(inputs(seed).to(dtype)).backward()
        optimizer.collect()
        optimizer.step()


def test_sgd_follows_its_formula_with_momentum_and_decoupled_decay() -> None:
    model, reference = Model(), Model()
    train(model, Optimizer(model, SGD, num_steps=3), range(3))
    velocity = {name: torch.zeros_like(weight) for name, weight in reference.named_parameters()}
    for seed in range(3):
        reference.zero_grad()
        reference(inputs(seed)).backward()
        with torch.no_grad():
            for name, weight in reference.named_parameters():
                assert weight.grad is not None
                eta = 1e-1 if name.startswith("score") else 1e-2
                decay = 0.1 if weight.ndim == 2 else 0.0
                velocity[name] = 0.9 * velocity[name] + weight.grad
                weight.sub_(eta * velocity[name] + eta * decay * weight)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_adamw_moves_like_torchs() -> None:
    model, reference = Model(), Model()
    train(model, Optimizer(model, SETTINGS, num_steps=5), range(5))
    groups = [
        {
            "params": [weight],
            "lr": 1e-1 if name.startswith("score") else 1e-2,
            "weight_decay": 0.1 if weight.ndim == 2 else 0.0,
        }
        for name, weight in reference.named_parameters()
    ]
    theirs = torch.optim.AdamW(groups, fused=False)
    for seed in range(5):
        theirs.zero_grad()
        reference(inputs(seed)).backward()
        theirs.step()
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_adafactor_moves_like_torchs() -> None:
    model, reference = Model(), Model()
    settings = dataclasses.replace(SETTINGS, optimizer="adafactor")
    train(model, Optimizer(model, settings, num_steps=5), range(5))
    groups = [
        {
            "params": [weight],
            "lr": 1e-1 if name.startswith("score") else 1e-2,
            "weight_decay": 0.1 if weight.ndim == 2 else 0.0,
        }
        for name, weight in reference.named_parameters()
    ]
    theirs = torch.optim.Adafactor(groups)
    for seed in range(5):
        theirs.zero_grad()
        reference(inputs(seed)).backward()
        theirs.step()
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def num_remembered(settings: OptimizerSettings) -> int:
    """Numbers beside the weights themselves."""
    model = Model()
    num_weights = sum(each.numel() for each in model.parameters())
    kept = Optimizer(model, settings, num_steps=1).state_dict()
    return sum(each.numel() for each in kept.values()) - num_weights - 1


def test_adafactor_and_plain_sgd_remember_next_to_nothing() -> None:
    vectors, sides = 3 + 3 + 3 + 2, (3 + 4) + (2 + 3)
    assert num_remembered(SETTINGS) == 2 * (vectors + 3 * 4 + 2 * 3)
    assert num_remembered(dataclasses.replace(SETTINGS, optimizer="adafactor")) == vectors + sides
    assert num_remembered(dataclasses.replace(SGD, momentum=0.0)) == 0


class Reader(nn.Module):
    """An embedding and a class layer."""

    def __init__(self, *, sparse: bool, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(9, 4, sparse=sparse)
        self.score = nn.Linear(4, 2)
        self.to(dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.score(self.embedding(tokens)).square().sum()


def read(model: Reader, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        for tokens in ([1, 7, 7, 3], [7, 1 + 2 * step]):
            model(torch.tensor(tokens)).backward()
            optimizer.collect()
        optimizer.step()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("piece", [4, 1 << 18])
def test_rows_that_are_read_move_as_if_all_did_and_the_others_stay(
    optimizer: Literal["adamw", "sgd"],
    dtype: torch.dtype,
    piece: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lushan.training.optimizer._PIECE", piece)
    settings = dataclasses.replace(SETTINGS, optimizer=optimizer, max_gradient_norm=0.5)
    whole, some = Reader(sparse=False, dtype=dtype), Reader(sparse=True, dtype=dtype)
    rows = torch.tensor([1, 3, 5, 7])
    read(whole, Optimizer(whole, settings, num_steps=3), range(3))
    begun = Optimizer(some, settings, num_steps=3, read_rows={"embedding.weight": rows})
    read(some, begun, range(2))
    taken_up = Optimizer(some, settings, num_steps=3, read_rows={"embedding.weight": rows})
    taken_up.load_state_dict({name: value.clone() for name, value in begun.state_dict().items()})
    read(some, taken_up, range(2, 3))
    torch.testing.assert_close(some.score.weight, whole.score.weight)
    torch.testing.assert_close(some.embedding.weight[rows], whole.embedding.weight[rows])
    others, untouched = [0, 2, 4, 6, 8], Reader(sparse=False, dtype=dtype)
    assert torch.equal(some.embedding.weight[others], untouched.embedding.weight[others])


@pytest.mark.parametrize("fraction", [0.0, 0.1, 1.0])
def test_run_of_one_step_moves_its_weights(fraction: float) -> None:
    settings = dataclasses.replace(SETTINGS, warmup_fraction=fraction)
    assert schedule_factor(0, 1, settings) == 1.0


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("num_warmup", [0, 3])
def test_schedule_is_that_of_transformers(
    schedule: Literal["linear", "cosine", "constant"], num_warmup: int
) -> None:
    settings = dataclasses.replace(SETTINGS, schedule=schedule, warmup_fraction=num_warmup / 10)
    dummy = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = get_scheduler(name, dummy, num_warmup_steps=num_warmup, num_training_steps=10)
    for step in range(10):
        assert schedule_factor(step, 10, settings) == pytest.approx(theirs.get_last_lr()[0])
        dummy.step()
        theirs.step()


def test_gradient_is_clipped_to_its_norm_which_is_told() -> None:
    model = Model()
    weight = model.layer.weight
    settings = dataclasses.replace(SGD, max_gradient_norm=0.5, momentum=0.0, weight_decay=0.0)
    optimizer = Optimizer(model, settings, num_steps=1)
    before = weight.detach().clone()
    gradients = torch.autograd.grad(model(inputs(0)), list(model.parameters()))
    norm = math.sqrt(sum(float(each.square().sum()) for each in gradients))
    expected = before - 1e-2 * gradients[0] * (0.5 / norm)
    model(inputs(0)).backward()
    optimizer.collect()
    assert optimizer.step() == pytest.approx(norm, rel=1e-5)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-6)


def test_steps_too_small_for_bf16_add_up() -> None:
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    settings = dataclasses.replace(SGD, learning_rate=1e-4, momentum=0.0, weight_decay=0.0)
    optimizer = Optimizer(model, settings, num_steps=100)
    with torch.no_grad():
        model.weight.fill_(1.0)
        optimizer.load_state_dict({**optimizer.state_dict(), "weight/weight": torch.ones(1, 1)})
    for _ in range(100):
        model(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        optimizer.collect()
        optimizer.step()
    assert model.weight.item() == pytest.approx(0.99, abs=0.004)


def test_gradients_of_micro_batches_add_up_in_float32() -> None:
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    optimizer = Optimizer(model, dataclasses.replace(SGD, momentum=0.0), num_steps=1)
    for size in (256.0, 1.0, 1.0):  # in bf16, 256 + 1 is 256
        model(torch.full((1, 1), size, dtype=torch.bfloat16)).sum().backward()
        optimizer.collect()
    assert optimizer.step() == 258.0


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "sgd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_going_on_from_a_saved_state_is_equal_bit_for_bit(
    optimizer: Literal["adamw", "adafactor", "sgd"], dtype: torch.dtype
) -> None:
    whole = Model().to(dtype)
    settings = dataclasses.replace(SETTINGS, optimizer=optimizer, schedule="linear")
    train(whole, Optimizer(whole, settings, num_steps=6), range(6))
    first, second = Model().to(dtype), Model().to(dtype)
    left = Optimizer(first, settings, num_steps=6)
    train(first, left, range(3))
    taken_up = Optimizer(second, settings, num_steps=6)
    state = left.state_dict()
    assert left.num_state_bytes == sum(each.nbytes for each in state.values() if each.dim())
    taken_up.load_state_dict({name: value.clone() for name, value in state.items()})
    train(second, taken_up, range(3, 6))
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.skipif(bool(native.why_missing()), reason="no library of our own on this machine")
def test_weight_that_is_half_of_its_master_moves_as_beside_a_whole_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = [Model().bfloat16() for _ in range(3)]
    halves = Optimizer(models[0], SETTINGS, num_steps=6)
    train(models[0], halves, range(3))
    monkeypatch.setattr(optimizers, "can_train", lambda _: False)
    monkeypatch.setattr(optimizers, "can_move", lambda _: False)
    whole = Optimizer(models[1], SETTINGS, num_steps=6)
    train(models[1], whole, range(3))
    states = [in_one_piece(each.state_dict()) for each in (halves, whole)]
    assert any(name.startswith("rest/") for name in halves.state_dict())
    assert states[0].keys() == whole.state_dict().keys()
    for name, value in states[1].items():
        torch.testing.assert_close(states[0][name], value, rtol=1e-4, atol=1e-5)
    elsewhere = Optimizer(models[2], SETTINGS, num_steps=6)
    elsewhere.load_state_dict(halves.state_dict())
    for name, value in elsewhere.state_dict().items():
        assert torch.equal(value, states[0][name]), name


def test_frozen_weights_are_not_trained() -> None:
    model = Model()
    model.layer.requires_grad_(requires_grad=False)
    before = model.layer.weight.detach().clone()
    optimizer = Optimizer(model, SETTINGS, num_steps=1)
    train(model, optimizer, range(1))
    assert torch.equal(model.layer.weight, before)
    assert [name for name in optimizer.names if name.startswith("layer")] == []


def test_weights_that_the_loss_does_not_reach_are_named() -> None:
    model = Model()
    optimizer = Optimizer(model, SETTINGS, num_steps=1)
    model.layer(inputs(0)).sum().backward()
    optimizer.collect()
    assert optimizer.names_without_gradient() == [
        name for name in optimizer.names if not name.startswith("layer")
    ]


@pytest.mark.parametrize(
    "silent",
    [("layer.weight", "layer.bias", "norm.weight", "norm.bias"), ("score.weight", "score.bias")],
)
def test_part_whose_gradients_are_all_zero_is_not_reached(silent: tuple[str, ...]) -> None:
    model = Model()
    optimizer = Optimizer(model, SETTINGS, num_steps=1)
    model(inputs(0)).backward()
    for name in silent:
        model.get_parameter(name).grad = torch.zeros_like(model.get_parameter(name))
    optimizer.collect()
    assert optimizer.names_without_gradient() == list(silent)


def test_zero_gradient_beside_others_of_its_part_is_no_sign() -> None:
    model = Model()
    optimizer = Optimizer(model, SETTINGS, num_steps=1)
    model(inputs(0)).backward()
    for name in ("layer.weight", "score.bias"):
        model.get_parameter(name).grad = torch.zeros_like(model.get_parameter(name))
    optimizer.collect()
    assert optimizer.names_without_gradient() == []


def test_gradient_that_is_not_finite_did_reach_its_weight() -> None:
    model = Model()
    optimizer = Optimizer(model, SETTINGS, num_steps=1)
    (model(inputs(0)) * math.nan).backward()
    optimizer.collect()
    assert optimizer.names_without_gradient() == []
