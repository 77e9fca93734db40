"""What was left open in a recipe, decided from the data, the model and the machine, each with its reason."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from lushan.backbones.adapters import refuse_top
from lushan.backbones.compiling import choose_compiling, why_impossible
from lushan.backbones.hardware import choose_num_threads, choose_precision
from lushan.backbones.inspect import ModelFacts
from lushan.backbones.sources import cache_folder
from lushan.errors import SettingError
from lushan.inference.generation_settings import GenerationSettings, check_settings
from lushan.settings import merged
from lushan.tasks import Task
from lushan.training.processes import Team
from lushan.workflows.budget import (
    EFFICIENCY,
    FEWEST_STEPS,
    Workload,
    plan_training,
    predict_tokens_per_second,
)
from lushan.workflows.compiling import work_of
from lushan.workflows.recipe import NULL_IS_AN_ANSWER, TuneRecipe

_LEARNING_RATES = {"full": 5e-5, "top": 1e-4, "lora": 3e-4, "head": 1e-3}
_HEAD_LEARNING_RATES = {"full": 1e-3, "top": 1e-3, "lora": 1e-3, "head": 3e-3}
_OPTIMIZER_FACTORS = {"adamw": 1.0, "adafactor": 20.0, "sgd": 100.0}
"""Adafactor multiplies its rate by the size of a weight's numbers, which is about a twentieth."""
_PATIENCE_EPOCHS = 2
"""With `--effort thorough`; where less is wanted, all epochs are trained, for they are few."""
_USUAL_EFFICIENCY = 0.6
"""What training steps do reach: a share that is not too low, for what saves time must not be overrated either."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One thing that was chosen for the user."""

    name: str
    value: Any
    why: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A recipe without anything left open, and what was decided."""

    recipe: TuneRecipe
    decisions: list[Decision]
    notes: tuple[str, ...] = ()
    """What is worth a look, for a person."""


def resolve(recipe: TuneRecipe, *, facts: ModelFacts, work: Workload, device: str) -> Resolved:
    """Fill in everything that is None or `auto`; train on fewer rows than were given where the time is too short for them.

    Args:
        recipe: What the user asked for.
        facts: The model's size and context.
        work: What could be trained on, and what is asked about.
        device: `cpu` or another device type of torch.

    Raises:
        SettingError: If a setting that was given has no effect with the others, or does not fit the model.
    """
    refuse_without_effect(recipe)
    refuse_what_does_not_fit(recipe, facts)
    refuse_to_spread(recipe)
    refuse_to_compile(recipe, device)
    precision = choose_precision(recipe.model.precision, device, cache=cache_folder())
    plan = plan_training(recipe, facts, work, precision=precision.value, device=device)
    method = recipe.adapter.method
    num_rows = plan.max_train_rows or work.num_train_rows
    rates = _usual_rates(recipe)
    rate_reason = f"default of `{method}` with {recipe.training.optimizer}"
    found = [
        Decision("model.precision", precision.value, precision.why),
        Decision("data.max_train_rows", plan.max_train_rows, plan.why_rows),
        Decision("training.epochs", plan.epochs, plan.why_epochs),
        *(Decision(f"training.{name}", rate, rate_reason) for name, rate in rates.items()),
        _patience(recipe, num_rows),
        Decision("model.max_length", facts.context_tokens, "the model's context"),
        _compiling(
            recipe,
            facts,
            num_tokens=num_rows * plan.epochs * work.mean_tokens,
            precision=precision.value,
            device=device,
        ),
    ]
    if recipe.engine.spread_layers:
        found[-1] = Decision("engine.compile", False, "layers are spread over the processes")
    decisions = [each for each in found if each.value is not None and _is_open(recipe, each.name)]
    values = recipe.model_dump()
    for decision in decisions:
        part, name = decision.name.split(".")
        values = merged(values, {part: {name: decision.value}})
    return Resolved(TuneRecipe.model_validate(values), decisions, plan.notes)


def _compiling(
    recipe: TuneRecipe, facts: ModelFacts, *, num_tokens: float, precision: str, device: str
) -> Decision:
    threads = int(choose_num_threads().value)
    work = work_of(recipe, facts, precision=precision, num_threads=threads)
    share = {
        "lora": 2 / 3,  # no gradients of the frozen weights
        "top": work.num_trained_layers / facts.num_layers,
    }.get(work.method, 1.0)
    choice = choose_compiling(
        work,
        num_tokens=num_tokens,
        seconds_per_token=lambda: (
            share
            * (EFFICIENCY / _USUAL_EFFICIENCY)
            / predict_tokens_per_second(facts, precision=precision, device=device)
        ),
        device=device,
        cache=cache_folder(),
    )
    return Decision("engine.compile", choice.value == "on", choice.why)


def _patience(recipe: TuneRecipe, num_rows: int) -> Decision:
    """Say after how many epochs that were no better training stops: a new layer shows nothing in fewer than some steps."""
    why = f"effort `{recipe.effort}`"
    if recipe.effort != "thorough":
        return Decision("training.patience", None, why)
    num_epochs = _PATIENCE_EPOCHS
    if recipe.answer == "head":
        num_steps = math.ceil(num_rows / recipe.training.rows_per_step)
        num_epochs = max(num_epochs, math.ceil(FEWEST_STEPS / num_steps))
    if num_epochs > _PATIENCE_EPOCHS:
        why += (
            f" with {num_rows} training rows, whose epochs are too short for one to tell anything"
        )
    return Decision("training.patience", num_epochs, why)


def _usual_rates(recipe: TuneRecipe) -> dict[str, float]:
    method = recipe.adapter.method
    factor = _OPTIMIZER_FACTORS[recipe.training.optimizer]
    return {
        "learning_rate": _LEARNING_RATES[method] * factor,
        "head_learning_rate": _HEAD_LEARNING_RATES[method] * factor,
    }


def _is_open(recipe: TuneRecipe, name: str) -> bool:
    """Whether a setting is decided here. A number of rows that was given is the most, and there may be time for fewer."""
    part, setting = name.split(".")
    settings = getattr(recipe, part)
    if name in NULL_IS_AN_ANSWER and setting in settings.model_fields_set:
        return False
    return getattr(settings, setting) in (None, "auto") or name == "data.max_train_rows"


def refuse_without_effect(recipe: TuneRecipe) -> None:
    """Stop on a setting that was given but that nothing would read.

    Its usual value is no mistake: the recipe of a run says every setting, and may be given again.

    Raises:
        SettingError: Names the setting and when it has an effect.
    """
    method = recipe.adapter.method
    rules = (
        ("adapter", ("layers",), method == "top", "`--adapter top:N`"),
        ("adapter", ("rank", "alpha", "dropout"), method == "lora", "`--adapter lora`"),
        ("adapter", ("cache_gigabytes",), method in ("head", "top"), "`--adapter head` or `top:N`"),
        ("training", ("momentum",), recipe.training.optimizer == "sgd", "`training.optimizer=sgd`"),
        ("model", ("head_dropout",), recipe.answer == "head", "`--answer head`"),
        ("training", ("head_learning_rate",), recipe.answer == "head", "`--answer head`"),
        ("training", ("learning_rate",), method != "head", "an adapter other than `head`"),
        ("engine", ("compile",), method != "head", "an adapter other than `head`"),
        ("task_settings", ("attention",), recipe.answer == "head", "`--answer head`"),
        ("task_settings", ("num_shots",), recipe.baselines, "baselines (without `--no-baselines`)"),
    )
    usual_values = {**_usual_rates(recipe), "compile": False}
    for part, names, has_effect, needs in rules:
        settings = getattr(recipe, part)
        for name in names:
            usual = (type(settings).model_fields[name].default, usual_values.get(name))
            if not has_effect and getattr(settings, name) not in usual:
                raise SettingError(
                    f"Setting `{part}.{name}` has no effect here: it needs {needs}. Remove it, or change that."
                )


def refuse_to_spread(recipe: TuneRecipe, *, num_processes: int | None = None) -> None:
    """Stop where layers cannot be spread over the processes of a run.

    Args:
        recipe: What the user asked for.
        num_processes: How many there are; None counts those that run now.

    Raises:
        SettingError: Says why, and what to do.
    """
    if not recipe.engine.spread_layers:
        return
    method, optimizer = recipe.adapter.method, recipe.training.optimizer
    reasons = {
        "it needs several processes: start them with `torchrun --nproc-per-node N -m lushan tune ...`": (
            (num_processes or Team().place[1]) == 1
        ),
        f"`--adapter {method}` has frozen weights, which are kept whole and packed: use `full`": (
            method != "full"
        ),
        "`engine.compile=true` compiles whole layers: leave it out": recipe.engine.compile is True,
        "`training.optimizer=adafactor` looks at whole rows and columns: use `adamw` or `sgd`": (
            optimizer == "adafactor"
        ),
    }
    if found := [reason for reason, holds in reasons.items() if holds]:
        raise SettingError(f"`engine.spread_layers=true` does not work here: {'; '.join(found)}.")


def refuse_to_compile(recipe: TuneRecipe, device: str) -> None:
    """Stop where layers are to be compiled and cannot be.

    Raises:
        SettingError: Says why.
    """
    if recipe.engine.compile is True and (reason := why_impossible(device)):
        raise SettingError(f"Setting `engine.compile` is on, but {reason}. Leave it out.")


def with_usual_answer(recipe: TuneRecipe, task: Task) -> TuneRecipe:
    """Have a task answer in its usual way where nobody said how."""
    usual = task.answers[0]
    if "answer" in recipe.model_fields_set or recipe.answer == usual:
        return recipe
    return recipe.model_copy(update={"answer": usual})


def refuse_what_the_task_lacks(recipe: TuneRecipe, task: Task) -> None:
    """Stop on a way of answering or a setting that this task does not have.

    Raises:
        SettingError: Says which it has.
    """
    if recipe.answer not in task.answers:
        ways = " or ".join(f"`--answer {way}`" for way in task.answers)
        raise SettingError(
            f"`--answer {recipe.answer}`: the task `{recipe.task}` does not answer in this way. Use {ways}."
        )
    _refuse_ways_of_writing(recipe, task)
    given = recipe.task_settings
    for name, field in type(given).model_fields.items():
        if name not in task.settings and getattr(given, name) not in (None, False, field.default):
            known = ", ".join(f"`task_settings.{each}`" for each in sorted(task.settings))
            raise SettingError(
                f"Setting `task_settings.{name}` has no effect on the task `{recipe.task}`, "
                f"which reads {known or 'none of its kind'}. Remove it."
            )


def _refuse_ways_of_writing(recipe: TuneRecipe, task: Task) -> None:
    settings = recipe.generation
    if not task.writes:
        for name, field in GenerationSettings.model_fields.items():
            if getattr(settings, name) != field.default:
                raise SettingError(
                    f"Setting `generation.{name}` has no effect here: the task `{recipe.task}` writes no free text. "
                    "Remove it."
                )
        return
    check_settings(settings)


def refuse_what_does_not_fit(recipe: TuneRecipe, facts: ModelFacts) -> None:
    """Stop on what this model cannot do, before anything is written.

    Raises:
        SettingError: Says what the model lacks.
    """
    adapter = recipe.adapter
    if adapter.method == "top":
        refuse_top(facts, adapter.layers)
    if adapter.method == "lora" and recipe.training.optimizer == "adafactor":
        raise SettingError(
            "`training.optimizer=adafactor` hardly moves an adapter, which starts at zero: its steps are as large as "
            "its weights. Choose `adamw`; adapters are so small that it needs little memory."
        )
    if adapter.method == "lora" and adapter.rank > facts.width:
        raise SettingError(
            f"Setting `adapter.rank` is {adapter.rank}, but the model is only {facts.width} wide, and a rank "
            "above that is no low one. Choose a smaller rank, or `--adapter full`."
        )
    max_length = recipe.model.max_length or 0
    if max_length > facts.context_tokens:
        raise SettingError(
            f"Setting `model.max_length` is {max_length}, but the model's context is {facts.context_tokens} "
            "tokens. Choose at most that, or leave it out."
        )
    if recipe.answer == "head":
        _refuse_what_prompts_say(recipe, facts)
        return
    if facts.why_silent:
        raise SettingError(
            f"`--answer generate`: the model {facts.why_silent}. Use `--answer head`, or another model."
        )
    if adapter.method == "head":
        raise SettingError(
            "`--adapter head` has nothing to train with `--answer generate`: the vocabulary layer is the "
            "pretrained one. Choose `--answer head`, or `--adapter lora`, `top:N` or `full`."
        )


def _refuse_what_prompts_say(recipe: TuneRecipe, facts: ModelFacts) -> None:
    """Stop on what only a prompt says where none is written: what cannot write is not asked by one."""
    if not facts.why_silent:
        return
    settings = recipe.task_settings
    for name in ("num_shots", "instruction"):
        if getattr(settings, name) != type(settings).model_fields[name].default:
            raise SettingError(
                f"Setting `task_settings.{name}` has no effect here: the model {facts.why_silent}, so it is not prompted. "
                "Remove it, or choose another model."
            )
