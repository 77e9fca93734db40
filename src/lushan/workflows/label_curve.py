"""How many labels it takes: the same model tuned on few rows, asked about the validation rows."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lushan.backbones.tokenizer import Tokenizer
from lushan.catalog import load_baseline
from lushan.data.splits import Parts, subsample
from lushan.evaluation.phrases import metric_scale
from lushan.inference.predict import Predictor
from lushan.metrics.statistics import accuracy_difference, mean_of_draws
from lushan.model_store.run_folder import RunFolder
from lushan.model_store.tuned_model import load_predictor
from lushan.records import Interval, Prediction, Scores
from lushan.workflows.added_rows import without_added
from lushan.workflows.budget import FEWEST_HEAD_STEPS, FEWEST_STEPS
from lushan.workflows.encode import Encoder
from lushan.workflows.frozen_rows import frozen_states
from lushan.workflows.outcome import plain_interval
from lushan.workflows.progress import say_nothing
from lushan.workflows.setup import Setup

SIZES = (8, 16, 64, 256)
"""Training rows of every point; a size that is not smaller than the training rows is left out."""
NUM_DRAWS = 5
"""Draws of the rows of a point where the head alone is trained, which takes a moment; else one."""

Untrained = Callable[[Setup], Predictor]
Train = Callable[[Predictor, Setup], int]


def run_label_curve(
    run: RunFolder,
    setup: Setup,
    *,
    untrained: Untrained,
    train: Train,
    tell: Callable[[str], None],
) -> None:
    """Tune on few rows, once per size and draw, and note in `run.json` what came out; what is there is not run again.

    The weights of the last step are asked, so that no validation row chooses among them. Beside each stands the
    strongest baseline of the task on the same rows. The last point is the run itself. A point counts and draws
    labels that people gave; the run may have trained on rows of a model too (`data.added`), which `num_added` tells.

    Args:
        run: Where it is noted.
        setup: The whole run; its rows, settings and labels hold.
        untrained: Gives the model of a setup before training.
        train: Trains it.
        tell: Takes one line for a person.
    """
    num_added = setup.ledger.splits["train"].num_added
    labelled = without_added(setup.parts.train) if num_added else setup.parts.train
    sizes = [size for size in SIZES if size < len(labelled)]
    found: list[dict[str, Any]] = run.get("label_curve") or []
    if not sizes or len(found) > len(sizes):
        return
    tell("Label curve: asking the tuned model about the validation rows.")
    tuned = load_predictor(run.path)
    # A threshold that these very rows chose would favour the whole run.
    tuned = replace(tuned, state=replace(tuned.state, no_answer_threshold=None))
    whole = _scores(setup, tuned.examine(setup.parts.validation))
    source = _Source(replace(setup, parts=replace(setup.parts, train=labelled)), untrained)
    for num_rows in sizes[len(found) :]:
        draws = range(NUM_DRAWS if source.is_cheap else 1)
        tell(f"Label curve: tuning on {num_rows} rows, {len(draws)} time(s).")
        points = [_point(source, train, num_rows, seed=setup.recipe.seed + n) for n in draws]
        found.append(_joined(points, whole, num_rows, seed=setup.recipe.seed))
        run.note(label_curve=found)
    baselines = _baseline_scores(setup, setup.parts)
    last = _joined([_Point(whole, baselines)], None, len(labelled))
    found.append(last | {"num_added": num_added})
    run.note(label_curve=found)


class _Point(NamedTuple):
    """What one draw of rows gave."""

    scores: Scores
    baseline_scores: Mapping[str, float]
    num_steps: int | None = None


@dataclass(slots=True)
class _Source:
    """Models to train: the same one, put back to its start, where it is the head alone; else a new one each time."""

    setup: Setup
    untrained: Untrained
    is_cheap: bool = False
    _kept: Predictor | None = None
    _start: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def __post_init__(self) -> None:
        if self.setup.recipe.adapter.method not in ("head", "top"):
            return
        predictor = self.untrained(self.setup)
        frozen = frozen_states(self.setup, predictor.backbone, tell=say_nothing)
        self.setup = replace(self.setup, frozen=frozen)
        if self.setup.recipe.adapter.method == "head" and frozen is not None:
            self.is_cheap, self._kept = True, predictor
            self._start = {
                name: each.detach().clone()
                for name, each in predictor.backbone.model.named_parameters()
                if each.requires_grad
            }

    def give(self, few: Setup) -> Predictor:
        if self._kept is None:
            return self.untrained(few)
        with torch.no_grad():
            weights = dict(self._kept.backbone.model.named_parameters())
            for name, value in self._start.items():
                weights[name].copy_(value)
        return self._kept


def _point(source: _Source, train: Train, num_rows: int, *, seed: int) -> _Point:
    fewest_steps = FEWEST_HEAD_STEPS if source.is_cheap else FEWEST_STEPS
    few = _with_few_rows(source.setup, num_rows, seed=seed, fewest_steps=fewest_steps)
    predictor = source.give(few)
    num_steps = train(predictor, few)
    scores = _scores(few, predictor.examine(few.parts.validation))
    return _Point(scores, _baseline_scores(few, few.parts), num_steps)


def _joined(
    points: Sequence[_Point], whole: Scores | None, num_rows: int, *, seed: int = 0
) -> dict[str, Any]:
    """Give a point as plain values: its score, and how far below the whole run its row scores are."""
    all_scores = [each.scores for each in points]
    metric = all_scores[0].main_metric
    main = [found for each in all_scores if (found := each.metrics.get(metric))]
    point: dict[str, Any] = {
        "num_rows": num_rows,
        "num_added": 0,
        "num_draws": len(points),
        "num_steps": points[0].num_steps,
    }
    point |= _plain_score(mean_of_draws(main) if main else None, metric)
    point["baseline_score"] = _strongest([each.baseline_scores for each in points], metric)
    if whole is None or not whole.correct:
        return {**point, "rise": None}
    rises = [accuracy_difference(each.correct, whole.correct, seed=seed) for each in all_scores]
    rise = mean_of_draws(rises)
    within = Interval(rise.value, max(rise.low, -1.0), min(rise.high, 1.0))
    return {**point, "rise": plain_interval(within)}


def _plain_score(score: Interval | None, metric: str) -> dict[str, float | None]:
    if score is None:
        return {"score": None, "low": None, "high": None}
    scale = metric_scale(metric)
    low, high = max(score.low, scale.lowest), min(score.high, scale.highest)
    return {"score": score.value, "low": low, "high": high}


def _with_few_rows(
    setup: Setup, num_rows: int, *, seed: int, fewest_steps: int = FEWEST_STEPS
) -> Setup:
    """Give the setup of a run on some of the training rows, repeated so that one pass is long enough."""
    recipe = setup.recipe
    train = subsample(setup.parts.train, num_rows, seed=seed)
    tokenizer = Tokenizer.load(setup.base)
    encoder = Encoder(setup.task, setup.state, tokenizer, recipe.answer, setup.limit, learns=True)
    features = encoder.encode(train, with_target=True)
    num_passes = max(
        recipe.training.epochs or 1,
        math.ceil(fewest_steps * recipe.training.rows_per_step / num_rows),
    )
    training = recipe.training.model_copy(update={"epochs": 1, "keep": "last", "patience": None})
    engine = recipe.engine.model_copy(update={"compile": False})
    adapter = recipe.adapter.model_copy(update={"cache_gigabytes": 0.0})
    changed = {"training": training, "engine": engine, "adapter": adapter}
    repeated = [
        # Documents of one index would make one row of a step, however often they are repeated.
        replace(each, example_index=each.example_index + number * len(train))
        for number in range(num_passes)
        for each in features
    ]
    return replace(
        setup,
        recipe=recipe.model_copy(update=changed),
        parts=replace(setup.parts, train=train),
        features={**setup.features, "train": repeated},
    )


def _baseline_scores(setup: Setup, parts: Parts) -> dict[str, float]:
    """Main metric of every baseline that has it, learned from the same rows."""
    asked = replace(parts, test=parts.validation)
    found: dict[str, float] = {}
    for name in setup.task.baselines:
        answers = load_baseline(name).answer(asked, state=setup.state).predictions
        scores = _scores(setup, answers)
        if main := scores.metrics.get(scores.main_metric):
            found[name] = main.value
    return found


def _strongest(draws: Sequence[Mapping[str, float]], metric: str) -> float | None:
    """Score of the baseline that is best on the mean of the draws; None where there is none."""
    means = [sum(each[name] for each in draws) / len(draws) for name in draws[0]]
    choose = min if metric_scale(metric).lower_is_better else max
    return choose(means, default=None)


def _scores(setup: Setup, predictions: Sequence[Prediction]) -> Scores:
    return setup.task.score(
        predictions, setup.parts.validation, setup.state, seed=setup.recipe.seed
    )
