"""Every supported architecture answers at every token, as its class in transformers does."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForTokenClassification

from lushan.backbones.load import load_backbone
from lushan.backbones.token_models import is_token_model, know_token_model
from lushan.errors import ModelError
from tests.conftest import MakeTiny
from tests.tiny import TINY_TYPES

LABELS = ("O", "B-x", "I-x")


@pytest.mark.parametrize("model_type", TINY_TYPES)
def test_architecture_has_a_token_layer_with_the_labels(
    tiny_folder: MakeTiny, model_type: str
) -> None:
    model = load_backbone(tiny_folder(model_type), purpose="tag", labels=LABELS).plain_model
    assert is_token_model(model)
    assert model.config.id2label == dict(enumerate(LABELS))
    model.config._attn_implementation = "eager"
    logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    assert logits.shape == (1, 3, 3)


def test_model_that_was_made_is_saved_and_loaded_with_equal_outputs(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    folder = tiny_folder("gemma3_text")
    know_token_model(folder)
    know_token_model(folder)
    model = AutoModelForTokenClassification.from_pretrained(folder, num_labels=3).eval()
    model.save_pretrained(tmp_path)
    again = AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    assert type(model).__name__ == "Gemma3TextForTokenClassification"


def test_architecture_without_the_parts_is_refused(tmp_path: Path) -> None:
    AutoConfig.for_model("vit").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="transformers has no token layer for `vit`"):
        know_token_model(tmp_path)


def test_other_models_answer_once(tiny_folder: MakeTiny) -> None:
    folder = tiny_folder("llama")
    assert not is_token_model(load_backbone(folder, purpose="embed").plain_model)
