"""From which probability on a trained model gives no answer: the validation rows decide."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from lushan.inference.predict import Predictor
from lushan.records import Example
from lushan.tasks import Abstains

_ALWAYS = 1.0
"""Threshold of a probability at which every question is answered."""


def with_threshold(
    predictor: Predictor, validation: Sequence[Example], *, tell: Callable[[str], None]
) -> tuple[Predictor, list[dict[str, Any]]]:
    """Choose from which probability on a trained model gives no answer: where F1 on the validation rows is highest.

    Args:
        predictor: The model with the weights that are kept.
        validation: What decides.
        tell: Takes one line for a person.

    Returns:
        The model with its threshold, and what each threshold does; the same model and nothing where the task always answers
        or the rows do not decide.
    """
    task, state = predictor.task, predictor.state
    if not isinstance(task, Abstains) or not task.abstention.may_abstain(state):
        return predictor, []
    asked = replace(predictor, state=replace(state, no_answer_threshold=_ALWAYS))
    points = task.abstention.thresholds(asked.predict(validation), validation)
    if not points:
        so = "No answer that it writes is withheld" if predictor.writes else "It stays at 0.5"
        tell(
            "No threshold for giving no answer was chosen: the validation rows are all with, or all without an answer. "
            f"{so}."
        )
        return predictor, []
    best = next(each for each in points if each.is_best)
    tell(
        f"No answer is given where its probability is above {best.threshold:.3g}: the best F1 on the validation rows, "
        f"{best.f1:.3f}."
    )
    settled = replace(state, no_answer_threshold=best.threshold)
    return replace(predictor, state=settled), [asdict(each) for each in points]
