"""A pretrained model is asked as it is."""

from dataclasses import replace

from lushan.backbones.load import load_backbone
from lushan.model_store.untuned_model import MOST_ANSWER_TOKENS, untuned_predictor
from tests.conftest import MakeTiny


def test_half_the_context_is_left_to_what_is_asked_but_answers_are_bounded(
    tiny_folder: MakeTiny,
) -> None:
    backbone = load_backbone(tiny_folder("llama"), purpose="language")
    predictor = untuned_predictor(backbone, digest="0123456789abcdef")
    assert predictor.version == "0123456789ab"
    assert (predictor.generation.max_new_tokens, predictor.asked_limit.max_tokens) == (64, 64)
    assert predictor.writes
    backbone.facts = replace(backbone.facts, context_tokens=100_000)
    wide = untuned_predictor(backbone, digest="")
    assert wide.generation.max_new_tokens == MOST_ANSWER_TOKENS
