"""Rows that a model wrote or labelled, until they are kept: what is like a row of the data is taken out, and the gain is measured.

`augment` and `self_training` make them; `added_rows` is how they come into a run.
"""

import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from lushan.atomic import lock_file
from lushan.backbones.hardware import choose_num_threads
from lushan.backbones.inspect import describe
from lushan.backbones.sources import locate
from lushan.backbones.tokenizer import Tokenizer
from lushan.catalog import load_task
from lushan.data.example_store import ExampleStore, take
from lushan.data.ledger import count_rows
from lushan.data.overlap import places_found_in, places_of_repeats
from lushan.errors import ModelError, RunError, SettingError
from lushan.evaluation import phrases
from lushan.evaluation.compare import comparisons
from lushan.records import Example, Scores
from lushan.workflows.added_rows import MARK, without_added
from lushan.workflows.outcome import plain_interval
from lushan.workflows.predict import check_output, write_file
from lushan.workflows.prepare import Prepared, prepare
from lushan.workflows.progress import Tell
from lushan.workflows.recipe import TuneRecipe
from lushan.workflows.resolve import refuse_what_the_task_lacks, with_usual_answer
from lushan.workflows.setup import Setup, make_setup, plan
from lushan.workflows.tune import tuned_apart

_UNREAD = {
    "baselines": "nothing is compared with baselines",
    "data.label_curve": "only two sets of rows are compared",
    "training.keep": "the last weights are measured, so that the validation rows choose nothing",
    "training.patience": "all epochs are trained, so that the validation rows choose nothing",
}

Reason = Literal[
    "overlaps_test",
    "overlaps_validation",
    "repeats_train",
    "repeats_new",
    "disagrees",
    "unsure",
    "over_share",
]
"""Filters, in their order."""


@dataclass(frozen=True, slots=True)
class NewRow:
    """A row that was written or labelled, and what the task makes of it."""

    values: dict[str, Any]
    example: Example


@dataclass(slots=True)
class Sifted:
    """What is left of the new rows, and why the others are not."""

    rows: list[NewRow]
    refused: Counter[str] = field(default_factory=Counter[str])
    """What the task said of rows that it refused."""
    num_dropped: dict[str, int] = field(default_factory=dict[str, int])
    """Filter to rows that it took out; each row counts at the first that does."""


class Measured(NamedTuple):
    """A model that was tuned, and how it answers the validation rows."""

    scores: Scores
    num_steps: int


def check_place(out: Path, data: Path, *, others: Sequence[Path] = ()) -> None:
    """Refuse a file that would become part of the data, replace another one that is read, or that no command could read.

    Raises:
        RunError: If it would.
    """
    if out.suffix != ".jsonl":
        raise RunError(f"`--out {out}` must end in `.jsonl`: new rows are JSON Lines.")
    place = out.resolve()
    if place == data.resolve() or data.resolve() in place.parents:
        raise RunError(
            f"`--out {out}` is in the data: new rows are kept apart from real ones. Name a file elsewhere."
        )
    if any(place == each.resolve() or each.resolve() in place.parents for each in others):
        raise RunError(f"`--out {out}` is read here. Name another file.")


@contextmanager
def reserved(out: Path, *, overwrite: bool) -> Iterator[None]:
    """Keep the place of a file while its rows are made: it can be written, and no other process makes it.

    Raises:
        RunError: If it cannot be written, is there already, or another process is making it.
    """
    missing = [each for each in out.parents if not each.exists()]
    try:
        with _kept(out):
            check_output(out, overwrite=overwrite)  # it may have come meanwhile
            yield
    finally:
        for folder in missing:
            with suppress(OSError):  # what is not empty stays
                folder.rmdir()


@contextmanager
def _kept(out: Path) -> Iterator[None]:
    lock = lock_of(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        descriptor = lock_file(lock)
    except OSError as error:
        raise RunError(
            f"`--out {out}` cannot be written: {error.strerror}. Name a file elsewhere."
        ) from None
    if descriptor is None:
        raise RunError(f"Another process is making `{out}`. Wait for it, or name another file.")
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def lock_of(out: Path) -> Path:
    """Give the file that a process keeps while it makes the rows of `out`."""
    return out.with_name(f".{out.name}.lock")


def added_files(recipe: TuneRecipe) -> list[Path]:
    """Name what is read beside the data."""
    return [] if recipe.data.added is None else [Path(recipe.data.added)]


@contextmanager
def clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note how long a phase took."""
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def begin(data: Path, recipe: TuneRecipe, *, writes: bool, tell: Tell) -> tuple[Prepared, Setup]:
    """Check everything and decide what is open, as `tune` does.

    Args:
        data: A file, or a folder with train, validation and test files.
        recipe: How models are tuned.
        writes: Whether the model also writes rows.
        tell: Takes one line for a person.

    Raises:
        UserError: If something does not fit.
    """
    _refuse_unread(recipe)
    task = load_task(recipe.task)
    recipe = with_usual_answer(recipe, task)
    refuse_what_the_task_lacks(recipe, task)
    base = locate(recipe.model.name)
    facts = describe(base)
    if writes and facts.why_silent:
        raise ModelError(
            f"`{recipe.model.name}` {facts.why_silent} rows. Choose a decoder "
            "(`lushan models list`)."
        )
    tokenizer = Tokenizer.load(base)
    prepared = prepare(data, task=task, recipe=recipe)
    setup, decisions, notes = plan(
        prepared,
        recipe,
        task=task,
        base=base,
        facts=facts,
        tokenizer=tokenizer,
        asks_test=False,
    )
    for note in notes:
        tell(note)
    for each in decisions:
        tell(f"Chose {each.name} = {each.value}: {each.why}.")
    torch.set_num_threads(int(choose_num_threads().value))
    training = setup.recipe.training.model_copy(update={"keep": "last", "patience": None})
    resolved = setup.recipe.model_copy(update={"training": training})
    return prepared, replace(setup, recipe=resolved)


def _refuse_unread(recipe: TuneRecipe) -> None:
    for name, why in _UNREAD.items():
        part, _, setting = name.rpartition(".")
        settings = getattr(recipe, part) if part else recipe
        if setting in settings.model_fields_set:
            raise SettingError(f"Setting `{name}` has no effect here: {why}. Leave it out.")


def drop_known(sifted: Sifted, setup: Setup) -> None:
    """Take out rows that any row of the data, or an earlier new one, is like."""
    known: list[tuple[Reason, Sequence[Example]]] = [
        ("overlaps_test", setup.parts.test),
        ("overlaps_validation", setup.parts.validation),
        ("repeats_train", setup.parts.train),
    ]
    for reason, others in known:
        drop(sifted, reason, places_found_in([row.example for row in sifted.rows], others))
    drop(sifted, "repeats_new", places_of_repeats([row.example for row in sifted.rows]))


def drop(sifted: Sifted, reason: Reason, places: set[int]) -> None:
    """Take the rows at some places out, for one reason."""
    sifted.num_dropped[reason] = len(places)
    sifted.rows = [row for place, row in enumerate(sifted.rows) if place not in places]


def measure_gain(
    rows: Sequence[NewRow],
    prepared: Prepared,
    setup: Setup,
    *,
    first: Scores | None = None,
    tell: Tell,
) -> dict[str, Any]:
    """Tune with and without the new rows, and compare the answers to the validation rows.

    Both runs have the same recipe, seed and number of optimizer steps: the one without sees as many real rows once more
    in place of the new ones, so that longer training is not taken for better data. Rows of `data.added` are in both.

    Args:
        rows: New ones.
        prepared: The data.
        setup: How it is learned.
        first: Of the model that was tuned on the real rows as they are, where there is one: many new rows make long
            runs, in which real rows that are seen over and over can do harm. Then the better of the two is compared.
        tell: Takes one line for a person.
    """
    real = without_added(setup.parts.train)
    order = np.random.default_rng(setup.recipe.seed).permutation(len(real))
    again = take(real, np.resize(order, len(rows)))
    without = _measured(_with_more(again, prepared, setup), tell=tell)
    new = (row.example for row in rows)
    with_new = _measured(_with_more(new, prepared, setup), tell=tell)
    rival, second = without.scores, with_new.scores
    if first is not None and sum(first.correct) > sum(rival.correct):
        rival = first
    metric = second.main_metric
    compared = comparisons(
        list(second.correct), {"without": list(rival.correct)}, seed=setup.recipe.seed
    )
    return {
        **compared["without"],
        "main_metric": metric,
        "without": plain_interval(rival.metrics[metric]),
        "with": plain_interval(second.metrics[metric]),
        "num_validation_rows": len(setup.parts.validation),
        "num_optimizer_steps": {"without": without.num_steps, "with": with_new.num_steps},
    }


def _with_more(examples: Iterable[Example], prepared: Prepared, setup: Setup) -> Setup:
    """Put examples behind the training rows; all of them are in a file, as there may be more than fit into memory."""
    train_rows = ExampleStore.collect(itertools.chain(setup.parts.train, examples))
    return with_train(train_rows, prepared, setup)


def with_train(train_rows: Sequence[Example], prepared: Prepared, setup: Setup) -> Setup:
    """Give the setup with other training rows."""
    parts = replace(setup.parts, train=train_rows)
    changed = replace(prepared, parts=parts, ledger=count_rows(parts, {}))
    tokenizer = Tokenizer.load(setup.base)
    return make_setup(changed, setup.recipe, task=setup.task, base=setup.base, tokenizer=tokenizer)


def _measured(setup: Setup, *, tell: Tell) -> Measured:
    predictor, num_steps = tuned_apart(setup, tell=tell)
    examples = setup.parts.validation
    found = setup.task.score(
        predictor.examine(examples), examples, setup.state, seed=setup.recipe.seed
    )
    return Measured(found, num_steps)


def keep_where_it_helps(
    sifted: Sifted, gain: Mapping[str, Any] | None, *, out: Path, keep: bool, overwrite: bool
) -> dict[str, Any]:
    """Write the new rows if they clearly help, or are wanted all the same; says what was done.

    Args:
        sifted: The rows.
        gain: Of `measure_gain`; None where no row is left.
        out: The file.
        keep: Write them in any case.
        overwrite: Replace the file.

    Raises:
        RunError: If the file has come meanwhile, and is not to be replaced.
    """
    helps = (
        gain is not None
        and gain["difference"]["low"] > 0
        and gain["p_value"] < phrases.SIGNIFICANT_BELOW
    )
    is_written = bool(sifted.rows) and (helps or keep)
    if is_written:
        check_output(out, overwrite=overwrite)
        write_file(out, (json.dumps(row, ensure_ascii=False) + "\n" for row in _marked(sifted)))
    return {"helps": helps, "written": is_written, "out": str(out) if is_written else None}


def _marked(sifted: Sifted) -> Iterator[dict[str, Any]]:
    for row in sifted.rows:
        yield {**row.values, MARK: True}


def what_came_out(sifted: Sifted, setup: Setup) -> dict[str, Any]:
    """Tell of the rows by filter and by label, as plain values."""
    counts = Counter(name for row in sifted.rows for name in row.example.classes)
    num_real = len(without_added(setup.parts.train))
    return {
        "task": setup.recipe.task,
        "model": setup.recipe.model.name,
        "seed": setup.recipe.seed,
        "num_train_rows": num_real,
        "num_added": len(setup.parts.train) - num_real,
        "refused": dict(sifted.refused.most_common()),
        "dropped": sifted.num_dropped,
        "num_new_rows": len(sifted.rows),
        "new_rows_by_label": dict(sorted(counts.items())) if setup.task.columns.labels else {},
    }
