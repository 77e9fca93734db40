"""Why a model answers as it does: each word of a text, and how much it spoke for the answer."""

import importlib
import importlib.util
from typing import Any, NamedTuple

from lushan.inference.predict import Predictor
from lushan.records import Example
from lushan.serving.page.studio import Studio

_PACKAGE = "lushan.explain"


class HeatMap(NamedTuple):
    """A text once more, for one part of the answer."""

    target: str
    """The label, the entity or the text that was answered."""
    pieces: list[tuple[str, float]]
    """All of the text, cut at its words, each with its weight; 0 for what is between them."""


def can_explain() -> bool:
    """Whether this Lushan can say why a model answers as it does."""
    return importlib.util.find_spec(_PACKAGE) is not None


async def heat_maps(studio: Studio, name: str, example: Example) -> list[HeatMap]:
    """Ask a model, and explain its answer, part by part.

    Raises:
        UserError: If the model or the text cannot be explained.
    """
    predictor = studio.model(name).predictor
    return await studio.worker.run(lambda: maps_of(_explained(predictor, example)))


def _explained(predictor: Predictor, example: Example) -> Any:  # noqa: ANN401 - an `Explanation`
    explain = importlib.import_module(f"{_PACKAGE}.explanation").explain
    return next(explain(predictor, [example]))


def maps_of(explanation: Any) -> list[HeatMap]:  # noqa: ANN401 - an `Explanation`
    """Cut the text of an explanation at its words, once for each part of the answer."""
    return [HeatMap(part.target, _cut(explanation.text, part.words)) for part in explanation.parts]


def _cut(text: str, words: Any) -> list[tuple[str, float]]:  # noqa: ANN401 - words with weights
    pieces: list[tuple[str, float]] = []
    end = 0
    for word in words:
        pieces += [(text[end : word.start], 0.0), (text[word.start : word.end], word.weight)]
        end = word.end
    return [piece for piece in (*pieces, (text[end:], 0.0)) if piece[0]]
