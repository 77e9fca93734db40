"""Beam search, compared token by token with `transformers.generate`."""

from typing import Any

import pytest

from lushan.backbones.load import load_backbone
from lushan.inference.generate import encode_prompts, generate
from lushan.inference.generation_settings import GenerationSettings
from tests.generation import DECODER_TYPES, PROMPTS, STOP_IDS, plain_answers
from tests.unit.inference.conftest import MakeSharp

CASES: list[dict[str, Any]] = [
    {"num_beams": 2},
    {"num_beams": 4, "length_penalty": 2.0, "num_return_sequences": 3},
    {"num_beams": 4, "length_penalty": -1.0, "repetition_penalty": 1.2},
    {"num_beams": 4, "length_penalty": 0.0, "early_stopping": True, "num_return_sequences": 4},
    {"num_beams": 3, "early_stopping": "never", "length_penalty": 1.5},
]


@pytest.mark.parametrize("stops", [[2], STOP_IDS], ids=["one stop", "many stops"])
@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("model_type", DECODER_TYPES)
def test_answers_equal_those_of_transformers(
    model_type: str, options: dict[str, Any], stops: list[int], sharp_folder: MakeSharp
) -> None:
    options = {**options, "max_new_tokens": 16}
    backbone = load_backbone(sharp_folder(model_type), purpose="language")
    backbone.plain_model.generation_config.eos_token_id = stops
    found = generate(backbone, PROMPTS, GenerationSettings(**options), max_rows=9)
    expected = [
        answer
        for ids in encode_prompts(backbone, PROMPTS)
        for answer in plain_answers(sharp_folder(model_type), ids, stop_ids=stops, **options)
    ]
    assert [each.token_ids for each in found] == expected


def test_stop_string_ends_every_draft_that_writes_it(sharp_folder: MakeSharp) -> None:
    backbone = load_backbone(sharp_folder("llama"), purpose="language")
    beams: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 12}
    whole = generate(backbone, PROMPTS, GenerationSettings(**beams))
    stop = whole[0].text[4:6]
    found = generate(backbone, PROMPTS, GenerationSettings(**beams, stop_strings=(stop,)))
    assert "stop_string" in {each.ended for each in found}
    assert not any(stop in each.text for each in found)


def test_best_answer_comes_first(sharp_folder: MakeSharp) -> None:
    backbone = load_backbone(sharp_folder("llama"), purpose="language")
    settings = GenerationSettings(num_beams=4, num_return_sequences=4, max_new_tokens=8)
    found = generate(backbone, PROMPTS[:1], settings)
    means = [each.log_likelihood / len(each.token_ids) for each in found]
    assert means == sorted(means, reverse=True)
    assert len(set(means)) == 4
