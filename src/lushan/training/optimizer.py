"""Optimizers over float32 master weights, with decoupled decay, schedules and clipping.

A model in bf16 is trained through a float32 copy of each weight: steps smaller than bf16 can show still add up.
Gradients of several micro-batches are added in float32. Weights in float32 are their own masters.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lushan.backbones.load import is_head


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
        self.names: list[str] = []
        self._weights: list[nn.Parameter] = []
        self._masters: list[Tensor] = []
        groups: dict[tuple[bool, bool], list[Tensor]] = {}
        for name, weight in model.named_parameters():
            if not weight.requires_grad:
                continue
            is_low = weight.dtype != torch.float32
            master = weight.detach().float().clone() if is_low else weight
            self.names.append(name)
            self._weights.append(weight)
            self._masters.append(master)
            groups.setdefault((is_head(name), weight.ndim >= 2), []).append(master)
        self._inner = self._build(groups)

    def _build(self, groups: dict[tuple[bool, bool], list[Tensor]]) -> torch.optim.Optimizer:
        settings = self._settings
        described = [
            {
                "params": masters,
                "lr": 0.0,
                "peak": settings.head_learning_rate if of_head else settings.learning_rate,
                "decay": settings.weight_decay if decays else 0.0,
            }
            for (of_head, decays), masters in groups.items()
        ]
        if settings.optimizer == "sgd":
            return torch.optim.SGD(described, lr=0.0, momentum=settings.momentum)
        for group in described:
            group["weight_decay"] = group["decay"]
        return torch.optim.AdamW(described, lr=0.0, fused=True)

    @property
    def learning_rate(self) -> float:
        """The highest learning rate of the step to come."""
        factor = schedule_factor(self.num_steps_done, self._num_steps, self._settings)
        return max(group["peak"] for group in self._inner.param_groups) * factor

    def collect(self) -> None:
        """Add the gradients of a micro-batch to those of the masters, in float32."""
        for weight, master in self._low():
            if weight.grad is None:
                continue
            if master.grad is None:
                master.grad = weight.grad.float()
            else:
                master.grad.add_(weight.grad)
            weight.grad = None

    def _low(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        pairs = zip(self._weights, self._masters, strict=True)
        return ((weight, master) for weight, master in pairs if weight is not master)

    def sum_gradients(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Add up the gradients of all processes."""
        for master in self._masters:
            if master.grad is not None:
                master.grad.copy_(reduce(master.grad))

    def names_without_gradient(self) -> list[str]:
        """Weights that should be trained but that the loss did not reach.

        A gradient of zeros alone is no sign of that (an adapter's first matrix has one before its second moves),
        but it is one where the whole class layer, or all that is trained below it, has no other.
        """
        gradients = [(name, m.grad) for name, m in zip(self.names, self._masters, strict=True)]
        moved = {is_head(name) for name, each in gradients if each is not None and each.any()}
        return [name for name, each in gradients if each is None or is_head(name) not in moved]

    def step(self) -> float:
        """Clip, move every weight, forget the gradients; returns the gradient's norm before clipping.

        Nothing moves if that norm is not finite.
        """
        norm = nn.utils.clip_grad_norm_(self._masters, self._settings.max_gradient_norm)
        if not torch.isfinite(norm):
            return float(norm)
        factor = schedule_factor(self.num_steps_done, self._num_steps, self._settings)
        for group in self._inner.param_groups:
            group["lr"] = group["peak"] * factor
            if self._settings.optimizer == "sgd" and group["decay"]:
                _decay(group["params"], 1.0 - group["lr"] * group["decay"])
        self._inner.step()
        self._inner.zero_grad()
        self.publish()
        self.num_steps_done += 1
        return float(norm)

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the model's weights."""
        for weight, master in self._low():
            weight.copy_(master)

    def weights(self) -> dict[str, Tensor]:
        """The trained weights by name, as the model uses them."""
        return dict(zip(self.names, self._weights, strict=True))

    @torch.no_grad()
    def load_weights(self, tensors: dict[str, Tensor]) -> None:
        """Put weights into the model (not into the masters: training does not go on from here)."""
        for name, weight in self.weights().items():
            weight.copy_(tensors[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Masters and moments by name; `load_state_dict` takes them up bit for bit."""
        tensors: dict[str, Tensor] = {"num_steps_done": torch.tensor(self.num_steps_done)}
        for name, master in zip(self.names, self._masters, strict=True):
            tensors[f"weight/{name}"] = master.detach()
            for moment, value in self._inner.state.get(master, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{moment}/{name}"] = value
        return tensors

    @torch.no_grad()
    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take up a state of the same model and settings."""
        self.num_steps_done = int(tensors["num_steps_done"])
        for name, master in zip(self.names, self._masters, strict=True):
            master.copy_(tensors[f"weight/{name}"])
            moments = {
                key.partition("/")[0]: value.clone()
                for key, value in tensors.items()
                if key.partition("/")[2] == name and not key.startswith("weight/")
            }
            if moments:
                self._inner.state[master] = moments
        self.publish()


@torch.no_grad()
def _decay(masters: list[Tensor], factor: float) -> None:
    for master in masters:
        master.mul_(factor)
