"""The training loop, all of it: it knows steps and weights, and no task.

Pretraining, tuning and alignment go through it: what differs is the batch source, the loss and the evaluation.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import nn

from lushan.backbones.hardware import give_back_freed_memory
from lushan.data.batching import PackedSource, Step
from lushan.errors import DivergedError, ModelError
from lushan.records import Batch, LossSum
from lushan.training.checkpoint import Checkpoints, Progress
from lushan.training.optimizer import Optimizer
from lushan.training.processes import Team

_TIDY_EVERY_STEPS = 10
"""Steps differ in size, so the memory that they free falls to pieces; given back at every step, it would have to be zeroed anew."""


@dataclass(frozen=True, slots=True)
class StepDone:
    """What a listener hears after every optimizer step."""

    step: int
    num_steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    seconds: float
    """From its rows to the moved weights."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What an evaluation on the validation rows found; `score` is better when higher, of equal ones the lower `loss` is."""

    score: float
    loss: float


class Listener(Protocol):
    """Hears of every optimizer step and every evaluation."""

    def on_step(self, done: StepDone) -> None:
        """Called after every optimizer step."""
        ...

    def on_evaluation(self, epoch: int, step: int, found: Evaluated) -> None:
        """Called after every evaluation."""
        ...


@dataclass(frozen=True, slots=True)
class FitSettings:
    """When to stop, and which weights to end with; see `TrainingSettings` of the recipe."""

    num_epochs: int
    patience: int | None = None
    keep: Literal["best", "last"] = "best"


@dataclass(frozen=True, slots=True)
class Fitted:
    """How training went; the model holds the best weights."""

    progress: Progress
    num_steps: int


def fit(
    model: nn.Module,
    source: PackedSource,
    *,
    settings: FitSettings,
    optimizer: Optimizer,
    loss: Callable[[Batch], LossSum],
    evaluate: Callable[[], Evaluated],
    checkpoints: Checkpoints,
    listeners: Sequence[Listener] = (),
) -> Fitted:
    """Train until the epochs are over or `evaluate` stops improving, then take the best weights (or the last).

    Evaluations of no improvement count from the end of the warm-up on: before, learning has hardly begun.

    Goes on from the last checkpoint if there is one, bit for bit. Of several processes the leader evaluates and
    writes, and ends with those weights.

    Raises:
        DivergedError: If a loss is not finite; names the step, and its rows if it is theirs.
        ModelError: If the loss does not reach a weight that should be trained.
    """
    team = Team()
    progress = _resume(source, optimizer, checkpoints)
    checkpoints.expect(optimizer.num_state_bytes)
    num_steps = settings.num_epochs * source.num_steps_per_epoch
    while source.epoch < settings.num_epochs and not _is_stale(progress, settings.patience):
        model.train()
        started = time.perf_counter()
        for step in source.rest_of_epoch():
            done = _train_step(
                step,
                loss=loss,
                optimizer=optimizer,
                team=team,
                num_steps=num_steps,
                started=started,
            )
            started = time.perf_counter()  # what follows, checkpoints too, is time of the next step
            if done.step % _TIDY_EVERY_STEPS == 0:
                give_back_freed_memory()
            progress.num_tokens += done.tokens
            progress.seconds += done.seconds
            for listener in listeners:
                listener.on_step(done)
            # Behind the last step of an epoch comes the evaluation, which writes the checkpoint: one per step.
            if source.step_in_epoch < source.num_steps_per_epoch:
                _save_if_due(team, source, optimizer, checkpoints, progress=progress)
        model.eval()
        found: Evaluated = team.share(evaluate() if team.leads or optimizer.is_spread else None)
        if not math.isfinite(found.loss):
            raise DivergedError(
                f"Step {optimizer.num_steps_done}: the loss on the validation rows is {found.loss}. "
                "Lower `training.learning_rate`."
            )
        for listener in listeners:
            listener.on_evaluation(source.epoch, optimizer.num_steps_done, found)
        started = time.perf_counter()
        _consider(
            found,
            team=team,
            source=source,
            optimizer=optimizer,
            checkpoints=checkpoints,
            progress=progress,
            keeps_best=settings.keep == "best",
        )
        progress.seconds += time.perf_counter() - started
    if settings.keep == "best" and (team.leads or optimizer.is_spread):
        _restore_best(optimizer, checkpoints, progress)
    model.eval()
    return Fitted(progress, optimizer.num_steps_done)


def _train_step(
    step: Step,
    *,
    loss: Callable[[Batch], LossSum],
    optimizer: Optimizer,
    team: Team,
    num_steps: int,
    started: float,
) -> StepDone:
    torch.manual_seed(step.seed)  # so that a resumed run draws what one without a stop would
    total = torch.zeros((), device=team.device)
    for batch in step.micro_batches:
        # Every part is divided by the count of the whole step, so that cutting it up changes nothing.
        part = loss(batch).total / (step.num_supervised or 1.0)  # rows may hold nothing to learn
        if not any(each.weight for each in batch.features):
            part = part * 0.0  # this process only computes along with the others
        part.backward()
        optimizer.collect()
        total += part.detach()
    mean_loss = float(team.sum(total))
    number = optimizer.num_steps_done + 1
    if not math.isfinite(mean_loss):
        raise DivergedError(_divergence_message(number, mean_loss, step.micro_batches))
    weighs = any(each.weight for batch in step.micro_batches for each in batch.features)
    weighs = weighs and step.num_supervised > 0
    if number == 1 and weighs and (unreached := optimizer.names_without_gradient()):
        raise ModelError(
            f"The loss does not reach {len(unreached)} weights that should be trained, such as `{unreached[0]}`."
        )
    if team.place[1] > 1:
        optimizer.sum_gradients(team.sum)
    learning_rate = optimizer.learning_rate
    norm = optimizer.step(team.sum)
    if not math.isfinite(norm):
        raise DivergedError(
            _divergence_message(number, norm, step.micro_batches, what="gradient norm")
        )
    return StepDone(
        number,
        num_steps,
        mean_loss,
        learning_rate,
        norm,
        step.num_tokens,
        time.perf_counter() - started,
    )


def _divergence_message(
    number: int, value: float, batches: Sequence[Batch], *, what: str = "loss"
) -> str:
    places = sorted({each.place for batch in batches for each in batch.features})
    return (
        f"Step {number}: the {what} is {value}. Rows of this step: {'; '.join(places)}. "
        "Lower `training.learning_rate`, or look at these rows; checkpoints before this step are kept."
    )


def _resume(source: PackedSource, optimizer: Optimizer, checkpoints: Checkpoints) -> Progress:
    last = checkpoints.load_last()
    if last is None:
        return Progress()
    tensors, progress = last
    optimizer.load_state_dict(tensors)
    source.load_state_dict(progress.source)
    return progress


def _is_stale(progress: Progress, patience: int | None) -> bool:
    return patience is not None and progress.num_stale >= patience


def _consider(
    found: Evaluated,
    *,
    team: Team,
    source: PackedSource,
    optimizer: Optimizer,
    checkpoints: Checkpoints,
    progress: Progress,
    keeps_best: bool,
) -> None:
    """Note an evaluation; the leader keeps the best weights so far, and writes a checkpoint if one is due."""
    step = optimizer.num_steps_done
    best = progress.best
    # Few rows score the same again and again while the model still learns, which their loss shows.
    is_best = (found.score, -found.loss) > (best["score"], -best["loss"])
    progress.validation.append({
        "epoch": source.epoch,
        "step": step,
        "score": found.score,
        "loss": found.loss,
    })
    if is_best:
        progress.best_step, progress.num_stale = step, 0
    elif step > optimizer.num_warmup_steps:  # steps on the way to the learning rate prove nothing
        progress.num_stale += 1
    if is_best and keeps_best and (team.leads or optimizer.is_spread):
        weights = optimizer.weights()
        if team.leads:
            checkpoints.save_best(step, weights)
    _save_if_due(team, source, optimizer, checkpoints, progress=progress)


def _save_if_due(
    team: Team,
    source: PackedSource,
    optimizer: Optimizer,
    checkpoints: Checkpoints,
    *,
    progress: Progress,
) -> None:
    """Have the leader write a checkpoint if one is due; where weights are spread, the others give their parts."""
    is_due = team.leads and checkpoints.is_due
    if optimizer.is_spread:
        is_due = team.share(is_due if team.leads else None)
    if not is_due:
        return
    state = optimizer.state_dict()
    if team.leads:
        progress.source = source.state_dict()
        checkpoints.save(optimizer.num_steps_done, state, progress)


def _restore_best(optimizer: Optimizer, checkpoints: Checkpoints, progress: Progress) -> None:
    if progress.best_step not in (-1, optimizer.num_steps_done):
        optimizer.load_weights(checkpoints.load_best(progress.best_step))
