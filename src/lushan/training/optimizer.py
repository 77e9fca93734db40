"""Optimizers over float32 master weights, with decoupled decay, schedules and clipping.

Shapes: U rows of an embedding that training reads, D width, T tokens.

A model in bf16 is trained through a float32 master of each weight: steps smaller than bf16 can show still add up.
Gradients of several micro-batches are added in float32; that of one alone stays in bf16 and is widened while the step is
made, so no float32 gradient of the whole model exists. Weights in float32 are their own masters. AdamW on a processor moves
all weights in one call (`adamw.cpp`), for which a weight in bf16 is the upper half of its master, and only the lower half stands
beside it; where that is missing, torch moves copies in float32 piece by piece.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim._adafactor import adafactor  # the public class makes its state anew when resumed
from torch.optim.adamw import adamw

from lushan.backbones.inspect import is_head
from lushan.backbones.native_training import (
    Moving,
    add_gradient,
    can_add,
    can_move,
    can_train,
    gradient_norm,
    joined,
    split,
)
from lushan.backbones.native_training import adamw as adamw_at_once
from lushan.training.sharding import is_part, own_part, part_of, put_together

_PIECE = 1 << 18
"""Numbers of a weight that are moved at once: their gradient, moments and master stay in the processor's cache."""
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
OptimizerName = Literal["adamw", "adafactor", "sgd"]


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """How weights move; see `TrainingSettings` of the recipe for the meaning of each."""

    optimizer: OptimizerName
    learning_rate: float
    head_learning_rate: float
    momentum: float
    weight_decay: float
    warmup_fraction: float
    schedule: Literal["linear", "cosine", "constant"]
    max_gradient_norm: float


def count_warmup_steps(num_steps: int, settings: OptimizerSettings) -> int:
    """Give the steps over which the learning rate rises: never all of them, for the first has a share of 0."""
    return min(math.ceil(settings.warmup_fraction * num_steps), num_steps - 1)


def schedule_factor(step: int, num_steps: int, settings: OptimizerSettings) -> float:
    """Give the share of the peak learning rate at a step, counted from 0.

    Rises linearly over `ceil(warmup_fraction * num_steps)` steps, but never over all of them, for the first has a share of
    0; then falls to zero (linear, cosine) or stays.
    """
    num_warmup_steps = count_warmup_steps(num_steps, settings)
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
    parameter: nn.Parameter
    weight: Tensor
    """What this process holds of it: all, or a part."""
    master: Tensor
    """Float32; the weight itself if that is float32 and trained as a whole. Int16 where it is what the weight lacks of it."""
    rows_U: Tensor | None
    """The rows that are trained; None trains all."""
    state: dict[str, Tensor]
    """Moments, by name."""
    peak: float
    """Highest learning rate."""
    decay: float
    gradient: Tensor | None = field(default=None)
    """Sum over the micro-batches of the step to come."""

    @property
    def is_split(self) -> bool:
        """Whether the weight is a part of its master."""
        return self.master.dtype == torch.int16

    @property
    def num_bytes(self) -> int:
        """Size of the master, put together, and of what is remembered."""
        kept = sum(each.nbytes for each in self.state.values())
        return self.master.numel() * torch.float32.itemsize + kept


class Optimizer:
    """AdamW, Adafactor or SGD with momentum; theta <- theta - eta * direction - eta * lambda * theta.

    Decay is decoupled for all (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101) and leaves out
    biases and norms, as is usual.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: OptimizerSettings,
        *,
        num_steps: int,
        read_rows: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Copy what is trained into float32 masters.

        Args:
            model: Only weights with `requires_grad` are trained.
            settings: How they move.
            num_steps: Length of the schedule in optimizer steps.
            read_rows: Names of embeddings to the rows, ascending (U), that training ever reads. The others have no
                gradient, so they stay as they are, and need neither master nor moments.
        """
        self._settings = settings
        self._num_steps = num_steps
        self.num_steps_done = 0
        self.num_warmup_steps = count_warmup_steps(num_steps, settings)
        rows = read_rows or {}
        weights = [named for named in model.named_parameters() if named[1].requires_grad]
        is_spread = any(is_part(weight) for _, weight in weights)
        self._trained = [
            _begin(name, weight, settings, rows_U=rows.get(name), may_split=not is_spread)
            for name, weight in weights
        ]
        self.num_state_bytes = sum(each.num_bytes for each in self._trained)
        """Size of the masters and moments that this process holds."""

    @property
    def names(self) -> list[str]:
        """Names of what is trained."""
        return [each.name for each in self._trained]

    @property
    def is_spread(self) -> bool:
        """Whether weights are spread over the processes, which then do together whatever reads all of them."""
        return any(is_part(each.parameter) for each in self._trained)

    @property
    def learning_rate(self) -> float:
        """The highest learning rate of the step to come."""
        factor = schedule_factor(self.num_steps_done, self._num_steps, self._settings)
        return max(each.peak for each in self._trained) * factor

    def collect(self) -> None:
        """Take the gradients of a micro-batch; those of several are added in float32."""
        for each in self._trained:
            found = each.parameter.grad
            each.parameter.grad = None
            if found is None:
                continue
            found = own_part(found)
            if each.rows_U is not None:
                found = _read_rows(found, each.rows_U)
            found = found.contiguous() if each.is_split else found
            if each.gradient is None:
                each.gradient = found
            elif can_add(each.gradient, found):
                each.gradient = add_gradient(each.gradient, found)
            else:
                each.gradient = each.gradient.float().add_(found)

    def sum_gradients(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Add up the gradients of all processes; one that had no rows of a step adds zeros.

        Those of weights that are spread over the processes are added up already.
        """
        for each in self._trained:
            if is_part(each.parameter):
                continue
            own = each.gradient
            if own is None:
                own = torch.zeros_like(each.master, dtype=torch.float32)
            each.gradient = reduce(own.float())

    def names_without_gradient(self) -> list[str]:
        """Weights that should be trained but that the loss did not reach.

        A gradient of zeros alone is no sign of that (an adapter's first matrix has one before its second moves),
        but it is one where the whole class layer, or all that is trained below it, has no other.
        """
        gradients = [(each.name, each.gradient) for each in self._trained]
        moved = {is_head(name) for name, each in gradients if each is not None and each.any()}
        return [name for name, each in gradients if each is None or is_head(name) not in moved]

    @torch.no_grad()
    def step(self, reduce: Callable[[Tensor], Tensor] | None = None) -> float:
        """Clip, move every weight, forget the gradients; returns the gradient's norm before clipping.

        Nothing moves if that norm is not finite. `reduce` adds up over all processes what each has of its parts.
        """
        reached = [(each, each.gradient) for each in self._trained if each.gradient is not None]
        factor = schedule_factor(self.num_steps_done, self._num_steps, self._settings)
        reduce = reduce if self.is_spread else None
        moving = {} if self.is_spread else _moving(reached, self._settings, factor)
        others = [(each, gradient) for each, gradient in reached if each.name not in moving]
        at_once = list(moving.values())
        norm = math.hypot(gradient_norm(at_once) if at_once else 0.0, _norm(others, reduce))
        if not math.isfinite(norm):
            return norm
        # As in `torch.nn.utils.clip_grad_norm_`.
        scale = min(1.0, self._settings.max_gradient_norm / (norm + 1e-6))
        if at_once:
            step = self.num_steps_done + 1
            adamw_at_once(at_once, scale=scale, betas=_BETAS, epsilon=_EPSILON, step=step)
        for each, gradient in reached:
            each.gradient = None
            if each.name in moving and not each.is_split and each.master is not each.weight:
                _show(_Piece(each.weight, each.master, gradient, each.rows_U, each.state))
        for each, gradient in others:
            for piece in _pieces(each, gradient, self._settings):
                _move(
                    piece,
                    self._settings,
                    rate=each.peak * factor,
                    decay=each.decay,
                    scale=scale,
                    num_steps_done=self.num_steps_done,
                )
                _show(piece)
        self.num_steps_done += 1
        return norm

    def weights(self) -> dict[str, Tensor]:
        """The trained weights by name, as the model uses them, whole."""
        return {each.name: put_together(each.weight, each.parameter) for each in self._trained}

    @torch.no_grad()
    def load_weights(self, tensors: dict[str, Tensor]) -> None:
        """Put weights into the model (not into the masters: training does not go on from here)."""
        for each in self._trained:
            each.weight.copy_(part_of(tensors[each.name], each.parameter))

    def state_dict(self) -> dict[str, Tensor]:
        """Masters and moments by name, whole; `load_state_dict` takes them up bit for bit."""
        tensors = {"num_steps_done": torch.tensor(self.num_steps_done)}
        for key, value, parameter in self._state():
            tensors[key] = put_together(value, parameter)
        return tensors

    @torch.no_grad()
    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take up a state of the same model and settings."""
        self.num_steps_done = int(tensors["num_steps_done"])
        for each in self._trained:
            for moment, value in each.state.items():
                value.copy_(part_of(tensors[f"{moment}/{each.name}"], each.parameter))
            master = tensors[f"weight/{each.name}"]
            if (rest := tensors.get(f"rest/{each.name}")) is not None:
                master = joined(master, rest)
            if each.is_split:
                for into, part in zip((each.weight, each.master), split(master), strict=True):
                    into.copy_(part)
                continue
            each.master.copy_(part_of(master, each.parameter))
            _show(_Piece(each.weight, each.master, each.master, each.rows_U, {}))

    def _state(self) -> Iterator[tuple[str, Tensor, nn.Parameter]]:
        for each in self._trained:
            yield (
                f"weight/{each.name}",
                each.weight if each.is_split else each.master,
                each.parameter,
            )
            if each.is_split:
                yield f"rest/{each.name}", each.master, each.parameter
            for moment, value in each.state.items():
                yield f"{moment}/{each.name}", value, each.parameter


def _begin(
    name: str,
    parameter: nn.Parameter,
    settings: OptimizerSettings,
    *,
    rows_U: Tensor | None,
    may_split: bool,
) -> _Trained:
    master = weight = own_part(parameter.detach())
    may_split = may_split and settings.optimizer == "adamw" and weight.is_contiguous()
    if rows_U is not None:
        master = master[rows_U]
    if rows_U is None and may_split and can_train(weight):
        master = torch.zeros_like(weight, dtype=torch.int16)
    elif weight.dtype != torch.float32:
        master = master.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return _Trained(
        name,
        parameter,
        weight,
        master,
        rows_U,
        {
            moment: torch.zeros(shape, device=master.device)
            for moment, shape in _state_shapes(master.shape, settings)
        },
        peak=settings.head_learning_rate if is_head(name) else settings.learning_rate,
        decay=settings.weight_decay if weight.ndim >= 2 else 0.0,
    )


def _state_shapes(shape: torch.Size, settings: OptimizerSettings) -> list[tuple[str, list[int]]]:
    """What an optimizer remembers of one weight."""
    whole = list(shape)
    if settings.optimizer == "adamw":
        return [("exp_avg", whole), ("exp_avg_sq", whole)]
    if settings.optimizer == "sgd":
        return [("momentum_buffer", whole)] if settings.momentum else []
    if len(whole) < 2:
        return [("variance", whole)]
    return [("row_variance", [*whole[:-1], 1]), ("column_variance", [*whole[:-2], 1, whole[-1]])]


def _moving(
    reached: Sequence[tuple[_Trained, Tensor]], settings: OptimizerSettings, factor: float
) -> dict[str, Moving]:
    """Say what one call moves, by name; the others move piece by piece."""
    if settings.optimizer != "adamw":
        return {}
    moving = {
        each.name: Moving(
            gradient,
            each.master,
            each.state["exp_avg"],
            each.state["exp_avg_sq"],
            each.weight if each.is_split else None,
            each.peak * factor,
            each.decay,
        )
        for each, gradient in reached
    }
    return {name: each for name, each in moving.items() if can_move(each)}


def _norm(
    reached: Sequence[tuple[_Trained, Tensor]], reduce: Callable[[Tensor], Tensor] | None
) -> float:
    """The norm of all gradients together; `reduce` adds up parts that are spread over processes."""
    if not reached:
        return 0.0
    norms = {
        each.name: torch.linalg.vector_norm(gradient, dtype=torch.float32)
        for each, gradient in reached
    }
    if reduce:
        of_parts = [norms.pop(each.name) for each, _ in reached if is_part(each.parameter)]
        norms["parts"] = reduce(torch.stack(of_parts).square().sum()).sqrt()
    return float(torch.linalg.vector_norm(torch.stack(list(norms.values()))))


def _read_rows(gradient: Tensor, rows_U: Tensor) -> Tensor:
    """The gradient of an embedding, (U, D): what tokens of equal rows have is added up in float32."""
    if not gradient.is_sparse:
        return gradient[rows_U]
    rows_T, values_TD = gradient._indices()[0], gradient._values()  # not coalesced: no sum in bf16
    summed_UD = torch.zeros(len(rows_U), values_TD.shape[1], device=values_TD.device)
    return summed_UD.index_add_(0, torch.searchsorted(rows_U, rows_T), values_TD.float())


class _Piece(NamedTuple):
    """The same part of a weight and of all that belongs to it; all but a part of rows share the memory of the whole."""

    weight: Tensor
    master: Tensor
    gradient: Tensor
    rows: Tensor | None
    """Which rows of `weight` the others are; None if they are all of it."""
    state: dict[str, Tensor]


def _pieces(each: _Trained, gradient: Tensor, settings: OptimizerSettings) -> Iterator[_Piece]:
    if settings.optimizer == "adafactor":  # looks at whole rows and columns
        yield _Piece(each.weight.detach(), each.master, gradient, each.rows_U, each.state)
        return
    parts = {"master": each.master, "gradient": gradient, **each.state}
    if each.rows_U is None:
        parts = {name: value.view(-1) for name, value in parts.items()}
        parts["weight"] = each.weight.detach().view(-1)
        size = _PIECE
    else:
        parts["rows"] = each.rows_U
        size = max(1, _PIECE // each.master[0].numel())
    for cut in zip(*(value.split(size) for value in parts.values()), strict=True):
        part = dict(zip(parts, cut, strict=True))
        yield _Piece(
            part.pop("weight", each.weight.detach()),
            part.pop("master"),
            part.pop("gradient"),
            part.pop("rows", None),
            part,
        )


def _move(
    piece: _Piece,
    settings: OptimizerSettings,
    *,
    rate: float,
    decay: float,
    scale: float,
    num_steps_done: int,
) -> None:
    """Move the master."""
    master, state = piece.master, piece.state
    gradient = piece.gradient.float()
    if scale < 1.0:
        gradient = gradient * scale
    step = torch.tensor(float(num_steps_done), device=master.device)
    if settings.optimizer == "sgd":
        direction = gradient
        if settings.momentum:
            direction = state["momentum_buffer"].mul_(settings.momentum).add_(gradient)
        master.mul_(1.0 - rate * decay).sub_(direction, alpha=rate)
    elif settings.optimizer == "adafactor":
        adafactor(
            [master],
            [gradient],
            [state.get("row_variance")],
            [state.get("column_variance")],
            [state.get("variance")],
            [step],
            foreach=False,
            d=1.0,
            lr=rate,
            beta2_decay=-0.8,
            weight_decay=decay,
            eps1=torch.finfo(torch.float32).eps,
            eps2=1e-3,
            maximize=False,
        )
    else:
        adamw(
            [master],
            [gradient],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [step],
            fused=True,
            amsgrad=False,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            lr=rate,
            weight_decay=decay,
            eps=_EPSILON,
            maximize=False,
        )


@torch.no_grad()
def _show(piece: _Piece) -> None:
    """Give the weight what its master has become."""
    if piece.rows is not None:
        piece.weight.index_copy_(0, piece.rows, piece.master.to(piece.weight.dtype))
    elif piece.weight.dtype != piece.master.dtype:
        piece.weight.copy_(piece.master)
