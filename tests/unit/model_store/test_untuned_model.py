"""A pretrained model is asked as it is."""

from dataclasses import replace
from pathlib import Path

import pytest

from lushan.backbones.load import load_backbone
from lushan.backbones.packed import weight_bytes
from lushan.errors import ModelError
from lushan.model_store import resident as resident_module
from lushan.model_store import shared_base
from lushan.model_store.resident import Resident
from lushan.model_store.untuned_model import MOST_ANSWER_TOKENS, untuned_predictor
from tests.conftest import MakeTiny
from tests.unit.backbones.test_tokenizer import change


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


def test_base_model_ends_before_it_speaks_for_the_user_and_one_with_a_template_where_it_wants(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    own = change(tiny_folder("llama"), tmp_path / "own", chat_template="{{ messages }}")
    for folder, expected in ((tiny_folder("llama"), ("\n\nUser:",)), (own, ())):
        backbone = load_backbone(folder, purpose="language")
        assert untuned_predictor(backbone, digest="").state.stop_strings == expected


@pytest.mark.parametrize("model_type", ["gpt_neo", "bert"])
def test_model_that_cannot_share_is_counted_and_used_alone(
    model_type: str, tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident, folder = Resident(weights="fp32"), tiny_folder(model_type)
    model = resident.model(resident.load_untuned(folder, name="alone"))
    assert (model.base, model.layers) == (None, None)
    assert model.why_alone
    assert resident.num_bytes == model.num_bytes == weight_bytes(model.predictor.backbone.model)
    has_vocabulary = model.predictor.backbone.plain_model.get_output_embeddings() is not None
    assert has_vocabulary is (model_type == "gpt_neo")
    small = Resident(weights="fp32", limit_bytes=1000)
    with pytest.raises(ModelError, match="`alone` needs"):
        small.load_untuned(folder, name="alone")
    # What was predicted may have been too little.
    for module in (resident_module, shared_base):
        monkeypatch.setattr(module, "predicted_bytes", lambda *_: 0)
    with pytest.raises(ModelError, match="`alone` needs"):
        small.load_untuned(folder, name="alone")
    assert small.models == ()
