"""`lushan tune`: from a labelled table to a tuned, compared and certified model."""

from pathlib import Path
from typing import Annotated

import typer

from lushan.cli.console import (
    DataArgument,
    JsonOption,
    OverlapOption,
    RecipeSeedOption,
    SetOption,
    TaskOption,
    TrainingBar,
    emit_json,
    quick_imports,
    show_outcome,
    tell,
)


def command(
    data: DataArgument,
    *,
    task: TaskOption = None,
    model: Annotated[
        str | None, typer.Option("--model", help="A folder, or a name from `lushan models list`.")
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter", metavar="full|lora|head|top:N", help="What of the model is trained."
        ),
    ] = None,
    answer: Annotated[
        str | None,
        typer.Option("--answer", metavar="head|generate", help="By a new layer, or by writing."),
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Passes over the rows.")] = None,
    effort: Annotated[
        str | None,
        typer.Option(
            "--effort", metavar="quick|normal|thorough", help="Decides what is left open."
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="8m",
            help="Wall time to plan for; training rows are sub-sampled to fit, test rows are not.",
        ),
    ] = None,
    overlap: OverlapOption = None,
    no_baselines: Annotated[
        bool, typer.Option("--no-baselines", help="Compare with the untouched model only.")
    ] = False,
    settings: SetOption = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="A YAML file with settings.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="RUN", help="The run folder; else runs/NAME-N.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in --out.")
    ] = False,
    seed: RecipeSeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tune a model on your data, prove that it got better, and write a report."""
    from lushan.errors import SettingError
    from lushan.workflows.recipe import TuneOptions, flags_of, make_recipe

    if resume and (overwrite or out is None):
        raise SettingError("`--resume` needs `--out RUN`, and does not go with `--overwrite`.")
    options = TuneOptions(
        task=task,
        model=model,
        adapter=adapter,
        answer=answer,
        epochs=epochs,
        effort=effort,
        budget=budget,
        overlap=overlap,
        baselines=False if no_baselines else None,
        seed=seed,
    )
    made = make_recipe(recipe, flags_of(options), settings or [])
    run = out or next_run(data)

    with quick_imports():
        from lushan.workflows.tune import tune

    with TrainingBar() as listener:
        results = tune(
            data,
            made,
            out=run,
            resume=resume,
            overwrite=overwrite,
            tell=tell,
            listeners=[listener],
        )
    if not results:  # this process only helped another
        return
    show_outcome(results)
    if as_json:
        emit_json(results)


def next_run(data: Path) -> Path:
    """Name a run folder that does not exist yet, after the data."""
    name = data.resolve().name.split(".")[0] or "run"
    number = 1
    while Path("runs", f"{name}-{number}").exists():
        number += 1
    return Path("runs", f"{name}-{number}")
