"""The pre-flight alone: what a run checks before it starts, but its time, memory and room; and the ledger. Writes nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lushan.backbones.class_layer import notes_on_layer
from lushan.backbones.hardware import choose_device
from lushan.backbones.heads import check_layer
from lushan.backbones.inspect import describe
from lushan.backbones.sources import locate
from lushan.backbones.tokenizer import Tokenizer
from lushan.catalog import load_task
from lushan.data.ledger import Ledger, notes_on_cuts
from lushan.errors import ModelError
from lushan.inference.grammar import check_forms
from lushan.records import SPLIT_NAMES, TaskState
from lushan.tasks import Task
from lushan.training.processes import Team
from lushan.workflows.language import notes_on_language
from lushan.workflows.prepare import Prepared, prepare
from lushan.workflows.recipe import TuneRecipe
from lushan.workflows.resolve import (
    refuse_to_compile,
    refuse_to_spread,
    refuse_what_does_not_fit,
    refuse_what_the_task_lacks,
    refuse_without_effect,
    with_usual_answer,
)
from lushan.workflows.setup import learn, make_setup, prove

_SEVERAL = 2
"""How many processes a run with spread layers has at least; a check is no run, and has one."""


def check(data: Path, recipe: TuneRecipe, *, tell: Callable[[str], None]) -> dict[str, Any]:
    """Look at data and settings as `tune` would; whether time, memory and room for answers suffice, only `tune` finds out.

    Args:
        data: A file, or a folder with train, validation and test files.
        recipe: The settings of the run; the model is only asked for its tokens.
        tell: Is given each thing worth knowing.

    Returns:
        Plain values: `ledger`, `overlap`, `labels`, `warnings`, `contradictions`, `has_model` (false where the default model
        is missing, so that what depends on it was not checked) and more.

    Raises:
        UserError: If something would block a run; says where and what to do.
    """
    task: Task = load_task(recipe.task)
    recipe = with_usual_answer(recipe, task)
    notes = _check_settings(recipe, task)
    prepared = prepare(data, task=task, recipe=recipe, tell=tell)
    state = learn(prepared, recipe, task)
    if task.writes and recipe.answer == "generate":
        for name in ("validation", "test"):
            most_tokens = recipe.generation.max_new_tokens
            check_forms(prepared.parts.of(name), most_tokens=most_tokens)
    notes = [
        *prepared.notes,
        *prove(prepared, task),
        *task.notes(prepared.parts.train),
        *notes_on_language(recipe.model.name, prepared.parts.train, writes=task.writes),
        *notes,
    ]
    ledger, has_model = prepared.ledger, True
    try:
        base = locate(recipe.model.name)
    except ModelError as missing:
        if "name" in recipe.model.model_fields_set:
            raise
        has_model = False
        notes.append(f"Tokens were not counted. {missing}")
    else:
        ledger = _with_tokens(prepared, recipe, state, task=task, base=base, tell=tell)
        layer = task.layer(state, answer=recipe.answer)
        notes += [*_token_notes(ledger), *notes_on_cuts(ledger), *notes_on_layer(base, layer)]
    for note in notes:
        tell(note)
    return {
        "data": str(data),
        "task": recipe.task,
        "fingerprint": prepared.fingerprint,
        "multi_label": prepared.multi_label,
        "num_examples": {name: len(prepared.parts.of(name)) for name in SPLIT_NAMES},
        **prepared.findings.as_dict(),
        "overlap": prepared.overlap.as_dict(),
        "ledger": ledger.as_dict(),
        "has_model": has_model,
        "notes": notes,
    }


def _check_settings(recipe: TuneRecipe, task: Task) -> list[str]:
    """Refuse settings that no run takes, whatever its model; gives what is worth a look."""
    refuse_what_the_task_lacks(recipe, task)
    refuse_without_effect(recipe)
    refuse_to_spread(recipe, num_processes=_SEVERAL)
    refuse_to_compile(recipe, choose_device().value)
    if recipe.engine.spread_layers and Team().place[1] == 1:
        return [
            "`engine.spread_layers=true` needs several processes: start the run with "
            "`torchrun --nproc-per-node N -m lushan tune ...`."
        ]
    return []


def _with_tokens(
    prepared: Prepared,
    recipe: TuneRecipe,
    state: TaskState,
    *,
    task: Task,
    base: Path,
    tell: Callable[[str], None],
) -> Ledger:
    facts = describe(base)
    refuse_what_does_not_fit(recipe, facts)
    check_layer(base, facts, task.layer(state, answer=recipe.answer).purpose)
    model = recipe.model.model_copy(
        update={"max_length": recipe.model.max_length or facts.context_tokens}
    )
    limited = recipe.model_copy(update={"model": model})
    tokenizer = Tokenizer.load(base)
    setup = make_setup(
        prepared, limited, task=task, base=base, tokenizer=tokenizer, state=state, tell=tell
    )
    return setup.ledger


def _token_notes(ledger: Ledger) -> list[str]:
    return [
        f"{name}: {split.total.num_cut_tokens:,} tokens of {split.total.num_cut_examples:,} rows would be cut."
        for name, split in ledger.splits.items()
        if split.total.num_cut_tokens
    ]
