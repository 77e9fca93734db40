"""Filters and draws: compared with what `transformers.generate` draws from."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.sampling import Filters, draw
from tests.generation import plain_model
from tests.unit.inference.conftest import MakeSharp

PROMPT = [5, 60, 100, 60, 200, 17]


def processed_by_transformers(
    sharp_folder: MakeSharp, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Give raw scores and those that `transformers.generate` draws from."""
    ids_1T = torch.tensor([PROMPT])
    found = plain_model(sharp_folder("llama")).generate(
        ids_1T,
        attention_mask=torch.ones_like(ids_1T),
        max_new_tokens=1,
        do_sample=True,
        output_scores=True,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
        **{"top_k": 0, **options},
    )
    return found.logits[0][0], found.scores[0][0]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.3, "top_p": 0.8},
        {"temperature": 2.0, "min_p": 0.2},
        {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.4},
    ],
    ids=str,
)
def test_probabilities_are_those_that_transformers_draws_from(
    options: dict[str, Any], sharp_folder: MakeSharp
) -> None:
    logits_V, expected_V = processed_by_transformers(sharp_folder, options)
    found_V = Filters(GenerationSettings(**options)).apply(PROMPT, logits_V)
    torch.testing.assert_close(found_V.softmax(-1), expected_V.softmax(-1))
    assert not torch.allclose(found_V.softmax(-1), logits_V.softmax(-1))


def test_without_filters_scores_stay() -> None:
    scores_V = torch.randn(9)
    assert Filters(GenerationSettings(temperature=1.0)).apply([1], scores_V) is scores_V


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    scores_V = torch.tensor([0.5, -torch.inf, 2.0, -1.0, 1.0, -torch.inf])
    generator = torch.Generator().manual_seed(0)
    drawn = [draw(scores_V, generator) for _ in range(4000)]
    found = np.bincount(drawn, minlength=6) / 4000
    np.testing.assert_allclose(found, scores_V.softmax(-1).numpy(), atol=0.025)
    assert found[1] == found[5] == 0


def test_draw_at_the_very_end_is_the_last_possible_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.ones(1, dtype=torch.float64))
    scores_V = torch.tensor([0.0, 1.0, -torch.inf])
    assert draw(scores_V, torch.Generator()) == 1


def test_draw_at_the_very_start_is_the_first_possible_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.zeros(1, dtype=torch.float64))
    scores_V = torch.tensor([-torch.inf, 1.0, 0.0])
    assert draw(scores_V, torch.Generator()) == 1
