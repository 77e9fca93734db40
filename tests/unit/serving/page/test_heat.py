"""A heat map is the whole text again, with a weight for each word."""

from types import SimpleNamespace
from typing import cast

from lushan.explain.explanation import Explanation
from lushan.serving.page.heat import maps_of


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
