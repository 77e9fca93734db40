"""Score a tuned model on labelled rows, and hold tuned models against each other on the same rows."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lushan.catalog import load_task
from lushan.errors import DataError, SettingError
from lushan.evaluation.compare import compare_runs
from lushan.inference.predict import Advance, Predictor, cut_tokens
from lushan.metrics.statistics import accuracy, is_graded
from lushan.model_store.run_folder import read_correct, read_task, read_truth_tokens
from lushan.records import Example, Scores
from lushan.workflows.outcome import plain, plain_interval
from lushan.workflows.predict import RUN_CODE, Tell, ignore, open_rows, open_run, told_cut
from lushan.workflows.seen_rows import SEEN, is_tuned_on


class Evaluation(NamedTuple):
    """How good a model's answers on labelled rows are."""

    result: dict[str, Any]
    """What `lushan evaluate --json` prints."""
    correct: dict[str, float]
    """Example id to whether it was answered right, or how well from 0 to 1."""
    num_truth_tokens: dict[str, int]
    """Example id to the tokens of its truth, where rows are scored by how likely these are on the mean; else empty."""


def evaluate(
    run: Path,
    data: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    weights: str = "auto",
    seed: int | None = None,
    tell: Tell = ignore,
    begin: Callable[[int], None] = ignore,
    advance: Advance = ignore,
) -> Evaluation:
    """Score a run on labelled rows: the test split of a folder, or all rows of one file.

    Args:
        run: The folder that `lushan tune --out` wrote.
        data: A file, or a folder with a test file.
        settings: `data.columns` and `data.over_length`, where they differ from those of the run.
        weights: How weights are held, one of `WeightsSetting`.
        seed: Of the bootstrap intervals, which is else 0, and of written answers that are drawn, which is else that of the run.
        tell: Takes one line for a person.
        begin: Called with the number of texts to answer.
        advance: Called with the number of texts that were answered since the last call.

    Raises:
        UserError: If the run or the data does not fit.
    """
    opened = open_run(run, settings or {}, weights=weights, seed=seed, tell=tell)
    predictor = opened.predictor
    _check_allowed(predictor, settings or {})
    rows = open_rows(opened, data, needs_target=True)
    examples = [example for _, example in rows]
    for note in rows.notes:
        tell(note)
    check_labels(predictor, examples)
    is_seen = is_tuned_on(run, rows.file)
    if is_seen:
        tell(SEEN.format(rows.file))
    features = predictor.encode(examples)
    num_cut = len(cut_tokens(features))
    if num_cut:
        tell(told_cut(predictor, num_cut, len(examples)))
    begin(len(examples))
    predictions = predictor.examine(examples, features=features, advance=advance)
    scores = predictor.task.score(predictions, examples, predictor.state, seed=seed or 0)
    result = {
        "run": str(run),
        "data": str(rows.file),
        "task": opened.task_name,
        "model_version": predictor.version,
        "weights": opened.weight_form,
        "num_examples": len(examples),
        "num_cut_examples": num_cut,
        "seen_in_training": is_seen,
        "main_metric": scores.main_metric,
        "metrics": plain(scores),
        **scores.details,
    }
    is_per_token = predictor.task.is_judged_by_likelihood
    num_tokens = {each.id: each.num_truth_tokens for each in predictions if is_per_token}
    return Evaluation(result, _by_id(examples, scores), num_tokens)


def compare(
    runs: Sequence[Path],
    *,
    data: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int | None = None,
    tell: Tell = ignore,
) -> dict[str, Any]:
    """Hold runs against each other, on the test rows that they were tuned with or on other rows.

    Args:
        runs: At least two run folders.
        data: Labelled rows that every run is asked about; None takes what the runs answered when they were tuned.
        settings: As for `evaluate`; only with `data`.
        seed: Of the bootstrap intervals, which is else 0, and of written answers that are drawn, which is else that of the run.
        tell: Takes one line for a person.

    Raises:
        UserError: If there are fewer than two runs, or they were not tested on the same rows, or their row scores are means
            per token of other tokens.
    """
    names = _names(runs)
    if data is None and settings:
        raise DataError(
            f"`{next(iter(settings))}` has no effect without `--data`: the runs' own answers are compared."
        )
    correct: dict[str, dict[str, float]] = {}
    num_tokens: dict[str, dict[str, int]] = {}
    seen: dict[str, dict[str, bool]] = {}
    for name, run in zip(names, runs, strict=True):
        if data is None:
            correct[name] = read_correct(run)
            num_tokens[name] = _truth_tokens(run)
        else:
            tell(f"Asking {name}.")
            found = evaluate(run, data, settings=settings, seed=seed, tell=tell)
            correct[name], num_tokens[name] = found.correct, found.num_truth_tokens
            seen[name] = {"seen_in_training": found.result["seen_in_training"]}
    compared = compare_runs(correct, seed=seed or 0, num_truth_tokens=num_tokens)
    graded = any(is_graded(list(rows.values())) for rows in correct.values())
    mean_name = "mean_row_score" if graded else "accuracy"
    return {
        "runs": [
            {
                "name": name,
                "path": str(run),
                mean_name: plain_interval(accuracy(list(correct[name].values()), seed=seed or 0)),
                **seen.get(name, {}),
            }
            for name, run in zip(names, runs, strict=True)
        ],
        "data": None if data is None else str(data),
        "num_examples": len(correct[names[0]]),
        "comparisons": [
            {"first": each.first, "second": each.second, **each.as_dict()} for each in compared
        ],
    }


def _names(runs: Sequence[Path]) -> list[str]:
    """Short names where they differ, whole paths where they do not.

    Raises:
        DataError: If a run is named twice.
    """
    whole = [run.resolve() for run in runs]
    if len(set(whole)) < len(whole):
        raise DataError("A run was named twice. Name different runs to compare.")
    short = [path.name for path in whole]
    return short if len(set(short)) == len(short) else [str(run) for run in runs]


def _check_allowed(predictor: Predictor, settings: Mapping[str, Any]) -> None:
    """Refuse to run what a model writes, unless the user allows it: the run may be somebody else's."""
    part, name = RUN_CODE
    if name in predictor.task.settings and settings.get(part, {}).get(name) is not True:
        raise SettingError(
            "Scores of this task are made by running what the model writes, in a sandbox that keeps out accidents and "
            f"not attacks. Allow it with `--set {part}.{name}=true`."
        )


def check_labels(predictor: Predictor, examples: Sequence[Example]) -> None:
    """Refuse a truth that the model cannot give.

    Raises:
        DataError: If there is one; names its row.
    """
    known = set(predictor.state.labels)
    for each in examples:
        if strange := [label for label in each.classes if label not in known]:
            listed = ", ".join(predictor.state.labels[:20])
            more = " ..." if len(known) > 20 else ""
            raise DataError(
                f"{each.place}: the label `{strange[0]}` is none of the {len(known)} that the model knows: "
                f"{listed}{more}. Correct it, or tune on rows that have it."
            )


def _by_id(examples: Sequence[Example], scores: Scores) -> dict[str, float]:
    return {each.id: value for each, value in zip(examples, scores.correct, strict=True)}


def _truth_tokens(run: Path) -> dict[str, int]:
    """The tokens of the truth of each test row, where rows are scored by how likely these are on the mean."""
    is_per_token = load_task(read_task(run)).is_judged_by_likelihood
    return read_truth_tokens(run) if is_per_token else {}
