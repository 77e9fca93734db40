"""From what every system answered to `results.json`, the report and the model card."""

import math
import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lushan.atomic import write_json
from lushan.backbones.inspect import describe
from lushan.catalog import load_baseline
from lushan.errors import RunError
from lushan.evaluation.compare import comparisons
from lushan.evaluation.model_card import write_model_card
from lushan.evaluation.report import write_report
from lushan.metrics.statistics import is_graded
from lushan.model_store.run_folder import RunFolder
from lushan.records import Example, Interval, Prediction, Scores, plain_answer
from lushan.workflows.comparison import FEW_SHOT, num_not_drawn
from lushan.workflows.recipe import TuneRecipe
from lushan.workflows.setup import Setup

_NUM_ERRORS = 25


def write_outcome(run: RunFolder, setup: Setup) -> dict[str, Any]:
    """Score everything on the same test rows, and write what was right, results, report and model card.

    Returns:
        The content of `results.json`.
    """
    answers = {
        name: found
        for name in ("before", "after", *_baseline_names(setup))
        if (found := run.predictions(name)) is not None
    }
    _check_rows(answers, setup, run=run)
    scores = {
        name: setup.task.score(found, setup.parts.test, setup.state, seed=setup.recipe.seed)
        for name, found in answers.items()
    }
    for name, found in answers.items():
        run.save_predictions(name, found, correct=scores[name].correct)
    results = collect_results(run, setup, answers=answers, scores=scores)
    write_json(run.path / "results.json", results)
    write_report(results, run.path)
    write_model_card(results, run.path)
    return results


def _check_rows(
    answers: Mapping[str, Sequence[Prediction]], setup: Setup, *, run: RunFolder
) -> None:
    """Refuse answers to other rows: each is held against the truth of the row in its place.

    Raises:
        RunError: If a file of answers was changed, or is of another run.
    """
    expected = [each.id for each in setup.parts.test]
    for name, found in answers.items():
        if [each.id for each in found] != expected:
            raise RunError(
                f"`{run.path / 'predictions' / name}.jsonl` does not answer the {len(expected):,} test rows in their order. "
                "Remove it, then go on with `--resume`."
            )


def collect_results(
    run: RunFolder,
    setup: Setup,
    *,
    answers: Mapping[str, Sequence[Prediction]],
    scores: Mapping[str, Scores],
) -> dict[str, Any]:
    """Give the content of `results.json`.

    Args:
        run: Where training is noted.
        setup: What was tuned.
        answers: System (`before`, `after`, baselines) to its answers on the test rows.
        scores: System to how good they are.
    """
    recipe, examples = setup.recipe, setup.parts.test
    after = scores["after"]
    # Where rows are scored by likelihood, what wrote an answer without one has no score to compare.
    others = {name: x.correct for name, x in scores.items() if name != "after" and x.correct}
    compared = comparisons(after.correct, others, seed=recipe.seed) if after.correct else {}
    found_baselines = {
        name: plain(scores[name]) for name in _baseline_names(setup) if name in scores
    }
    is_model = setup.task.untuned[describe(setup.base).asked_as] != "nothing"
    if found_baselines and is_model:
        # Before tuning, the untouched model was asked without examples: that is the zero-shot baseline.
        found_baselines["zero_shot"] = plain(scores["before"])
        compared |= {"zero_shot": compared["before"]} if "before" in compared else {}
    training = run.get("training")
    return {
        "run": str(run.path),
        "task": recipe.task,
        "model": recipe.model.name,
        "adapter": adapter_name(recipe),
        "answer": recipe.answer,
        "main_metric": after.main_metric,
        "before": plain(scores["before"]),
        "before_is_model": is_model,
        "after": plain(after),
        "baselines": found_baselines,
        "baseline_notes": run.get("baselines") or {},
        "system_titles": _titles(setup, is_model=is_model),
        "comparisons": compared,
        "num_train_tokens": training["num_tokens"],
        "seconds": run.get("seconds"),
        "train_tokens_per_second": training["num_tokens"]
        / max(training["seconds"] + run.get("seconds").get("compile", 0.0), 1e-9),
        "peak_rss_bytes": max(peak_rss_bytes(), run.get("peak_rss_bytes") or 0),
        "num_weights": training["num_weights"],
        "packing": training["packing"],
        **{name: value for name, value in after.details.items() if name != "log_loss"},
        "worst_errors": worst_errors(answers["after"], examples, after),
        "choices": run.get("choices"),
        "validation": training["validation"],
        "label_curve": run.get("label_curve") or [],
        "thresholds": training.get("thresholds") or [],
        "best_epoch": training["best_epoch"],
        "kept_epoch": training["kept_epoch"],
        "num_examples": {name: len(part) for name, part in setup.parts.as_dict().items()},
        "num_not_drawn": num_not_drawn(setup),
        "kept_overlap": _kept_overlap(setup),
        "versions": run.get("versions"),
        "notes": run.get("notes") or [],
        "seed": recipe.seed,
        "model_version": answers["after"][0].model_version,
    }


def _kept_overlap(setup: Setup) -> dict[str, int]:
    """An earlier split to the test rows that it has too; empty where such rows were taken out of it."""
    if setup.recipe.data.overlap != "keep":
        return {}
    return {
        pair.earlier: num_rows
        for pair in setup.ledger.overlap
        if pair.later == "test" and (num_rows := pair.num_later_exact + pair.num_later_near)
    }


def _baseline_names(setup: Setup) -> tuple[str, ...]:
    return (*setup.task.baselines, FEW_SHOT)


def _titles(setup: Setup, *, is_model: bool) -> dict[str, str]:
    """Names for people of what is not the same in every task."""
    titles = {name: load_baseline(name).TITLE for name in setup.task.baselines}
    return titles if is_model else {**titles, "before": load_baseline("nothing").TITLE}


def plain(scores: Scores) -> dict[str, dict[str, float]]:
    """Metrics with their intervals, as plain values."""
    return {name: plain_interval(each) for name, each in scores.metrics.items()}


def plain_interval(interval: Interval) -> dict[str, float]:
    """A value and its interval, as plain values."""
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def adapter_name(recipe: TuneRecipe) -> str:
    """`full`, `lora`, `head` or `top:N`."""
    method = recipe.adapter.method
    return f"top:{recipe.adapter.layers}" if method == "top" else method


def worst_errors(
    predictions: Sequence[Prediction], examples: Sequence[Example], scores: Scores
) -> list[dict[str, Any]]:
    """Wrong answers that the model was surest of; where rows are graded, those of the lowest score."""
    wrong = [
        (value, prediction, example)
        for prediction, example, value in zip(predictions, examples, scores.correct, strict=True)
        if value < 1
    ]
    wrong.sort(key=lambda each: (each[0], -each[1].log_likelihood))
    graded = is_graded(scores.correct)
    return [
        {
            "id": example.id,
            "text": example.shown,
            "truth": plain_answer(example.target),
            "answer": plain_answer(prediction.answer),
            # A whole text is never probable: that of a label tells something, that of a text does not.
            "probability": None if graded else math.exp(prediction.log_likelihood),
            **({"score": value} if graded else {}),
        }
        for value, prediction, example in wrong[:_NUM_ERRORS]
    ]


def peak_rss_bytes() -> int:
    """Most memory that this process has held at once."""
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024
