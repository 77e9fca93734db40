"""How many labels it takes: the same model tuned on few rows, asked about the validation rows."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lushan.backbones.tokenizer import Tokenizer
from lushan.catalog import load_baseline
from lushan.data.splits import Parts, subsample
from lushan.inference.predict import Predictor
from lushan.model_store.run_folder import RunFolder
from lushan.records import Prediction
from lushan.workflows.encode import Encoder
from lushan.workflows.setup import Setup

SIZES = (8, 16, 64, 256)
"""Training rows of every point; a size that is not smaller than the training rows is left out."""
FEWEST_STEPS = 60
"""Few rows are repeated until they make so many optimizer steps: fewer would teach next to nothing."""


def run_label_curve(
    run: RunFolder,
    setup: Setup,
    *,
    tuned: Callable[[Setup], Predictor],
    tell: Callable[[str], None],
) -> None:
    """Tune on few rows, once per size, and note in `run.json` what came out; what is noted already is not run again.

    The weights of the last step are asked, so that no validation row chooses among them. Beside each stands the last
    baseline of the task, the strongest, on the same rows.

    Args:
        run: Where it is noted.
        setup: The whole run; its rows, settings and labels hold.
        tuned: Gives the model that was trained on a setup.
        tell: Takes one line for a person.
    """
    found: list[dict[str, Any]] = run.get("label_curve") or []
    for num_rows in SIZES[len(found) :]:
        if num_rows >= len(setup.parts.train):
            break
        few = _with_few_rows(setup, num_rows)
        tell(f"Label curve: tuning on {num_rows} rows.")
        predictor = tuned(few)
        point: dict[str, Any] = {"num_rows": num_rows}
        point["score"] = _score(few, predictor.examine(few.parts.validation))
        del predictor
        if setup.task.baselines:
            parts = replace(few.parts, test=few.parts.validation)
            point["baseline_score"] = _baseline_score(few, parts)
        found.append(point)
        run.note(label_curve=found)


def _with_few_rows(setup: Setup, num_rows: int) -> Setup:
    """Give the setup of a run on some of the training rows, repeated so that one pass is long enough."""
    recipe = setup.recipe
    train = subsample(setup.parts.train, num_rows, seed=recipe.seed)
    tokenizer = Tokenizer.load(setup.base)
    encoder = Encoder(setup.task, setup.state, tokenizer, recipe.answer, setup.limit)
    features = encoder.encode(train, with_target=True)
    num_passes = max(
        recipe.training.epochs or 1,
        math.ceil(FEWEST_STEPS * recipe.training.rows_per_step / num_rows),
    )
    training = recipe.training.model_copy(update={"epochs": 1, "keep": "last", "patience": None})
    engine = recipe.engine.model_copy(update={"compile": False})
    adapter = recipe.adapter.model_copy(update={"cache_gigabytes": 0.0})
    changed = {"training": training, "engine": engine, "adapter": adapter}
    return replace(
        setup,
        recipe=recipe.model_copy(update=changed),
        parts=replace(setup.parts, train=train),
        features={**setup.features, "train": [*features] * num_passes},
    )


def _baseline_score(few: Setup, parts: Parts) -> float | None:
    """Main metric of the strongest baseline, which learns from the same few rows; None where it has none of it."""
    answers = load_baseline(few.task.baselines[-1]).answer(parts, state=few.state).predictions
    return _score(few, answers)


def _score(setup: Setup, predictions: Sequence[Prediction]) -> float | None:
    scores = setup.task.score(predictions, setup.parts.validation, setup.state)
    main = scores.metrics.get(scores.main_metric)
    return None if main is None else main.value
