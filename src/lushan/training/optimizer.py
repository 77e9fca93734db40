"""Optimizers over float32 master weights, with decoupled decay, schedules and clipping.

A model in bf16 is trained through a float32 copy of each weight: steps smaller than bf16 can show still add up.
Gradients of several micro-batches are added in float32; that of one alone stays in bf16 and is widened piece by piece
while the step is made, so no float32 gradient of the whole model exists. Weights in float32 are their own masters.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from lushan.backbones.load import is_head

_PIECE = 1 << 18
"""Numbers of a weight that are moved at once: their gradient, moments and master stay in the processor's cache."""
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """How weights move; see `TrainingSettings` of the recipe for the meaning of each."""

    optimizer: Literal["adamw", "sgd"]
    learning_rate: float
    head_learning_rate: float
    momentum: float
    weight_decay: float
    warmup_fraction: float
    schedule: Literal["linear", "cosine", "constant"]
    max_gradient_norm: float


def schedule_factor(step: int, num_steps: int, settings: OptimizerSettings) -> float:
    """Give the share of the peak learning rate at a step, counted from 0.

    Rises linearly over `ceil(warmup_fraction * num_steps)` steps, then falls to zero (linear, cosine) or stays.
    """
    num_warmup_steps = math.ceil(settings.warmup_fraction * num_steps)
    if step < num_warmup_steps:
        return step / max(1, num_warmup_steps)
    done_fraction = (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)
    if settings.schedule == "linear":
        return max(0.0, 1.0 - done_fraction)
    if settings.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done_fraction)))
    return 1.0


@dataclass(slots=True)
class _Trained:
    """One weight on its way."""

    name: str
    weight: nn.Parameter
    master: Tensor
    """Float32; the weight itself if that is float32."""
    moments: dict[str, Tensor]
    peak: float
    """Highest learning rate."""
    decay: float
    gradient: Tensor | None = field(default=None)
    """Sum over the micro-batches of the step to come."""


class Optimizer:
    """AdamW or SGD with momentum; theta <- theta - eta * direction - eta * lambda * theta.

    Decay is decoupled for both (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101) and leaves out
    biases and norms, as is usual.
    """

    def __init__(self, model: nn.Module, settings: OptimizerSettings, *, num_steps: int) -> None:
        """Copy what is trained into float32 masters.

        Args:
            model: Only weights with `requires_grad` are trained.
            settings: How they move.
            num_steps: Length of the schedule in optimizer steps.
        """
        self._settings = settings
        self._num_steps = num_steps
        self.num_steps_done = 0
        named = model.named_parameters()
        self._trained = [_begin(*each, settings) for each in named if each[1].requires_grad]

    @property
    def names(self) -> list[str]:
        """Names of what is trained."""
        return [each.name for each in self._trained]

    @property
    def learning_rate(self) -> float:
        """The highest learning rate of the step to come."""
        factor = schedule_factor(self.num_steps_done, self._num_steps, self._settings)
        return max(each.peak for each in self._trained) * factor

    def collect(self) -> None:
        """Take the gradients of a micro-batch; those of several are added in float32."""
        for each in self._trained:
            found = each.weight.grad
            each.weight.grad = None
            if found is None:
                continue
            each.gradient = found if each.gradient is None else each.gradient.float().add_(found)

    def sum_gradients(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Add up the gradients of all processes; one that had no rows of a step adds zeros."""
        for each in self._trained:
            own = torch.zeros_like(each.master) if each.gradient is None else each.gradient.float()
            each.gradient = reduce(own)

    def names_without_gradient(self) -> list[str]:
        """Weights that should be trained but that the loss did not reach.

        A gradient of zeros alone is no sign of that (an adapter's first matrix has one before its second moves),
        but it is one where the whole class layer, or all that is trained below it, has no other.
        """
        gradients = [(each.name, each.gradient) for each in self._trained]
        moved = {is_head(name) for name, each in gradients if each is not None and each.any()}
        return [name for name, each in gradients if each is None or is_head(name) not in moved]

    @torch.no_grad()
    def step(self) -> float:
        """Clip, move every weight, forget the gradients; returns the gradient's norm before clipping.

        Nothing moves if that norm is not finite.
        """
        reached = [(each, each.gradient) for each in self._trained if each.gradient is not None]
        norms = [torch.linalg.vector_norm(each, dtype=torch.float32) for _, each in reached]
        norm = float(torch.linalg.vector_norm(torch.stack(norms)))
        if not math.isfinite(norm):
            return norm
        # As in `torch.nn.utils.clip_grad_norm_`.
        scale = min(1.0, self._settings.max_gradient_norm / (norm + 1e-6))
        factor = schedule_factor(self.num_steps_done, self._num_steps, self._settings)
        for each, gradient in reached:
            rate = each.peak * factor
            for pieces in _pieces(each, gradient):
                _move(
                    pieces,
                    self._settings,
                    rate=rate,
                    decay=each.decay,
                    scale=scale,
                    num_steps_done=self.num_steps_done,
                )
            each.gradient = None
        self.num_steps_done += 1
        return norm

    def weights(self) -> dict[str, Tensor]:
        """The trained weights by name, as the model uses them."""
        return {each.name: each.weight for each in self._trained}

    @torch.no_grad()
    def load_weights(self, tensors: dict[str, Tensor]) -> None:
        """Put weights into the model (not into the masters: training does not go on from here)."""
        for each in self._trained:
            each.weight.copy_(tensors[each.name])

    def state_dict(self) -> dict[str, Tensor]:
        """Masters and moments by name; `load_state_dict` takes them up bit for bit."""
        tensors = {"num_steps_done": torch.tensor(self.num_steps_done)}
        for key, value in self._state():
            tensors[key] = value
        return tensors

    @torch.no_grad()
    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take up a state of the same model and settings."""
        self.num_steps_done = int(tensors["num_steps_done"])
        for key, value in self._state():
            value.copy_(tensors[key])
        for each in self._trained:
            each.weight.copy_(each.master)

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        for each in self._trained:
            yield f"weight/{each.name}", each.master
            for moment, value in each.moments.items():
                yield f"{moment}/{each.name}", value


def _begin(name: str, weight: nn.Parameter, settings: OptimizerSettings) -> _Trained:
    master = weight.detach()
    if weight.dtype != torch.float32:
        master = master.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return _Trained(
        name,
        weight,
        master,
        {moment: torch.zeros_like(master) for moment in _MOMENTS[settings.optimizer]},
        peak=settings.head_learning_rate if is_head(name) else settings.learning_rate,
        decay=settings.weight_decay if weight.ndim >= 2 else 0.0,
    )


class _Pieces(NamedTuple):
    """The same part of a weight and of all that belongs to it; they share the memory of the whole."""

    weight: Tensor
    master: Tensor
    gradient: Tensor
    moments: tuple[Tensor, ...]


def _pieces(each: _Trained, gradient: Tensor) -> Iterator[_Pieces]:
    whole = (each.weight.detach(), each.master, gradient, *each.moments.values())
    for weight, master, part, *moments in zip(
        *(t.view(-1).split(_PIECE) for t in whole), strict=True
    ):
        yield _Pieces(weight, master, part, tuple(moments))


def _move(
    pieces: _Pieces,
    settings: OptimizerSettings,
    *,
    rate: float,
    decay: float,
    scale: float,
    num_steps_done: int,
) -> None:
    master, moments = pieces.master, pieces.moments
    gradient = pieces.gradient.float()
    if scale < 1.0:
        gradient = gradient * scale
    if settings.optimizer == "sgd":
        moments[0].mul_(settings.momentum).add_(gradient)
        master.mul_(1.0 - rate * decay).sub_(moments[0], alpha=rate)
    else:
        mean, square = moments
        adamw(
            [master],
            [gradient],
            [mean],
            [square],
            [],
            [torch.tensor(float(num_steps_done))],
            fused=True,
            amsgrad=False,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            lr=rate,
            weight_decay=decay,
            eps=_EPSILON,
            maximize=False,
        )
    if master.dtype != pieces.weight.dtype:
        pieces.weight.copy_(master)
