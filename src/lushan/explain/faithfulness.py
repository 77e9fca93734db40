"""Whether the words that an explanation names matter to the model more than others (DeYoung et al. 2020, ERASER).

A word is taken out by giving its tokens the baseline's embedding: places, targets and the template stay as they
are, so that entities and answers can be checked like labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lushan.explain.gradients import Point, Scorer
from lushan.explain.questions import Question
from lushan.explain.settings import ExplainSettings
from lushan.explain.words import Weight, visible_words, word_shares


@dataclass(frozen=True, slots=True)
class Faithfulness:
    """How far the score falls; each drop is in the unit of the score."""

    num_words: int
    """Words that are taken out, or left: those with the largest weights."""
    comprehensiveness: float
    """Drop without the top words; large where the model needs them."""
    random_comprehensiveness: float
    """Mean drop without as many random words."""
    sufficiency: float
    """Drop with the top words alone; near 0 where they are enough."""
    random_sufficiency: float
    """Mean drop with as many random words alone."""
    num_draws: int
    """Random draws that the means are taken over."""


def check(
    scorer: Scorer,
    questions: Sequence[Question],
    weights: Sequence[Sequence[Weight]],
    settings: ExplainSettings,
) -> list[Faithfulness]:
    """Take the top words of every question out, or all others, and as many random ones.

    Args:
        scorer: The model.
        questions: What was explained.
        weights: The weights of the words of each question.
        settings: `top_fraction`, `num_draws` and `seed`.
    """
    points: list[Point] = []
    for question, found in zip(questions, weights, strict=True):
        words = visible_words(question.text)
        variants = [set[int](), *_variants(np.array([each.weight for each in found]), settings)]
        for piece in question.pieces:
            owners = [None if p is None else word_shares(words, p) for p in piece.places]
            points += [
                Point(piece.features, np.array([_is_there(each, out) for each in owners]))
                for out in variants
            ]
    scores = iter(scorer.scores(points))
    num_variants = 3 + 2 * settings.num_draws
    checked: list[Faithfulness] = []
    for question, found in zip(questions, weights, strict=True):
        total = np.zeros(num_variants)
        for piece in question.pieces:
            total += piece.share * np.array([next(scores) for _ in range(num_variants)])
        drops = total[0] - total[1:]
        comprehensiveness, sufficiency, *_ = drops.tolist()
        checked.append(
            Faithfulness(
                _num_top(len(found), settings),
                comprehensiveness,
                float(drops[2::2].mean()),
                sufficiency,
                float(drops[3::2].mean()),
                settings.num_draws,
            )
        )
    return checked


def _num_top(num_words: int, settings: ExplainSettings) -> int:
    return max(1, round(settings.top_fraction * num_words))


def _variants(weights: np.ndarray, settings: ExplainSettings) -> list[set[int]]:
    """Give the words to take out: the top ones, all others, and the same of every random draw."""
    generator = np.random.default_rng(settings.seed)
    everything = set(range(len(weights)))
    top = _num_top(len(weights), settings)
    chosen = [set(np.argsort(-weights, kind="stable")[:top].tolist())]
    chosen += [
        set(generator.permutation(len(weights))[:top].tolist()) for _ in range(settings.num_draws)
    ]
    return [out for each in chosen for out in (each, everything - each)]


def _is_there(owners: list[tuple[int, float]] | None, out: set[int]) -> float:
    """Say how much of a token stays; one that several words share goes with any of them."""
    if owners is None:
        return 1.0
    return float(all(number not in out for number, _ in owners))
