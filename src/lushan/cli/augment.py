"""`lushan augment`: new labelled rows, written or labelled by the model, filtered, measured, and kept apart."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lushan.cli.console import (
    DataArgument,
    JsonOption,
    RecipeSeedOption,
    SetOption,
    emit_json,
    quick_imports,
    show_table,
    tell,
)


def command(
    data: DataArgument,
    *,
    task: Annotated[str | None, typer.Option("--task", help="What the rows are for.")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Who writes and is tuned: a folder, or a known name."),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option("--rows", min=1, help="Rows to write, before the filters; else 200."),
    ] = None,
    unlabelled: Annotated[
        Path | None,
        typer.Option(
            "--unlabelled", metavar="FILE", help="Label these rows, instead of writing new ones."
        ),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Write the file also where the rows do not help.")
    ] = False,
    settings: SetOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The new rows; else augmented/NAME-N.jsonl."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file in --out.")
    ] = False,
    seed: RecipeSeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write new labelled rows like yours, or label rows that you have, and measure whether training on them helps."""
    from lushan.workflows.recipe import TuneOptions, flags_of, make_recipe

    options = TuneOptions(task=task, model=model, seed=seed)
    made = make_recipe(None, flags_of(options), settings or [])

    with quick_imports():
        from lushan.workflows.augment import augment_or_label

    found = augment_or_label(
        data,
        made,
        unlabelled=unlabelled,
        num_rows=rows,
        out=out or next_file(data),
        keep=keep,
        overwrite=overwrite,
        tell=tell,
    )
    show_outcome(found)
    if as_json:
        emit_json(found)


def next_file(data: Path) -> Path:
    """Name a file that does not exist yet, and that nobody is making, after the data."""
    from lushan.atomic import is_locked
    from lushan.workflows.new_rows import lock_of

    name = data.resolve().name.split(".")[0] or "rows"
    file, number = Path("augmented", f"{name}-1.jsonl"), 1
    while file.exists() or is_locked(lock_of(file)):
        number += 1
        file = Path("augmented", f"{name}-{number}.jsonl")
    return file


def show_outcome(found: Mapping[str, Any]) -> None:
    """Print what became of the rows, whether they help, and where they are."""
    counted = [(reason, f"{times:,}") for reason, times in found["refused"].items()]
    counted += [
        (reason.replace("_", " "), f"{times:,}") for reason, times in found["dropped"].items()
    ]
    counted.append(("kept", f"{found['num_new_rows']:,}"))
    what = "labelled" if "unlabelled" in found else "written"
    show_table((f"of the rows that were {what}", "rows"), counted)
    if "unlabelled" in found:
        tell(threshold_line(found))
    elif not found["agreement_asked"]:
        tell(
            "Agreement was not asked: the answers of this task are no labels that a model could confirm."
        )
    for line in verdict(found):
        tell(line)


def threshold_line(found: Mapping[str, Any]) -> str:
    """Say how sure a label had to be, and what that is worth."""
    wrong = f"{100 * found['error_fraction']:.1f} % of all validation rows"
    threshold = found["threshold"]
    if threshold is None:
        return (
            f"No label is sure enough: at no threshold is the model wrong half as often as on the {wrong}, over 10 rows "
            "or more."
        )
    return (
        f"Sure enough is a probability of {threshold['probability']:.3f}: of the "
        f"{threshold['num_validation_rows']:,} validation rows at or above it, {100 * threshold['error_fraction']:.1f} % "
        f"are wrong, against {wrong}."
    )


def verdict(found: Mapping[str, Any]) -> list[str]:
    """Say whether the new rows help, and what was written."""
    from lushan.evaluation.phrases import is_graded, p_text, test_words

    gain = found["gain"]
    if gain is None:
        return ["No new row is left; nothing was written."]
    against = f"with {found['num_new_rows']:,} new rows against as many real ones seen once more"
    if "unlabelled" in found:
        against += ", or against the real rows alone, whichever is better"
    change = gain["difference"]
    told = (
        f"{'They help' if found['helps'] else 'They do not clearly help'}: mean score of "
        f"{gain['num_validation_rows']:,} validation rows {change['value']:+.3f} "
        f"({change['low']:+.3f} to {change['high']:+.3f}), {against}; "
        f"{p_text(gain['p_value'])}, {test_words(is_graded(gain)).name}."
    )
    if found["written"]:
        place = (
            f"New rows: {found['out']}. They are in no data set; `lushan tune --set data.added={found['out']}` trains on "
            "them too."
        )
        return [told, place]
    return [told, "Nothing was written. `--keep` writes such rows all the same."]
