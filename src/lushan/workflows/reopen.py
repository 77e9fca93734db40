"""Takes up a run that was begun: with its own recipe, data and model, or not at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lushan.backbones.inspect import describe
from lushan.backbones.sources import locate
from lushan.backbones.tokenizer import Tokenizer
from lushan.catalog import load_task
from lushan.errors import SettingError
from lushan.model_store.digests import BASE_FILES, digests_of
from lushan.model_store.run_folder import RunFolder
from lushan.model_store.tuned_model import weights_digest
from lushan.settings import build
from lushan.workflows.prepare import prepare
from lushan.workflows.progress import Tell, say_nothing
from lushan.workflows.recipe import TuneRecipe
from lushan.workflows.setup import (
    Setup,
    check_same_data,
    check_same_recipe,
    check_still_fits,
    make_setup,
)

NOTED = ("fingerprint", "base_digest", "base_files")
"""What `run.json` says of the data and the model that a run began with; runs of earlier versions lack the last."""


def digests_of_base(base: Path) -> dict[str, Any]:
    """Tell the model that a run begins with from others: by its weights, and by the files that say how they are used."""
    return {"base_digest": weights_digest(base), "base_files": digests_of(base, BASE_FILES)}


def reopen(data: Path, given: TuneRecipe, *, out: Path, tell: Tell) -> tuple[RunFolder, Setup]:
    """Take up a run.

    Args:
        data: What was given as its data.
        given: The settings that were given with `--resume`.
        out: The run folder.
        tell: Takes one line for a person.

    Raises:
        UserError: If there is no run, or its recipe, data or model is another now.
    """
    run = RunFolder.open(out)
    try:
        return run, _setup_of(run, data, given, tell=tell)
    except BaseException:
        run.close()
        raise


def _setup_of(run: RunFolder, data: Path, given: TuneRecipe, *, tell: Tell) -> Setup:
    recipe = build(TuneRecipe, run.recipe(), source=str(run.path / "recipe.yaml"))
    if differences := check_same_recipe(given, recipe, choices=run.get("choices") or ()):
        raise SettingError(
            f"`--resume`: the run in `{run.path}` was begun with other settings: {'; '.join(differences)}. "
            "Leave them out, or start again with `--overwrite`."
        )
    noted = {name: run.get(name) for name in NOTED}
    setup = same_setup(data, recipe, noted=noted, tell=tell)
    if run.get("training") is None:
        check_still_fits(setup, describe(setup.base))
    return setup


def same_setup(
    data: Path, recipe: TuneRecipe, *, noted: Mapping[str, Any], tell: Tell = say_nothing
) -> Setup:
    """Make the setup of a run that has begun.

    Args:
        data: What was given as its data.
        recipe: Its recipe.
        noted: What `run.json` has of `NOTED`.
        tell: Takes one line for a person.

    Raises:
        DataError: If the data changed.
        SettingError: If the model changed; names what of it did.
    """
    task = load_task(recipe.task)
    base = locate(recipe.model.name)
    prepared = prepare(data, task=task, recipe=recipe, tell=tell)
    check_same_data(prepared.fingerprint, noted["fingerprint"], data)
    _check_same_base(base, noted)
    tokenizer = Tokenizer.load(base)
    return make_setup(prepared, recipe, task=task, base=base, tokenizer=tokenizer, tell=tell)


def _check_same_base(base: Path, noted: Mapping[str, Any]) -> None:
    found = digests_of_base(base)
    changed = [] if found["base_digest"] == noted["base_digest"] else ["its weights"]
    known, now = noted["base_files"], found["base_files"]
    if known is not None:
        names = sorted({*known, *now})
        changed += [f"`{name}`" for name in names if known.get(name) != now.get(name)]
    if changed:
        raise SettingError(
            f"`{base}` is not the model that the run began with: {', '.join(changed)} changed. Restore it, or start "
            "again with `--overwrite`."
        )
