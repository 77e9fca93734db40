"""The pre-flight alone: everything that a run checks before it starts, and the ledger; writes nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lushan.backbones.inspect import describe
from lushan.backbones.sources import locate
from lushan.backbones.tokenizer import Tokenizer
from lushan.catalog import load_task
from lushan.data.ledger import Ledger
from lushan.errors import ModelError
from lushan.records import SPLIT_NAMES
from lushan.tasks import Task
from lushan.workflows.prepare import Prepared, prepare
from lushan.workflows.recipe import TuneRecipe
from lushan.workflows.resolve import (
    refuse_what_does_not_fit,
    refuse_what_the_task_lacks,
    refuse_without_effect,
    with_usual_answer,
)
from lushan.workflows.setup import make_setup


def check(data: Path, recipe: TuneRecipe, *, tell: Callable[[str], None]) -> dict[str, Any]:
    """Look at data as `tune` would.

    Args:
        data: A file, or a folder with train, validation and test files.
        recipe: The settings of the run; the model is only asked for its tokens.
        tell: Is given each thing worth knowing.

    Returns:
        Plain values: `ledger`, `overlap`, `labels`, `warnings`, `contradictions` and more.

    Raises:
        UserError: If something would block a run; says where and what to do.
    """
    task: Task = load_task(recipe.task)
    recipe = with_usual_answer(recipe, task)
    refuse_what_the_task_lacks(recipe, task)
    refuse_without_effect(recipe)
    prepared = prepare(data, task=task, recipe=recipe, tell=tell)
    notes = [*prepared.notes, *task.notes(prepared.parts.train)]
    ledger = prepared.ledger
    try:
        base = locate(recipe.model.name)
    except ModelError as missing:
        if "name" in recipe.model.model_fields_set:
            raise
        notes.append(f"Tokens were not counted. {missing}")
    else:
        ledger = _with_tokens(prepared, recipe, task=task, base=base, tell=tell)
        notes += _token_notes(ledger)
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
        "notes": notes,
    }


def _with_tokens(
    prepared: Prepared,
    recipe: TuneRecipe,
    *,
    task: Task,
    base: Path,
    tell: Callable[[str], None],
) -> Ledger:
    facts = describe(base)
    refuse_what_does_not_fit(recipe, facts)
    model = recipe.model.model_copy(
        update={"max_length": recipe.model.max_length or facts.context_tokens}
    )
    limited = recipe.model_copy(update={"model": model})
    tokenizer = Tokenizer.load(base)
    setup = make_setup(prepared, limited, task=task, base=base, tokenizer=tokenizer, tell=tell)
    return setup.ledger


def _token_notes(ledger: Ledger) -> list[str]:
    return [
        f"{name}: {split.total.num_cut_tokens:,} tokens of {split.total.num_cut_examples:,} rows would be cut."
        for name, split in ledger.splits.items()
        if split.total.num_cut_tokens
    ]
