"""Everything of a run that is known before the first step, made again in the same way when it is resumed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lushan.backbones.class_layer import notes_on_layer
from lushan.backbones.encoding import LengthLimit
from lushan.backbones.frozen import FrozenStates
from lushan.backbones.hardware import choose_device, device_memory_bytes, free_memory_bytes
from lushan.backbones.heads import check_layer
from lushan.backbones.inspect import ModelFacts
from lushan.backbones.tokenizer import Tokenizer
from lushan.data.chunks import encode_all
from lushan.data.example_store import take
from lushan.data.feature_store import columns_of, lengths_of
from lushan.data.ledger import (
    CUT_OFF,
    Ledger,
    count_tokens,
    notes_on_cuts,
    refuse_without_signal,
    without_rows,
)
from lushan.data.splits import Parts
from lushan.errors import DataError
from lushan.inference.generation_settings import check_room
from lushan.inference.grammar import check_forms
from lushan.records import SPLIT_NAMES, Features, SplitName, TaskState
from lushan.tasks import Preparation, Proves, Task
from lushan.training.processes import Team
from lushan.workflows.added_rows import count_added
from lushan.workflows.asking import mean_tokens, tokens_of_readings
from lushan.workflows.budget import Workload, limit_of, seconds_allowed
from lushan.workflows.encode import Encoder, encode, open_cache
from lushan.workflows.language import notes_on_language
from lushan.workflows.memory import GIB, check_reading, load_of, make_fit
from lushan.workflows.prepare import Prepared, draw
from lushan.workflows.progress import Tell, say_nothing
from lushan.workflows.recipe import NULL_IS_AN_ANSWER, TuneRecipe, is_same_model
from lushan.workflows.resolve import Decision, refuse_what_does_not_fit, resolve

_FIRST_ROWS = 2_000
"""Rows that stand for all where only a length is to be known."""


@dataclass(frozen=True, slots=True)
class Setup:
    """Checked data as tokens, and what the task learned from it."""

    recipe: TuneRecipe
    task: Task
    state: TaskState
    parts: Parts
    features: dict[SplitName, Sequence[Features]]
    ledger: Ledger
    base: Path
    """Folder of the pretrained model."""
    tokenizer: Tokenizer
    limit: LengthLimit
    notes: tuple[str, ...] = ()
    """What became of the cache of tokens and of truths that were cut off, where that is worth a look."""
    frozen: FrozenStates | None = None
    """What frozen layers make of these rows, where that is known from elsewhere."""


class Planned(NamedTuple):
    """A new run before its first step."""

    setup: Setup
    decisions: list[Decision]
    notes: list[str]
    """What is worth a look, for a person."""


def plan(
    prepared: Prepared,
    recipe: TuneRecipe,
    *,
    task: Task,
    base: Path,
    facts: ModelFacts,
    tokenizer: Tokenizer,
    asks_test: bool = True,
    tell: Tell = say_nothing,
) -> Planned:
    """Decide what the recipe leaves open, draw the rows that fit, and encode them.

    Args:
        prepared: Checked rows.
        recipe: What the user asked for.
        task: What gives the rows their meaning.
        base: Folder of the pretrained model.
        facts: What it is.
        tokenizer: Its tokenizer.
        asks_test: Whether the test rows are asked about, which takes time of a budget.
        tell: Hears how far it has come, where it takes long.

    Raises:
        UserError: If the recipe, the rows and the model do not fit together.
    """
    state = learn(prepared, recipe, task)
    proven = prove(prepared, task)
    parts = prepared.parts
    refuse_what_does_not_fit(recipe, facts)  # before anything is asked of it
    check_layer(base, facts, task.layer(state, answer=recipe.answer).purpose)
    work = _work_of(
        prepared,
        recipe,
        state,
        task=task,
        facts=facts,
        tokenizer=tokenizer,
        asks_test=asks_test,
    )
    resolved = resolve(recipe, facts=facts, work=work, device=choose_device().value)
    num_rows = resolved.recipe.data.max_train_rows
    if num_rows is not None and num_rows < len(parts.train):
        prepared = draw(prepared, num_rows, seed=recipe.seed, why=limit_of(recipe))
        state = None
    setup = make_setup(
        prepared,
        resolved.recipe,
        task=task,
        base=base,
        tokenizer=tokenizer,
        state=state,
        tell=tell,
    )
    decisions = list(resolved.decisions)
    if task.writes and facts.asked_as == "decoder":
        setup, found = _with_room_for_answers(setup, recipe, facts, tokenizer)
        decisions += found
    setup, found = fitted_into_memory(setup, facts)
    decisions += found
    layer = task.layer(setup.state, answer=setup.recipe.answer)
    train = prepared.parts.train
    of_model = [
        *notes_on_layer(base, layer),
        *notes_on_language(recipe.model.name, train, writes=task.writes),
    ]
    learned_from = [*proven, *task.notes(train), *of_model]
    notes = [*tokenizer.notes, *prepared.notes, *setup.notes, *learned_from, *resolved.notes]
    return Planned(setup, decisions, notes)


def _work_of(
    prepared: Prepared,
    recipe: TuneRecipe,
    state: TaskState,
    *,
    task: Task,
    facts: ModelFacts,
    tokenizer: Tokenizer,
    asks_test: bool,
) -> Workload:
    """Say what a run trains on and asks about; what is asked is measured where there is a wall time to keep."""
    parts = prepared.parts
    is_measured = asks_test and seconds_allowed(recipe) is not None
    readings = tokens_of_readings(
        parts.test if is_measured else (),
        recipe,
        state,
        task=task,
        facts=facts,
        tokenizer=tokenizer,
    )
    layer = task.layer(state, answer=recipe.answer)
    return Workload(
        num_train_rows=len(parts.train),
        mean_tokens=mean_tokens(
            parts.train, recipe, state, task=task, facts=facts, tokenizer=tokenizer
        ),
        num_validation_rows=len(parts.validation),
        num_test_rows=len(parts.test) if asks_test else 0,
        readings=readings,
        reads_one_token=facts.family == "decoder" and layer.purpose == "classify",
    )


def _with_room_for_answers(
    setup: Setup, given: TuneRecipe, facts: ModelFacts, tokenizer: Tokenizer
) -> tuple[Setup, list[Decision]]:
    """Decide how long written answers may become, and refuse texts that leave no room for one.

    Where a head answers, the untouched model and the few-shot baseline write all the same.

    Raises:
        DataError: If a text does, and must not be cut.
    """
    settings, decisions = setup.recipe.generation, []
    if "max_new_tokens" not in given.generation.model_fields_set:
        longest = _longest_answer(setup, facts, tokenizer)
        most = max(1, min(longest + longest // 4 + 1, facts.context_tokens // 2))
        why = f"the longest training answer has {longest} tokens"
        if most < longest:
            why += ", but half of the context is left to what is asked"
        if setup.state.most_items:
            why += (
                f"; it lists at most {setup.state.most_items} {setup.task.wording.counted}, with names of at most "
                f"{setup.state.longest_name} characters, a quarter more than any training row"
            )
        decisions.append(Decision("generation.max_new_tokens", most, why))
        settings = settings.model_copy(update={"max_new_tokens": most})
        setup = replace(setup, recipe=setup.recipe.model_copy(update={"generation": settings}))
    check_room(settings, context_tokens=facts.context_tokens)
    if setup.recipe.answer == "head":
        return setup, decisions
    for name in ("validation", "test"):
        check_forms(setup.parts.of(name), most_tokens=settings.max_new_tokens)
    if setup.limit.policy == "error":
        most_read = min(setup.limit.max_tokens, facts.context_tokens - settings.max_new_tokens)
        limit = LengthLimit(most_read, "error")
        encoder = Encoder(setup.task, setup.state, tokenizer, "generate", limit)
        for name in ("validation", "test"):
            is_long = np.asarray(lengths_of(setup.features[name])) > most_read
            examples = setup.parts.of(name)
            places = np.flatnonzero(is_long).tolist()
            encode_all([examples[n] for n in places], partial(encoder.encode, with_target=False))
    return setup, decisions


def _longest_answer(setup: Setup, facts: ModelFacts, tokenizer: Tokenizer) -> int:
    """Tokens of the longest training answer; where a head answers, of the first rows."""
    features = setup.features["train"]
    if setup.recipe.answer == "head":
        limit = LengthLimit(facts.context_tokens, "truncate")
        encoder = Encoder(setup.task, setup.state, tokenizer, "generate", limit)
        first = setup.parts.train[:_FIRST_ROWS]
        features = encode_all(first, partial(encoder.encode, with_target=True))
    columns = columns_of(features)
    turns = [_longest_run(kind.positions) for kind in columns.kinds if kind.positions]
    return max(turns) if turns else int(columns.num_supervised().max())


def _longest_run(positions: Sequence[int]) -> int:
    """Most positions side by side: a conversation holds several answers, and only one is written."""
    breaks_R = np.flatnonzero(np.diff(positions) > 1) + 1
    return int(np.diff([0, *breaks_R.tolist(), len(positions)]).max())


def check_still_fits(setup: Setup, facts: ModelFacts) -> None:
    """Refuse to go on with a run where less memory is free than it was begun with, and than it needs.

    Raises:
        SettingError: If it does not fit any more.
    """
    fitted_into_memory(setup, facts, remedy="Free memory, or start again with `--overwrite`.")


def fitted_into_memory(
    setup: Setup, facts: ModelFacts, *, remedy: str = ""
) -> tuple[Setup, list[Decision]]:
    """Choose what makes the training fit into the memory that is free now; `remedy` as for `make_fit`.

    Raises:
        SettingError: If it does not fit in any way that the recipe allows, or the model cannot even be read.
    """
    recipe, settings = setup.recipe, setup.recipe.engine
    load = load_of(setup.features["train"], rows_per_step=recipe.training.rows_per_step)
    check_reading(facts, free_bytes=free_memory_bytes())
    device = choose_device().value
    free_bytes = free_memory_bytes() if device == "cpu" else device_memory_bytes(device)
    if settings.memory_gigabytes is not None:
        free_bytes = min(free_bytes, settings.memory_gigabytes * GIB)
    num_processes = Team().place[1]
    fit = make_fit(
        recipe,
        facts,
        load,
        free_bytes=free_bytes,
        device=device,
        num_processes=num_processes,
        remedy=remedy,
    )
    # Equal runs tell equal things: what is free at the moment is told only where it decides.
    space = f"only {free_bytes / GIB:.1f} are" if fit.is_squeezed else "they are"
    end = (
        f"and {space} free"
        if math.isfinite(free_bytes)
        else f"and nobody knows what `{device}` has"
    )
    why = f"training needs about {fit.needed_bytes / GIB:.1f} GiB, {end}"
    found = {
        "batch_tokens": fit.batch_tokens,
        "gradient_checkpointing": fit.checkpointing,
    }
    decisions = [
        Decision(f"engine.{name}", value, why)
        for name, value in found.items()
        if getattr(settings, name) is None
    ]
    resolved = recipe.model_copy(update={"engine": settings.model_copy(update=found)})
    return replace(setup, recipe=resolved), decisions


def make_setup(
    prepared: Prepared,
    recipe: TuneRecipe,
    *,
    task: Task,
    base: Path,
    tokenizer: Tokenizer,
    state: TaskState | None = None,
    tell: Tell = say_nothing,
) -> Setup:
    """Encode every split, count every token, and refuse what could not learn.

    Args:
        prepared: Checked rows, already drawn.
        recipe: Resolved.
        task: What gives the rows their meaning.
        base: Folder of the pretrained model.
        tokenizer: Its tokenizer.
        state: What the task learned from these training rows, if it has.
        tell: Hears how far it has come, where it takes long.

    Raises:
        DataError: If a text is too long under the `error` policy (says how many are), or nothing would be learned.
    """
    max_length = recipe.model.max_length
    assert max_length is not None, "a resolved recipe has a length limit"  # noqa: S101 - ours
    limit = LengthLimit(max_length, recipe.data.over_length)
    parts = prepared.parts
    state = state or learn(prepared, recipe, task)
    ledger = prepared.ledger
    encoder = Encoder(task, state, tokenizer, recipe.answer, limit)
    cache = open_cache(recipe)
    features: dict[SplitName, Sequence[Features]] = {}

    def counted(name: SplitName, ledger: Ledger) -> Ledger:
        """Encode a split, and give the ledger with its tokens."""
        learner = replace(encoder, learns=name == "train")
        features[name] = encode(parts.of(name), learner, with_target=True, cache=cache, tell=tell)
        return count_tokens(
            ledger,
            name,
            examples=parts.of(name),
            features=features[name],
            stop_ids=tokenizer.stop_ids,
        )

    for name in SPLIT_NAMES:
        ledger = counted(name, ledger)
    refuse_without_signal(ledger)
    if ledger.splits["train"].total.num_cut_truths:
        kept = _learned_rows(features["train"])
        if num_left_out := len(parts.train) - len(kept):
            parts = replace(parts, train=take(parts.train, kept))
            num_added = count_added(parts.train) if ledger.splits["train"].num_added else 0
            ledger = without_rows(
                ledger, "train", reason=CUT_OFF, num_rows=num_left_out, num_added=num_added
            )
            ledger = counted("train", ledger)
    notes = (*cache.notes, *notes_on_cuts(ledger))
    return Setup(recipe, task, state, parts, features, ledger, base, tokenizer, limit, notes)


def _learned_rows(features: Sequence[Features]) -> NDArray[np.int64]:
    """Give the rows of which anything is learned."""
    columns = columns_of(features)
    has_weight = columns.of_kinds(lambda kind: kind.weight) > 0
    return np.unique(columns.example_indices[has_weight])


def learn(prepared: Prepared, recipe: TuneRecipe, task: Task) -> TaskState:
    """Have a task learn what it must know before training.

    Raises:
        UserError: If the training rows or the settings do not fit.
    """
    preparation = Preparation(
        class_weights=recipe.task_settings.class_weights,
        instruction=recipe.task_settings.instruction,
        num_shots=recipe.task_settings.num_shots,
        run_code=recipe.task_settings.run_code,
        attention=recipe.task_settings.attention,
        length_control=recipe.task_settings.length_control,
        positive_label=recipe.task_settings.positive_label,
        seed=recipe.seed,
    )
    return task.prepare(prepared.parts.train, preparation, multi_label=prepared.multi_label)


def prove(prepared: Prepared, task: Task) -> list[str]:
    """Have a task that can prove whether a truth is right try those of test rows; gives what is worth a look.

    Raises:
        DataError: If none is right, so that nothing could be measured.
    """
    return task.prove(prepared.parts.test) if isinstance(task, Proves) else []


def check_same_data(setup_fingerprint: str, run_fingerprint: str, data: Path) -> None:
    """Refuse to resume on other data.

    Raises:
        DataError: If the files' content changed.
    """
    if setup_fingerprint != run_fingerprint:
        raise DataError(
            f"`{data}` is not the data that the run began with: its content changed. Restore it, or start "
            "again with `--overwrite`."
        )


def check_same_recipe(
    given: TuneRecipe, stored: TuneRecipe, *, choices: Sequence[Mapping[str, Any]] = ()
) -> list[str]:
    """Name the settings that were given and differ from those of the run, as `name (run: value)`.

    Where a budget chose the number of rows, a larger one that is given does not differ: it would be lowered to that too.

    Args:
        given: What is asked for now.
        stored: The recipe of the run.
        choices: What was left open when the run began, as `run.json` has it.
    """
    asked, known = given.model_dump(exclude_unset=True), stored.model_dump()
    name = asked.get("model", {}).get("name")
    if name is not None and is_same_model(name, stored.model.name):
        known["model"]["name"] = name  # a folder has more than one
    added, mine = asked.get("data", {}).get("added"), stored.data.added
    if added and mine and Path(added).resolve() == Path(mine).resolve():
        known["data"]["added"] = added
    rows = asked.get("data", {}).get("max_train_rows")
    is_lowered = any(each["name"] == "data.max_train_rows" for each in choices)
    if rows is not None and is_lowered and rows > known["data"]["max_train_rows"]:
        known["data"]["max_train_rows"] = rows
    return _differences(asked, known, "")


def _differences(given: dict[str, object], stored: dict[str, object], place: str) -> list[str]:
    found: list[str] = []
    for name, value in given.items():
        mine = stored.get(name)
        is_open = value in (None, "auto") and f"{place}{name}" not in NULL_IS_AN_ANSWER
        if isinstance(value, dict) and isinstance(mine, dict):
            found += _differences(value, mine, f"{place}{name}.")
        elif value != mine and not is_open:
            found.append(f"`{place}{name}` (the run has {mine!r}, not {value!r})")
    return found
