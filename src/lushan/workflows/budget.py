"""How many rows are trained on, and how often: so many that a run keeps to its wall time, where that can be."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from lushan.backbones.hardware import machine, measure
from lushan.backbones.inspect import ModelFacts
from lushan.backbones.sources import cache_folder
from lushan.evaluation.phrases import duration
from lushan.workflows.recipe import TuneRecipe

_EPOCHS = {"quick": 3, "normal": 3, "thorough": 5}
_SMALL_ROWS = 1_000
"""Fewer rows than this get twice the epochs: each pass is short and teaches little."""
FEWEST_STEPS = 60
"""A new layer begins untrained: few rows are repeated until they make so many steps, for fewer teach it next to nothing."""
FEWEST_HEAD_STEPS = 500
"""The same where it alone is trained, on what frozen layers made of the rows once: a pass then costs next to nothing."""

QUICK_SECONDS = 360.0
_MOST_SHARE = 0.5
"""Of the time, for training: the rest is for starting, asking and the baselines."""
_LEAST_SHARE = 0.25
"""What training gets where asking leaves less: a model that learned nothing is worth no time at all."""
_SAME_SHARE = 0.9
"""A number of rows that was planned for and is given again is kept: the rows that were drawn are a little longer or shorter
than all were."""
_READING_SPEED = 3
"""Times as fast as training: a pass forward takes two operations per weight and token, training six."""
_LOW_RANK_SHARE = 2 / 3
"""Of full tuning, what low-rank adapters take: the frozen weights have no gradients of their own."""
_HEAD_SHARE = 1e-3
"""Of full tuning, what the head alone takes, where it reads what frozen layers made of a row once: next to nothing."""
EFFICIENCY = 0.3
"""Share of the measured GEMM speed that whole training steps reach; low on purpose, so that promises are kept."""
_READERS = ("the tuned model", "the untouched one", "that one with worked examples")


class Workload(NamedTuple):
    """What a run may train on, and what it asks about."""

    num_train_rows: int
    mean_tokens: float
    """What a row takes in a pass, on the mean."""
    num_validation_rows: int = 0
    """Asked about after every epoch."""
    num_test_rows: int = 0
    readings: tuple[float, ...] = ()
    """Tokens that each reading of a test row takes, on the mean, as `tokens_of_readings` says."""
    reads_one_token: bool = False
    """Whether the layer that answers reads one token of a row: with `--adapter head`, no more of it is kept."""


class Plan(NamedTuple):
    """How much is trained."""

    max_train_rows: int | None
    """None where that is all."""
    why_rows: str
    epochs: int
    why_epochs: str
    notes: tuple[str, ...] = ()
    """What is to be told where the run takes longer than it may."""


class _Cost(NamedTuple):
    """What a row takes, in passes of full tuning."""

    once: float
    """What frozen layers make of it, which is kept, of training and validation rows."""
    trained: float
    """In each epoch."""
    asked: float
    """After each epoch, of a validation row."""


@dataclass(frozen=True, slots=True)
class _Budget:
    """A wall time, counted in passes: how many rows full tuning can be run on once within it."""

    seconds: float
    tokens_per_second: float
    passes: float
    num_validation_rows: int
    test_passes: float
    """What reading the test rows takes, as often as that is."""
    cost: _Cost

    def training_passes(self, num_rows: int, epochs: int) -> float:
        """Give what training takes."""
        return num_rows * (self.cost.once + epochs * self.cost.trained)

    def validation_passes(self, epochs: int) -> float:
        """Give what asking about the validation rows takes, after each epoch."""
        return self.num_validation_rows * (self.cost.once + epochs * self.cost.asked)

    def most_rows(self, epochs: int) -> int:
        """Give the rows that can be trained on in so many epochs, one at least."""
        left = self.passes - self.test_passes - self.validation_passes(epochs)
        wanted = min(_MOST_SHARE * self.passes, max(left, _LEAST_SHARE * self.passes))
        return max(1, int(wanted / self.training_passes(1, epochs)))

    def most_epochs(self, num_rows: int) -> int:
        """Give the epochs that so many rows can be trained for; none or less where asking alone takes too long."""
        once, trained, asked = self.cost
        share = _MOST_SHARE * self.passes - num_rows * once
        left = self.passes - self.test_passes - (num_rows + self.num_validation_rows) * once
        each = num_rows * trained
        return math.floor(min(share / each, left / (each + self.num_validation_rows * asked)))

    def seconds_of(self, passes: float) -> float:
        """Give the wall time of so many passes."""
        return passes / self.passes * self.seconds


def plan_training(
    recipe: TuneRecipe,
    facts: ModelFacts,
    work: Workload,
    *,
    precision: str,
    device: str = "cpu",
) -> Plan:
    """Choose rows and epochs so that the run fits its wall time, by the measured speed of this machine.

    What is predicted is training, asking about the validation rows after each epoch and reading the test rows; writing
    answers takes longer than reading, and nobody knows how long.

    Args:
        recipe: `effort`, `budget_seconds`, `adapter`, and what was given of `data.max_train_rows` and `training`.
        facts: The model's size.
        work: The rows, already drawn where `data.max_train_rows` was given.
        precision: `bf16` or `fp32`.
        device: `cpu` or another device type of torch.
    """
    epochs = recipe.training.epochs or _EPOCHS[recipe.effort]
    budget = _budget_of(recipe, facts, work, precision=precision, device=device, epochs=epochs)
    num_rows = _num_rows(recipe, work, budget, epochs)
    why = f"effort `{recipe.effort}` with {num_rows} training rows"
    if recipe.training.epochs is None:
        usual = 2 * epochs if num_rows < _SMALL_ROWS else epochs
        needed = _fewest_epochs(recipe, num_rows)
        if needed > usual:
            why += f", which make {_steps_per_epoch(recipe, num_rows)} steps an epoch: fewer would hardly teach a new layer"
        wanted = max(usual, needed)
        epochs = max(
            epochs, wanted if budget is None else min(wanted, budget.most_epochs(num_rows))
        )
    max_rows = num_rows if num_rows < work.num_train_rows else None
    if budget is None:
        return Plan(max_rows, "no budget", epochs, why)
    why_rows = _why_rows(recipe, work, budget, num_rows=num_rows, epochs=epochs)
    notes = _notes(recipe, work, budget, num_rows=num_rows, epochs=epochs)
    return Plan(max_rows, why_rows, epochs, why, notes)


def seconds_allowed(recipe: TuneRecipe) -> float | None:
    """Give the wall time of a run; None where it has none."""
    return recipe.budget_seconds or (QUICK_SECONDS if recipe.effort == "quick" else None)


def limit_of(recipe: TuneRecipe) -> str:
    """Say by which option a run has a wall time."""
    return "`--budget`" if recipe.budget_seconds else f"`--effort {recipe.effort}`"


def _budget_of(
    recipe: TuneRecipe,
    facts: ModelFacts,
    work: Workload,
    *,
    precision: str,
    device: str,
    epochs: int,
) -> _Budget | None:
    """Give the wall time, with what frozen layers compute taken as kept where the cache has room for that."""
    seconds = seconds_allowed(recipe)
    if seconds is None:
        return None
    tokens_per_second = predict_tokens_per_second(facts, precision=precision, device=device)
    row_tokens = max(work.mean_tokens, 1.0)
    budget = _Budget(
        seconds,
        tokens_per_second,
        passes=seconds * tokens_per_second / row_tokens,
        num_validation_rows=work.num_validation_rows,
        test_passes=work.num_test_rows * sum(work.readings) / row_tokens / _READING_SPEED,
        cost=_cost_of(recipe, facts, keeps=True),
    )
    adapter = recipe.adapter
    num_rows = min(work.num_train_rows, budget.most_rows(epochs)) + work.num_validation_rows
    kept_tokens = 1.0 if adapter.method == "head" and work.reads_one_token else row_tokens
    kept_bytes = num_rows * kept_tokens * facts.width * (2 if precision == "bf16" else 4)
    if kept_bytes > adapter.cache_gigabytes * 1e9:
        return replace(budget, cost=_cost_of(recipe, facts, keeps=False))
    return budget


def _cost_of(recipe: TuneRecipe, facts: ModelFacts, *, keeps: bool) -> _Cost:
    """Say what rows take; `keeps` says whether what frozen layers make of them is kept, or computed in every epoch."""
    adapter, reading = recipe.adapter, 1 / _READING_SPEED
    if adapter.method == "lora":
        return _Cost(0.0, _LOW_RANK_SHARE, reading)
    layers = adapter.layers / facts.num_layers
    share = {"head": _HEAD_SHARE, "top": layers}.get(adapter.method, 1.0)
    frozen = (1 - share) * reading
    if not keeps:
        return _Cost(0.0, frozen + share, reading)
    # Prompts are kept with their answers, and asked about without: only a head is asked about what is kept.
    asked = share * reading if recipe.answer == "head" else reading
    return _Cost(frozen, share, asked)


def _num_rows(recipe: TuneRecipe, work: Workload, budget: _Budget | None, epochs: int) -> int:
    if budget is None:
        return work.num_train_rows
    fitting = budget.most_rows(epochs)
    is_given = recipe.data.max_train_rows is not None
    if is_given and fitting >= _SAME_SHARE * work.num_train_rows:
        return work.num_train_rows
    is_cheap = budget.cost.trained <= _HEAD_SHARE
    if is_cheap and fitting < work.num_train_rows and recipe.training.epochs is None:
        # A few rows less pay for all the epochs that they need.
        fitting = budget.most_rows(max(epochs, _fewest_epochs(recipe, fitting)))
    return min(work.num_train_rows, fitting)


def _why_rows(
    recipe: TuneRecipe, work: Workload, budget: _Budget, *, num_rows: int, epochs: int
) -> str:
    why = (
        f"{num_rows} of {work.num_train_rows} rows, drawn per class, {epochs} times each: "
        f"{budget.seconds:.0f} s in all, about {budget.tokens_per_second:.0f} tokens/s expected on this machine"
    )
    method = recipe.adapter.method
    if method != "full":
        percent = 100 * budget.training_passes(1, epochs) / epochs
        why += f" in full tuning, of whose time `--adapter {method}` takes {percent:.0f} %"
    asked = budget.seconds_of(budget.test_passes + budget.validation_passes(epochs))
    if asked >= 1:
        why += f", and about {asked:.0f} s to ask about validation and test rows"
    if recipe.data.max_train_rows is not None:
        why += f"; `data.max_train_rows` = {recipe.data.max_train_rows} would take longer"
    return why


def _notes(
    recipe: TuneRecipe, work: Workload, budget: _Budget, *, num_rows: int, epochs: int
) -> tuple[str, ...]:
    """Tell where the run takes longer than it may, what takes it, and what helps."""
    trained = budget.training_passes(num_rows, epochs)
    validated = budget.validation_passes(epochs)
    if trained + validated + budget.test_passes <= budget.passes:
        return ()
    shares = [f"training about {_written(budget, trained)}"]
    if validated:
        shares.append(
            f"asking about {work.num_validation_rows:,} validation rows after each of {epochs} epochs "
            f"about {_written(budget, validated)}"
        )
    helps = [f"a longer {'`--budget`' if recipe.budget_seconds else 'time, such as `--budget 1h`'}"]
    if work.num_test_rows:
        shares.append(_told_readings(work, budget))
        helps.insert(0, "fewer test rows, which are never left out unasked")
        if len(work.readings) > 2:  # with worked examples too
            helps.insert(0, "`--no-baselines`")
    return (
        f"This run may take longer than the {duration(budget.seconds)} of {limit_of(recipe)}: {', '.join(shares)}, and "
        f"answers that are written take longer still. What helps: {'; '.join(helps)}.",
    )


def _told_readings(work: Workload, budget: _Budget) -> str:
    told = (
        f"reading {work.num_test_rows:,} test rows {len(work.readings)} time(s) "
        f"about {_written(budget, budget.test_passes)}"
    )
    if len(work.readings) < 2:
        return told
    shares = [budget.test_passes * each / sum(work.readings) for each in work.readings]
    parts = zip(_READERS, shares, strict=False)
    return f"{told} ({', '.join(f'{who} {_written(budget, share)}' for who, share in parts)})"


def _written(budget: _Budget, passes: float) -> str:
    return duration(budget.seconds_of(passes))


def _fewest_epochs(recipe: TuneRecipe, num_rows: int) -> int:
    """Give the passes that a new layer needs over so many rows; what only goes on writing needs none."""
    if recipe.answer != "head":
        return 1
    is_cheap = recipe.adapter.method == "head" and recipe.adapter.cache_gigabytes > 0
    num_steps = FEWEST_HEAD_STEPS if is_cheap else FEWEST_STEPS
    return math.ceil(num_steps / _steps_per_epoch(recipe, num_rows))


def _steps_per_epoch(recipe: TuneRecipe, num_rows: int) -> int:
    return math.ceil(num_rows / recipe.training.rows_per_step)


def predict_tokens_per_second(facts: ModelFacts, *, precision: str, device: str = "cpu") -> float:
    """Estimate the speed of full tuning from the measured speed of linear layers.

    Six operations per weight and token (Kaplan et al. 2020, section 2.1), embeddings left out.
    """
    speed = measure(device, cache=cache_folder())
    gflops = speed.bf16_gflops if precision == "bf16" else speed.fp32_gflops
    num_alike = machine().num_cores if device == "cpu" else 1  # of a processor one core is measured
    return gflops * 1e9 * EFFICIENCY * num_alike / (6 * facts.num_passed_weights)
