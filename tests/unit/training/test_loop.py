"""The loop: same steps however they are cut up or interrupted, and when it stops."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from lushan.data.batching import PackedSource, Step, pack
from lushan.errors import DivergedError, ModelError
from lushan.records import Batch, Features, LossSum
from lushan.training import loop
from lushan.training.checkpoint import Checkpoints
from lushan.training.loop import Evaluated, FitSettings, Fitted, StepDone, fit
from lushan.training.optimizer import Optimizer, OptimizerSettings
from lushan.training.processes import Team

NUM_ROWS, ROWS_PER_STEP, NUM_EPOCHS = 10, 4, 3
NUM_STEPS = 9


class Model(nn.Module):
    """Scores each document by the mean of its tokens' vectors; with dropout, which uses random numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 4)
        self.dropout = nn.Dropout(0.2)
        self.layer = nn.Linear(4, 2)
        self.unused = nn.Linear(1, 1)
        self.unused.requires_grad_(requires_grad=False)

    def loss(self, batch: Batch) -> LossSum:
        vectors_TD = self.embedding(batch.token_ids_1T[0])
        ends = [*batch.first_N.tolist()[1:], vectors_TD.shape[0]]
        pairs = zip(batch.first_N.tolist(), ends, strict=True)
        pooled_ND = torch.stack([vectors_TD[start:end].mean(dim=0) for start, end in pairs])
        targets_N = torch.tensor([each.target for each in batch.features])
        logits_NC = self.layer(self.dropout(pooled_ND))
        losses = nn.functional.cross_entropy(logits_NC, targets_N, reduction="sum")
        return LossSum(losses, len(batch.features))


@dataclass
class Notes:
    """A listener that remembers, and may stop the run like a kill does."""

    kill_after_step: int = -1
    steps: list[StepDone] = field(default_factory=list[StepDone])
    evaluations: list[int] = field(default_factory=list[int])

    def on_step(self, done: StepDone) -> None:
        self.steps.append(done)
        if done.step == self.kill_after_step:
            raise KeyboardInterrupt

    def on_evaluation(self, epoch: int, step: int, found: Evaluated) -> None:
        self.evaluations.append(step)


class Always(Checkpoints):
    """Checkpoints that are due after every step."""

    @property
    def is_due(self) -> bool:
        return True


def source(max_batch_tokens: int = 4096) -> PackedSource:
    documents = [
        Features(tuple(range(n, n + 3 + n % 5)), f"row{n}", n, target=n % 2)
        for n in range(NUM_ROWS)
    ]
    return PackedSource(
        documents, rows_per_step=ROWS_PER_STEP, seed=0, max_batch_tokens=max_batch_tokens
    )


def optimizer_of(model: nn.Module, *, warmup_fraction: float = 0.2) -> Optimizer:
    settings = OptimizerSettings(
        optimizer="adamw",
        learning_rate=1e-2,
        head_learning_rate=1e-2,
        momentum=0.9,
        weight_decay=0.1,
        warmup_fraction=warmup_fraction,
        schedule="linear",
        max_gradient_norm=1.0,
    )
    return Optimizer(model, settings, num_steps=NUM_STEPS)


def run(
    model: Model,
    folder: Path,
    *,
    scores: Iterable[float] = (0.1, 0.2, 0.3),
    loss: Callable[[Batch], LossSum] | None = None,
    notes: Notes | None = None,
    max_batch_tokens: int = 4096,
    patience: int | None = None,
    keep: Literal["best", "last"] = "last",
) -> Fitted:
    left: Iterator[float] = iter(scores)
    return fit(
        model,
        source(max_batch_tokens),
        settings=FitSettings(NUM_EPOCHS, patience=patience, keep=keep),
        optimizer=optimizer_of(model),
        loss=loss or model.loss,
        evaluate=lambda: Evaluated(next(left), 0.5),
        checkpoints=Always(folder),
        listeners=[notes or Notes()],
    )


def weights_of(model: nn.Module) -> list[Tensor]:
    return [weight.detach().clone() for weight in model.parameters()]


def test_loop_takes_every_step_and_tells_of_it(tmp_path: Path) -> None:
    notes = Notes()
    fitted = run(Model(), tmp_path, notes=notes)
    assert [done.step for done in notes.steps] == list(range(1, NUM_STEPS + 1))
    assert notes.evaluations == [3, 6, 9]
    assert fitted.num_steps == NUM_STEPS
    assert fitted.progress.num_tokens == sum(done.tokens for done in notes.steps)


@pytest.mark.parametrize("killed_after", [2, 3, 5, 8])
def test_killed_and_resumed_run_has_the_same_weights_bit_for_bit(
    killed_after: int, tmp_path: Path
) -> None:
    whole, killed, resumed = Model(), Model(), Model()
    torch.manual_seed(1)
    run(whole, tmp_path / "whole")
    torch.manual_seed(1)
    with pytest.raises(KeyboardInterrupt):
        run(killed, tmp_path / "other", notes=Notes(kill_after_step=killed_after))
    torch.manual_seed(99)
    done_epochs = (killed_after - 1) // 3
    run(resumed, tmp_path / "other", scores=(0.1, 0.2, 0.3)[done_epochs:])
    for one, other in zip(weights_of(whole), weights_of(resumed), strict=True):
        assert torch.equal(one, other)


def test_smaller_micro_batches_give_the_same_weights(tmp_path: Path) -> None:
    one, other = Model(), Model()
    one.dropout.p = other.dropout.p = 0.0
    run(one, tmp_path / "one")
    run(other, tmp_path / "other", max_batch_tokens=6)
    for left, right in zip(weights_of(one), weights_of(other), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


def test_told_loss_is_the_mean_over_the_rows_of_the_step(tmp_path: Path) -> None:
    model, notes = Model(), Notes()
    model.dropout.p = 0.0
    batches = next(source().rest_of_epoch()).micro_batches
    expected = sum(model.loss(batch).total.item() for batch in batches) / ROWS_PER_STEP
    run(model, tmp_path, notes=notes)
    assert notes.steps[0].loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite_names_step_and_rows_and_moves_nothing(
    value: float, tmp_path: Path
) -> None:
    model = Model()
    before = weights_of(model)

    def loss(batch: Batch) -> LossSum:
        return LossSum(model.loss(batch).total * value, len(batch.features))

    with pytest.raises(
        DivergedError, match=rf"Step 1: the loss is {value}.*row\d; row\d"
    ) as caught:
        run(model, tmp_path, loss=loss)
    assert str(caught.value).count("row") >= ROWS_PER_STEP
    assert all(torch.equal(*pair) for pair in zip(before, weights_of(model), strict=True))


def test_gradient_that_is_not_finite_is_named_and_moves_nothing(tmp_path: Path) -> None:
    model = Model()
    before = weights_of(model)

    def loss(batch: Batch) -> LossSum:
        total = model.loss(batch).total
        return LossSum(total + (total - total.detach()).clamp(min=0).sqrt(), len(batch.features))

    with pytest.raises(DivergedError, match="Step 1: the gradient norm is"):
        run(model, tmp_path, loss=loss)
    assert all(torch.equal(*pair) for pair in zip(before, weights_of(model), strict=True))


def test_weight_that_the_loss_does_not_reach_is_named(tmp_path: Path) -> None:
    model = Model()
    model.unused.requires_grad_(requires_grad=True)
    with pytest.raises(ModelError, match=r"does not reach 2 weights .* such as `unused\.weight`"):
        run(model, tmp_path)


def test_process_that_only_computes_along_reaches_nothing() -> None:
    model = Model()
    filler = Features((1, 2), "row", 0, target=1, weight=0.0)
    done = loop._train_step(
        Step([pack([filler])], num_supervised=1, num_tokens=2, seed=0),
        loss=model.loss,
        optimizer=optimizer_of(model),
        team=Team(),
        num_steps=1,
        started=0.0,
    )
    assert done.loss == 0


def test_step_with_nothing_to_learn_goes_on() -> None:
    model = Model()
    documents = pack([Features((1, 2), "row", 0, target=1)])
    done = loop._train_step(
        Step([documents], num_supervised=0.0, num_tokens=2, seed=0),
        loss=lambda batch: LossSum(model.loss(batch).total * 0.0, 0),
        optimizer=optimizer_of(model),
        team=Team(),
        num_steps=1,
        started=0.0,
    )
    assert (done.step, done.loss, done.gradient_norm) == (1, 0.0, 0.0)
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_loss_that_pulls_at_nothing_is_refused(tmp_path: Path) -> None:
    model = Model()

    def loss(batch: Batch) -> LossSum:
        return LossSum(model.loss(batch).total * 0.0, len(batch.features))

    with pytest.raises(
        ModelError, match=r"does not reach 3 weights .* such as `embedding\.weight`"
    ):
        run(model, tmp_path, loss=loss)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_validation_loss_that_is_not_finite_keeps_the_checkpoint_and_is_no_best(
    value: float, tmp_path: Path
) -> None:
    model, found = Model(), iter([Evaluated(0.5, 0.5), Evaluated(0.9, value)])
    with pytest.raises(DivergedError, match=rf"Step 6: the loss on the validation rows is {value}"):
        fit(
            model,
            source(),
            settings=FitSettings(NUM_EPOCHS),
            optimizer=optimizer_of(model),
            loss=model.loss,
            evaluate=lambda: next(found),
            checkpoints=Always(tmp_path),
        )
    assert {folder.name for folder in tmp_path.iterdir()} == {"step-00000005", "best-00000003"}


def test_patience_stops_the_run_and_the_best_weights_are_taken(tmp_path: Path) -> None:
    model, notes = Model(), Notes()
    fitted = run(model, tmp_path, scores=(0.5, 0.4), notes=notes, patience=1, keep="best")
    assert len(notes.steps) == 6
    assert fitted.progress.best_step == 3
    best = Checkpoints(tmp_path).load_best(3)
    trained = dict(model.named_parameters())
    assert all(torch.equal(trained[name], weight) for name, weight in best.items())


def watch(folder: Path, *found: Evaluated, warmup_fraction: float = 0.2) -> Fitted:
    """Train with a patience of one evaluation, of which all are known beforehand; the best weights are kept."""
    model, left = Model(), iter(found)
    return fit(
        model,
        source(),
        settings=FitSettings(NUM_EPOCHS, patience=1),
        optimizer=optimizer_of(model, warmup_fraction=warmup_fraction),
        loss=model.loss,
        evaluate=lambda: next(left),
        checkpoints=Always(folder),
    )


@pytest.mark.parametrize("losses", [(0.9, 0.7, 0.8), (0.9, 0.7, 0.7)])
def test_of_equal_scores_the_lower_loss_is_better(
    losses: tuple[float, ...], tmp_path: Path
) -> None:
    fitted = watch(tmp_path, *(Evaluated(0.5, loss) for loss in losses))
    assert (fitted.num_steps, fitted.progress.best_step) == (9, 6)
    assert fitted.progress.num_stale == 1
    assert {folder.name for folder in tmp_path.iterdir()} == {"step-00000009", "best-00000006"}


def test_higher_score_is_better_whatever_the_loss(tmp_path: Path) -> None:
    fitted = watch(tmp_path, Evaluated(0.5, 0.1), Evaluated(0.6, 0.9), Evaluated(0.5, 0.1))
    assert (fitted.num_steps, fitted.progress.best_step) == (9, 6)


@pytest.mark.parametrize(("warmup_fraction", "num_steps"), [(0.3, 6), (0.6, 9), (1.0, 9)])
def test_evaluations_within_the_warm_up_stop_nothing(
    warmup_fraction: float, num_steps: int, tmp_path: Path
) -> None:
    found = [Evaluated(score, 0.5) for score in (0.5, 0.4, 0.4)]
    fitted = watch(tmp_path, *found, warmup_fraction=warmup_fraction)
    assert (fitted.num_steps, fitted.progress.best_step) == (num_steps, 3)


def test_resumed_run_knows_the_loss_of_its_best_evaluation(tmp_path: Path) -> None:
    first = [Evaluated(0.5, 0.9), Evaluated(0.5, 0.7)]
    with pytest.raises(StopIteration):  # as if it were killed in the third evaluation
        watch(tmp_path, *first)
    fitted = watch(tmp_path, Evaluated(0.5, 0.8))
    assert (fitted.num_steps, fitted.progress.best_step) == (9, 6)


def test_best_weights_are_not_written_where_the_last_are_kept(tmp_path: Path) -> None:
    run(Model(), tmp_path, keep="last")
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-00000009"]


def test_keeping_the_last_takes_the_last_weights(tmp_path: Path) -> None:
    best, last = Model(), Model()
    for model, keep in ((best, "best"), (last, "last")):
        torch.manual_seed(1)
        run(
            model,
            tmp_path / keep,
            scores=(0.5, 0.4, 0.3),
            keep="best" if keep == "best" else "last",
        )
    assert not torch.equal(best.layer.weight, last.layer.weight)


def test_model_is_left_in_evaluation_mode_and_frozen_weights_as_they_were(tmp_path: Path) -> None:
    model = Model()
    before = model.unused.weight.detach().clone()
    run(model, tmp_path)
    assert not model.training
    assert torch.equal(model.unused.weight, before)
