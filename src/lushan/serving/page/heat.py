"""Why a model answers as it does: each word of a text, and how much it spoke for the answer."""

from collections.abc import Sequence
from typing import NamedTuple

import anyio.to_thread

from lushan.explain.explanation import Explanation, explain
from lushan.explain.words import Weight
from lushan.records import Example
from lushan.serving.page.studio import Studio


class HeatMap(NamedTuple):
    """A text once more, for one part of the answer."""

    target: str
    """The label, the entity or the text that was answered."""
    pieces: list[tuple[str, float]]
    """All of the text, cut at its words, each with its weight; 0 for what is between them."""
    num_cut_tokens: int
    """Of the text, which was too long: the model did not read them, and their words weigh nothing."""


async def heat_maps(studio: Studio, name: str, example: Example) -> list[HeatMap]:
    """Ask a model, and explain its answer, part by part.

    Raises:
        UserError: If the model or the text cannot be explained.
    """
    predictor = studio.model(name).predictor
    features = await anyio.to_thread.run_sync(predictor.encode, [example])
    found = await studio.worker.run(lambda: maps_of(next(iter(explain(predictor, [example])))))
    num_read = sum(len(each.token_ids) for each in features)
    studio.app.state.metrics.count_tokens(name, num_prompt=num_read, num_completion=0)
    return found


def maps_of(explanation: Explanation) -> list[HeatMap]:
    """Cut the text of an explanation at its words, once for each part of the answer."""
    return [
        HeatMap(part.target, _cut(explanation.text, part.words), part.num_cut_tokens)
        for part in explanation.parts
    ]


def _cut(text: str, words: Sequence[Weight]) -> list[tuple[str, float]]:
    pieces: list[tuple[str, float]] = []
    end = 0
    for word in words:
        pieces += [(text[end : word.start], 0.0), (text[word.start : word.end], word.weight)]
        end = word.end
    return [piece for piece in (*pieces, (text[end:], 0.0)) if piece[0]]
