"""`lushan demo`: the main job on real rows that ship with Lushan, from the model's download to the report."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from lushan.cli.console import (
    JsonOption,
    RecipeSeedOption,
    TrainingBar,
    emit_json,
    quick_imports,
    show_outcome,
    tell,
)

DATA = Path(str(files("lushan"))) / "demo_data"
DEFAULT_OUT = "lushan-demo"
SETTINGS: dict[str, Any] = {
    "data": {"overlap": "remove"},
    "training": {"epochs": 3, "learning_rate": 3e-4},
}
"""Chosen on the validation rows, within five minutes on two cores; a run of the defaults is longer."""


def command(
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="The run folder; else a new `lushan-demo`."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in --out.")
    ] = False,
    seed: RecipeSeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tune the default model on the rows that ship with Lushan, and report; fetches the model if it is missing."""
    from lushan.errors import SettingError
    from lushan.model_store.run_folder import RunFolder, check_is_free
    from lushan.workflows.recipe import make_recipe

    if resume and (overwrite or out is None):
        raise SettingError("`--resume` needs `--out RUN`, and does not go with `--overwrite`.")
    run = out or _free_folder()
    if resume:
        RunFolder.open(run).close()
    else:
        check_is_free(run, overwrite=overwrite)
    recipe = make_recipe(None, {**({} if resume else SETTINGS), "seed": seed}, [])
    _get_default_model()

    with quick_imports():
        from lushan.workflows.tune import tune

    with TrainingBar() as listener:
        results = tune(
            DATA,
            recipe,
            out=run,
            resume=resume,
            overwrite=overwrite,
            tell=tell,
            listeners=[listener],
        )
    show_outcome(results)
    if as_json:
        emit_json(results)


def _get_default_model() -> None:
    from lushan.backbones.sources import DEFAULT_MODEL, get_model, locate
    from lushan.errors import ModelError

    try:
        locate(DEFAULT_MODEL)
    except ModelError:
        get_model(DEFAULT_MODEL, accept_terms=False, source=None, retie=False, tell=tell)


def _free_folder() -> Path:
    """Name a folder that does not exist yet."""
    run, number = Path(DEFAULT_OUT), 1
    while run.exists():
        number += 1
        run = Path(f"{DEFAULT_OUT}-{number}")
    return run
