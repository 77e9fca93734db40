"""The recipe of a tuning run: every setting, its meaning, and what `auto` (None) turns into.

A recipe states what the user asked for; `resolve` fills in what was left open, from the data, the
model and the machine, and says why. The resolved recipe stands in the run as `recipe.yaml`.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from pydantic import BeforeValidator, Field

from lushan.backbones.sources import expanded
from lushan.errors import SettingError
from lushan.inference.generation_settings import GenerationSettings
from lushan.records import AnswerMode
from lushan.settings import Settings, build, merged, parse_assignments, read_yaml

Effort = Literal["quick", "normal", "thorough"]
OverlapPolicy = Literal["remove", "error", "keep"]
LengthPolicy = Literal["error", "truncate", "window"]
NULL_IS_AN_ANSWER = frozenset({"training.patience"})
"""Settings whose null says something where it is given, and leaves nothing open."""


def _as_name(value: object) -> object:
    """Take a whole number for the label or the column that a table calls so: `--set` reads `1` as one."""
    return str(value) if type(value) is int else value


Name = Annotated[str, BeforeValidator(_as_name)]
"""What a table calls a column or a label."""


class DataSettings(Settings):
    """How files become examples."""

    columns: dict[str, Name] = Field(default_factory=dict)
    """The task's column name to the file's, such as `text: body`; others are guessed, and told."""

    validation_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the rows that validate when the data has no validation split."""

    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the rows that test when the data has no test split."""

    max_train_rows: int | None = Field(default=None, ge=1)
    """Train on at most this many rows, drawn per class, or fewer where a budget has no time for them; None takes all."""

    overlap: OverlapPolicy = "remove"
    """What happens to rows that a later split has too: `remove` from the earlier, `error`, or `keep`."""

    over_length: LengthPolicy = "error"
    """What happens to a text longer than `model.max_length`: stop, cut its end, or read it in windows."""

    added: str | None = None
    """A file that `lushan augment` wrote: its rows are trained on too, never asked about, and counted by themselves."""

    label_curve: bool = False
    """Whether to tune on 8, 16, 64 and 256 rows too, and show how the validation score grows with the labels."""

    cache_gigabytes: float = Field(default=4.0, ge=0)
    """Most disk for the tokens of data sets of 10,000 rows or more, which are then made once; 0 keeps none."""


class TaskSettings(Settings):
    """What the task needs to know beyond the data; one that a task does not read is refused."""

    multi_label: bool | None = None
    """Whether a text can have several labels; None decides from the label column."""

    class_weights: Literal["none", "balanced"] = "none"
    """`balanced` weighs each class by the inverse of its frequency; helps rare classes."""

    num_shots: int = Field(default=8, ge=1, le=64)
    """Worked examples in the few-shot baseline."""

    run_code: bool = False
    """Whether programs that a model writes may be run, in a sandbox that keeps out accidents and not attacks."""

    attention: Literal["causal", "bidirectional"] = "causal"
    """Whether a decoder whose head answers at many tokens sees what stands behind each of them too."""

    length_control: bool = False
    """Whether a summary's length in words is told to the model, so that it learns to keep to the one that is asked for."""

    instruction: str | None = None
    """First line of the prompt in place of the built-in one; used by generation and prompting."""

    positive_label: Name | None = None
    """Of two labels the one whose F1, precision and recall are told; None takes the one that sorts last."""


class ModelSettings(Settings):
    """Which pretrained model, and how it computes."""

    name: str = "SmolLM2-135M-Instruct"
    """A folder with a Hugging Face model, or a name from `lushan models list`."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the forward and backward pass; `auto` takes what the measured probe finds faster."""

    max_length: int | None = Field(default=None, ge=8)
    """Longest document in tokens; None takes the model's context."""

    head_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the hidden state in front of the head; helps against overfitting on few rows."""


class AdapterSettings(Settings):
    """What of the model is trained."""

    method: Literal["full", "lora", "head", "top"] = "full"
    """`full` all weights, `lora` low-rank adapters, `head` the new layer alone, `top` the last layers."""

    layers: int = Field(default=4, ge=1)
    """With `top`: how many of the last layers are trained."""

    rank: int = Field(default=16, ge=1)
    """With `lora`: inner width of the adapters."""

    alpha: float = Field(default=32.0, gt=0)
    """With `lora`: scale of the adapters, divided by the rank."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """With `lora`: dropout in front of the adapters."""

    cache_gigabytes: float = Field(default=8.0, ge=0)
    """With `head` and `top`: most disk for what frozen layers compute, which is then done once; 0 keeps nothing."""


class TrainingSettings(Settings):
    """How long and how hard to train."""

    epochs: int | None = Field(default=None, ge=1)
    """Passes over the training rows. None takes 3 (5 with `--effort thorough`), twice that below 1,000 rows, and for a head as many
    as make 60 optimizer steps (500 with `--adapter head`); with a budget no more than fit into it, but 3 (5) at least."""

    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of pretrained weights and adapters. None takes 5e-5 with `full`, 1e-4 with `top`, 3e-4 with `lora`;
    20 times that with `adafactor`, 100 times with `sgd`."""

    head_learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of the new head. None takes 1e-3, with `--adapter head` 3e-3; more with `adafactor` and `sgd`, as above."""

    optimizer: Literal["adamw", "adafactor", "sgd"] = "adamw"
    """`adamw`; `adafactor`, which remembers almost nothing; `sgd` with momentum. All with decoupled weight decay."""

    momentum: float = Field(default=0.9, ge=0, lt=1)
    """With `sgd`: momentum; 0 needs no memory for it."""

    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled decay of weight matrices (theta <- theta - eta * grad - eta * lambda * theta)."""

    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of the optimizer steps over which the learning rate rises from zero."""

    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""

    rows_per_step: int = Field(default=16, ge=1)
    """Rows per optimizer step, over all devices."""

    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""

    patience: int | None = Field(default=None, ge=1)
    """Stop after this many evaluations that were no better: no higher validation score nor, of an equal one, a lower loss. The
    warm-up does not count. A `null` that is given never stops early; where nothing is, `--effort thorough` stops after 2, for a
    head after as many epochs as make 60 steps if these are more, and others never."""

    keep: Literal["best", "last"] = "best"
    """Which weights the run ends with: those of the best evaluation, or of the last."""


class EngineSettings(Settings):
    """How training is computed; changes no result beyond rounding."""

    batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens that run through the model at once, of the rows of a step; None takes what fits into memory, up to 4,096."""

    gradient_checkpointing: bool | None = None
    """Whether layers are computed twice, to keep less of them; None does so where training would not fit otherwise."""

    compile: Literal["auto"] | bool = "auto"
    """Whether trained layers are compiled; `auto` does where a prediction says that it pays back within the run."""

    memory_gigabytes: float | None = Field(default=None, gt=0)
    """Memory that training may take, in GiB; None takes what is free. What needs more is refused before the start."""

    spread_layers: bool = False
    """Whether each of several processes holds a part of every layer (FSDP2): for models that do not fit into one."""


class TuneRecipe(Settings):
    """Everything that `lushan tune` can be told, but the data and the run folder."""

    task: str = "classification"
    """A file of `lushan/tasks`."""

    answer: AnswerMode = "head"
    """`head` answers by a new layer, `generate` by writing; a task that knows only one of them takes that."""

    effort: Effort = "normal"
    """One dial for what is left open: `quick` (plans for 6 minutes), `normal`, `thorough`."""

    budget_seconds: float | None = Field(default=None, gt=0)
    """Wall time that is planned for: training rows are sub-sampled to fit, and told; test rows never are. Where asking about
    them takes longer, that is told before training."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the split, the data order, the new layer and dropout."""

    baselines: bool = True
    """Whether to compare with what a user would otherwise pick (the task says what), zero-shot and few-shot."""

    data: DataSettings = DataSettings()
    """How files become examples."""

    task_settings: TaskSettings = TaskSettings()
    """What the task needs to know beyond the data."""

    model: ModelSettings = ModelSettings()
    """Which pretrained model, and how it computes."""

    adapter: AdapterSettings = AdapterSettings()
    """What of the model is trained."""

    training: TrainingSettings = TrainingSettings()
    """How long and how hard to train."""

    engine: EngineSettings = EngineSettings()
    """How training is computed; changes no result beyond rounding."""

    generation: GenerationSettings = GenerationSettings()
    """How answers are written, by a task that writes them; the longest training answer decides `max_new_tokens`."""


def make_recipe(
    file: Path | None, flags: Mapping[str, Any], assignments: Sequence[str]
) -> TuneRecipe:
    """Put a recipe together: the file first, then flags, then `--set`.

    Args:
        file: A YAML file, or None.
        flags: Nested values of the command's own options; None stands for an option that was not given.
        assignments: The values of `--set`.

    Raises:
        SettingError: If a setting is unknown or has a wrong value.
    """
    values = (
        build(TuneRecipe, read_yaml(file), source=str(file)).model_dump(exclude_unset=True)
        if file
        else {}
    )
    values = merged(values, _given(flags))
    build(TuneRecipe, values, source="options")  # so that `--set` is blamed for its own alone
    return build(TuneRecipe, merged(values, parse_assignments(assignments)), source="--set")


def with_model_path(recipe: TuneRecipe, *, out: Path | None = None) -> TuneRecipe:
    """Name a model that is a folder by its whole path, so that it is found from every working directory.

    Args:
        recipe: With any name.
        out: Folder that the run will be in; None where there will be none.

    Raises:
        SettingError: If the run would be taken for the model, once it is there.
    """
    path = expanded(recipe.model.name)
    if path.exists():
        model = recipe.model.model_copy(update={"name": str(path.resolve())})
        return recipe.model_copy(update={"model": model})
    if out is not None and path.resolve() == out.resolve():
        raise SettingError(
            f"`--out {out}`: this folder would be taken for the model `{recipe.model.name}` from then on. Name another "
            "folder."
        )
    return recipe


def with_added_path(recipe: TuneRecipe) -> TuneRecipe:
    """Name the file of `data.added` by its whole path, so that it is found from every working directory."""
    if recipe.data.added is None or not Path(recipe.data.added).exists():  # told as it was given
        return recipe
    added = str(Path(recipe.data.added).resolve())
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"added": added})})


def is_same_model(one: str, other: str) -> bool:
    """Whether two names are of one model: known names, or paths of one folder."""
    return one == other or expanded(one).resolve() == expanded(other).resolve()


def _given(flags: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Leave out what was not given; no option, but a caller from Python, has a null that is an answer."""
    found: dict[str, Any] = {}
    for name, value in flags.items():
        inner = _given(value, f"{place}{name}.") if isinstance(value, Mapping) else value
        if (inner is not None or f"{place}{name}" in NULL_IS_AN_ANSWER) and inner != {}:
            found[name] = inner
    return found


class TuneOptions(TypedDict, total=False):
    """The settings that have an option of their own, as `lushan tune --help` tells them."""

    task: str | None
    model: str | Path | None
    adapter: str | None
    """`full`, `lora`, `head` or `top:N`."""
    answer: str | None
    epochs: int | None
    effort: str | None
    budget: str | None
    """Such as `8m`."""
    overlap: str | None
    baselines: bool | None
    seed: int | None


def flags_of(options: TuneOptions) -> dict[str, Any]:
    """Give each option its place in the recipe; None stands for one that was not given.

    Raises:
        SettingError: If the adapter or the budget cannot be read.
    """
    adapter, budget, model = options.get("adapter"), options.get("budget"), options.get("model")
    return {
        "task": options.get("task"),
        "answer": options.get("answer"),
        "effort": options.get("effort"),
        "seed": options.get("seed"),
        "budget_seconds": None if budget is None else parse_budget(budget),
        "baselines": options.get("baselines"),
        "model": {"name": None if model is None else str(model)},
        "adapter": {} if adapter is None else parse_adapter(adapter),
        "data": {"overlap": options.get("overlap")},
        "training": {"epochs": options.get("epochs")},
    }


def parse_adapter(text: str) -> dict[str, Any]:
    """Read `full`, `lora`, `head` or `top:N`.

    Raises:
        SettingError: If it is something else.
    """
    if text in ("full", "lora", "head"):
        return {"method": text}
    if match := re.fullmatch(r"top:(\d+)", text):
        return {"method": "top", "layers": int(match[1])}
    raise SettingError(
        f"`--adapter {text}`: expected `full`, `lora`, `head` or `top:N`, such as `top:4`."
    )


def parse_budget(text: str) -> float:
    """Read a wall time such as `90s`, `8m` or `1h`; in seconds.

    Raises:
        SettingError: If it is something else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not match or not float(match[1]):
        raise SettingError(f"`--budget {text}`: expected a time such as `90s`, `8m` or `1h`.")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
