"""The commands as Python functions, with plain arguments and plain results; they tell what they do to the log."""

import logging
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any, Unpack

import torch

from lushan.errors import SettingError
from lushan.settings import merged, nearest_setting, nested
from lushan.workflows import check as checking
from lushan.workflows import evaluate as evaluating
from lushan.workflows import export as exporting
from lushan.workflows import tune as tuning
from lushan.workflows.augment import augment_or_label
from lushan.workflows.predict import Opened, open_run
from lushan.workflows.recipe import TuneOptions, TuneRecipe, flags_of, make_recipe

logger = logging.getLogger("lushan")

_NO_SETTINGS: Mapping[str, Any] = {}


def tune(
    data: str | Path,
    *,
    out: str | Path,
    settings: Mapping[str, Any] = _NO_SETTINGS,
    recipe: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **options: Unpack[TuneOptions],
) -> dict[str, Any]:
    """Tune a model on data, and prove that it got better: `lushan tune`.

    Args:
        data: A file, or a folder with train, validation and test files.
        out: The run folder.
        settings: Settings by their full name, such as `{"training.rows_per_step": 8}`.
        recipe: A YAML file with settings.
        resume: Go on with the run in `out`.
        overwrite: Replace the run in `out`.
        options: `task`, `model`, `adapter`, `answer`, `epochs`, `effort`, `budget`, `overlap`, `baselines`, `seed`.

    Returns:
        The content of the run's `results.json`.

    Raises:
        UserError: If something does not fit; says where and what to do.
    """
    return tuning.tune(
        Path(data),
        _recipe(tune, recipe, options, settings),
        out=Path(out),
        resume=resume,
        overwrite=overwrite,
        tell=logger.info,
    )


def check(
    data: str | Path,
    *,
    settings: Mapping[str, Any] = _NO_SETTINGS,
    recipe: str | Path | None = None,
    **options: Unpack[TuneOptions],
) -> dict[str, Any]:
    """Look at data as `tune` would, without a run: `lushan check`.

    Args:
        data: A file, or a folder with train, validation and test files.
        settings: Settings by their full name.
        recipe: A YAML file with settings.
        options: As for `tune`.

    Returns:
        The ledger, overlap, labels and notes.

    Raises:
        UserError: If something would block a run.
    """
    return checking.check(Path(data), _recipe(check, recipe, options, settings), tell=logger.info)


def augment(
    data: str | Path,
    *,
    out: str | Path,
    num_rows: int | None = None,
    unlabelled: str | Path | None = None,
    keep: bool = False,
    overwrite: bool = False,
    settings: Mapping[str, Any] = _NO_SETTINGS,
    **options: Unpack[TuneOptions],
) -> dict[str, Any]:
    """Write new labelled rows, or label some, filter them, and measure whether they help: `lushan augment`.

    Args:
        data: A file, or a folder with train, validation and test files.
        out: JSON Lines file for the new rows, outside of the data.
        num_rows: Rows to write, before the filters; else 200.
        unlabelled: A file with rows to label, in place of writing new ones.
        keep: Write the file also where the rows do not clearly help.
        overwrite: Replace the file in `out`.
        settings: Settings by their full name.
        options: As for `tune`.

    Returns:
        What became of the rows, the gain with its interval, and whether the file was written.

    Raises:
        UserError: If something does not fit; nothing is written then.
    """
    return augment_or_label(
        Path(data),
        _recipe(augment, None, options, settings),
        out=Path(out),
        num_rows=num_rows,
        unlabelled=None if unlabelled is None else Path(unlabelled),
        keep=keep,
        overwrite=overwrite,
        tell=logger.info,
    )


def load(
    run: str | Path, *, settings: Mapping[str, Any] = _NO_SETTINGS, weights: str = "auto"
) -> Opened:
    """Load a tuned model, whose `predict` answers a list of texts.

    Args:
        run: The folder that `tune` wrote, or its `model` folder.
        settings: `data.over_length`, where it is to differ from that of the run.
        weights: How weights are held: `auto`, `fp32`, `bf16`, `int8` or `int4`.

    Raises:
        UserError: If there is no whole tuned model.
    """
    with torch.random.fork_rng(devices=[]):  # what the caller draws next is not ours to decide
        return open_run(Path(run), nested(settings), weights=weights)


def evaluate(
    run: str | Path,
    data: str | Path,
    *,
    settings: Mapping[str, Any] = _NO_SETTINGS,
    seed: int | None = None,
) -> dict[str, Any]:
    """Score a run on labelled rows: `lushan evaluate`.

    Args:
        run: The folder that `tune` wrote.
        data: A file, or a folder with a test file.
        settings: `data.columns` and `data.over_length`, where they differ from those of the run.
        seed: Of the bootstrap intervals and of written answers that are drawn; else that of the run for these.

    Raises:
        UserError: If the run or the data does not fit.
    """
    found = evaluating.evaluate(
        Path(run), Path(data), settings=nested(settings), seed=seed, tell=logger.info
    )
    return found.result


def compare(
    runs: Sequence[str | Path],
    *,
    data: str | Path | None = None,
    settings: Mapping[str, Any] = _NO_SETTINGS,
    seed: int | None = None,
) -> dict[str, Any]:
    """Hold runs against each other row by row: `lushan compare`.

    Args:
        runs: At least two run folders.
        data: Labelled rows to ask every run about; None takes the test rows of their tuning.
        settings: As for `evaluate`; only with `data`.
        seed: As for `evaluate`.

    Raises:
        UserError: If the runs were not tested on the same rows.
    """
    return evaluating.compare(
        [Path(run) for run in runs],
        data=None if data is None else Path(data),
        settings=nested(settings),
        seed=seed,
        tell=logger.info,
    )


def export(
    run: str | Path,
    *,
    to: str,
    out: str | Path | None = None,
    quantise: str | None = None,
    data: str | Path | None = None,
    overwrite: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Write a run's model in a form that other programs load: `lushan export`.

    Args:
        run: The folder that `tune` wrote.
        to: `hf`, `gguf`, `onnx` or `openvino`.
        out: The folder to write; None takes one in `exports` of the run.
        quantise: How weights are stored; None takes the form's usual way.
        data: Labelled rows to score on; None takes the run's own test rows.
        overwrite: Replace the export in `out`.
        seed: Of the bootstrap intervals.

    Raises:
        UserError: If the model has no such form, or it costs more quality than it may.
        CertificateError: If the program that is to load the files computes something else.
    """
    return exporting.export(
        Path(run),
        to=to,
        out=None if out is None else Path(out),
        quantise=quantise,
        data=None if data is None else Path(data),
        overwrite=overwrite,
        seed=seed,
        tell=logger.info,
    )


def _recipe(
    function: Callable[..., Any],
    file: str | Path | None,
    options: TuneOptions,
    settings: Mapping[str, Any],
) -> TuneRecipe:
    _refuse_unknown(function, options)
    values = merged(flags_of(options), nested(settings))
    return make_recipe(None if file is None else Path(file), values, [])


def _refuse_unknown(function: Callable[..., Any], options: TuneOptions) -> None:
    """Refuse an option that Python took and nothing reads.

    Raises:
        SettingError: If there is one; lists those there are, and says how settings are given.
    """
    own = signature(function).parameters.values()
    known = [each.name for each in own if each.kind is each.KEYWORD_ONLY]
    known += TuneOptions.__annotations__
    if unknown := next((name for name in options if name not in known), None):
        near = get_close_matches(unknown, known, n=1)
        hint = f" Did you mean `{near[0]}`?" if near else ""
        setting = nearest_setting(TuneRecipe, unknown) or "training.learning_rate"
        raise SettingError(
            f"`lushan.{function.__name__}` has no option `{unknown}`. Known: {', '.join(known)}.{hint} Settings are given "
            f'by their full name: `settings={{"{setting}": ...}}`.'
        )
