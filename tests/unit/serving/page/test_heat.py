"""A heat map is the whole text again, with a weight for each word."""

import asyncio
from types import SimpleNamespace
from typing import cast

from lushan.explain.explanation import Explanation
from lushan.records import Row
from lushan.serving.hosted import HostedModel
from lushan.serving.page.heat import heat_maps, maps_of
from tests.unit.serving.page.conftest import MakeStudio


def test_pieces_are_the_whole_text_with_the_weights_of_its_words() -> None:
    words = [
        SimpleNamespace(start=1, end=5, weight=0.5),
        SimpleNamespace(start=6, end=10, weight=-0.25),
    ]
    explanation = SimpleNamespace(
        text=" good film!",
        parts=[SimpleNamespace(target="yes", words=words, num_cut_tokens=3)],
    )
    (found,) = maps_of(cast("Explanation", explanation))
    assert (found.target, found.num_cut_tokens) == ("yes", 3)
    assert found.pieces == [(" ", 0), ("good", 0.5), (" ", 0), ("film", -0.25), ("!", 0)]


def test_tokens_of_a_text_that_is_explained_are_counted(
    make_studio: MakeStudio, tuned: HostedModel
) -> None:
    studio, predictor = make_studio(tuned), tuned.predictor
    example = predictor.task.read(Row({"text": "The harbour sleeps."}, "", 1), needs_target=False)
    (found,) = asyncio.run(heat_maps(studio, "tiny", example))
    assert "".join(text for text, _ in found.pieces) == "The harbour sleeps."
    (features,) = predictor.encode([example])
    page = studio.app.state.metrics.page().decode()
    num_tokens = len(features.token_ids)
    assert f'lushan_tokens_total{{kind="prompt",model="tiny"}} {num_tokens}.0' in page
