"""Merging an adapter changes no answer, and never adds to one matrix what was meant for another."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from lushan.backbones.load import Backbone, load_backbone
from lushan.backbones.quiet import quiet_transformers
from lushan.model_store.merged import load_merged, merge_adapter
from lushan.model_store.tuned_model import load_predictor
from tests.conftest import MakeTiny
from tests.saved import EXAMPLES, save_tuned

IDS_1T = torch.arange(3, 60)[None]


def tied_backbone(tiny_folder: MakeTiny, folder: Path) -> Backbone:
    """Load a tiny llama whose input and output share one matrix."""
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"))
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_folder("llama") / name).read_bytes())
    return load_backbone(folder, purpose="language")


def adapt(backbone: Backbone, **options: Any) -> Any:  # noqa: ANN401
    """Put a random adapter around the model, with PEFT alone."""
    from peft import LoraConfig, TaskType, get_peft_model

    backbone.core.config._attn_implementation = "eager"
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=4, init_lora_weights=False, **options)
    with quiet_transformers():
        model: Any = get_peft_model(backbone.model, config).eval()
    backbone.model = model
    return model


def logits_of(model: Any) -> torch.Tensor:  # noqa: ANN401
    with torch.inference_mode():
        return model(input_ids=IDS_1T).logits


@pytest.mark.parametrize("method", ["lora", "full"])
def test_merged_model_answers_as_the_run(
    method: Any,  # noqa: ANN401
    tiny_folder: MakeTiny,
    tmp_path: Path,
) -> None:
    save_tuned(tmp_path / "run", tiny_folder("llama"), method=method)
    merged = load_merged(tmp_path / "run")
    assert not any("lora" in name for name, _ in merged.predictor.backbone.model.named_modules())
    assert merged.notes == ()
    own = load_predictor(tmp_path / "run").predict(EXAMPLES)
    for ours, theirs in zip(own, merged.predictor.predict(EXAMPLES), strict=True):
        assert ours.answer == theirs.answer
        first, second = (list(each.probabilities.values()) for each in (ours, theirs))
        np.testing.assert_allclose(first, second, atol=1e-5)


def test_model_that_was_saved_in_bf16_is_merged_in_float32(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    save_tuned(tmp_path / "run", tiny_folder("llama"), method="lora", precision="bf16")
    merged = load_merged(tmp_path / "run")
    assert {each.dtype for each in merged.predictor.backbone.model.parameters()} == {torch.float32}
    assert merged.meaning.precision == "bf16"


def test_shared_matrix_stays_shared_where_no_adapter_touches_it(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    backbone = tied_backbone(tiny_folder, tmp_path)
    before = logits_of(adapt(backbone, target_modules=["q_proj", "down_proj"]))
    assert merge_adapter(backbone) == []
    model = backbone.plain_model
    torch.testing.assert_close(logits_of(model), before, rtol=1e-4, atol=1e-5)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"target_modules": ["lm_head", "q_proj"]}, "the output embedding"),
        ({"target_modules": ["embed_tokens"]}, "the input embedding"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "the output embedding"),
    ],
    ids=["output", "input", "saved"],
)
def test_shared_matrix_that_an_adapter_changes_is_parted_told_and_saved_apart(
    options: dict[str, Any], named: str, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    backbone = tied_backbone(tiny_folder, tmp_path)
    before = logits_of(adapt(backbone, **options))
    (note,) = merge_adapter(backbone)
    assert named in note
    assert "adds 5,120 weights" in note
    torch.testing.assert_close(logits_of(backbone.plain_model), before, rtol=1e-4, atol=1e-5)
    backbone.core.config._attn_implementation = None
    backbone.model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits_of(again), before, rtol=1e-4, atol=1e-5)
