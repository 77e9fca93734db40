"""A merged folder is what plain transformers and Lushan load, with the same answers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from lushan.inference.generate import generate
from lushan.inference.generation_settings import GenerationSettings
from lushan.model_store.export_program import first_tokens
from lushan.model_store.exports import load_form
from lushan.model_store.merged import load_merged
from lushan.model_store.tuned_model import load_predictor
from lushan.tasks import Preparation
from tests.conftest import MakeTiny
from tests.exported import (
    assert_same_outputs,
    examples_of,
    features_of,
    merged_of,
    own_outputs,
    write_form,
)
from tests.saved import EXAMPLES, save_tuned
from tests.tiny import write_turns


def load_plain(model_class: Any, folder: Path) -> Any:  # noqa: ANN401
    return model_class.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_class_model_gives_equal_logits_in_plain_transformers(
    method: Any,  # noqa: ANN401
    tiny_folder: MakeTiny,
    tmp_path: Path,
) -> None:
    save_tuned(tmp_path / "run", tiny_folder("llama"), method=method)
    merged = load_merged(tmp_path / "run")
    write_form(merged, "hf", tmp_path / "hf")
    model = load_plain(AutoModelForSequenceClassification, tmp_path / "hf")
    predictor = load_predictor(tmp_path / "run")
    features = predictor.encode(EXAMPLES)
    for each, prediction in zip(features, predictor.predict(EXAMPLES), strict=True):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([each.token_ids])).logits[0]
        expected = list(prediction.probabilities.values())
        np.testing.assert_allclose(logits.softmax(-1).numpy(), expected, atol=1e-5)


def test_token_model_gives_equal_logits_in_plain_transformers(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    merged = merged_of(tiny_folder("llama"), "tagging", "head")
    write_form(merged, "hf", tmp_path / "hf")
    model = load_plain(AutoModelForTokenClassification, tmp_path / "hf")
    features = features_of(merged)
    for each, expected in zip(features, own_outputs(merged, features), strict=True):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([each.token_ids])).logits[0]
        np.testing.assert_allclose(logits[list(each.positions or ())].numpy(), expected, atol=1e-5)


def test_language_model_writes_the_same_tokens_in_plain_transformers(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    merged = merged_of(tiny_folder("qwen3"), "completion", "generate")
    backbone = merged.predictor.backbone
    prompts = [each.token_ids for each in features_of(merged)]
    expected = generate(backbone, prompts, GenerationSettings(max_new_tokens=8))
    write_form(merged, "hf", tmp_path / "hf")
    opened = load_form("hf").open_follower(tmp_path / "hf")
    assert opened is not None
    model = load_plain(AutoModelForCausalLM, tmp_path / "hf")
    for prompt, each in zip(prompts, expected, strict=True):
        assert first_tokens(opened[0](prompt, each.token_ids)) == each.token_ids
        ids_1L = torch.tensor([prompt])
        written = model.generate(ids_1L, attention_mask=torch.ones_like(ids_1L), max_new_tokens=8)
        assert written[0, len(prompt) :].tolist() == each.token_ids


def test_program_reads_whole_texts_whatever_the_tokenizer_says(
    own_llama: Path, tmp_path: Path
) -> None:
    cut = Tokenizer.from_file(str(own_llama / "tokenizer.json"))
    expected = cut.encode("a great film", add_special_tokens=False).ids
    assert len(expected) > 2
    cut.enable_truncation(2)
    cut.enable_padding(length=64)
    cut.save(str(own_llama / "tokenizer.json"))
    merged = merged_of(own_llama, "completion", "generate")
    write_form(merged, "hf", tmp_path / "hf")
    opened = load_form("hf").open_follower(tmp_path / "hf")
    assert opened is not None
    assert opened[1]("a great film") == expected


def test_plain_transformers_stops_where_the_chat_template_ends_a_turn(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    base = write_turns(tiny_folder("llama"), tmp_path / "base")
    merged = merged_of(base, "dialogue", "generate")
    with torch.no_grad():  # all tokens are then as likely, and the first, `<pad>`, is written
        merged.predictor.backbone.core.norm.weight.zero_()
    write_form(merged, "hf", tmp_path / "hf")
    assert load_form("hf").read_rules(tmp_path / "hf").stop_ids == (2, 0)
    model = load_plain(AutoModelForCausalLM, tmp_path / "hf")
    ids_1L = torch.tensor([features_of(merged)[0].token_ids])
    written = model.generate(ids_1L, attention_mask=torch.ones_like(ids_1L), max_new_tokens=8)
    assert written[0, ids_1L.shape[1] :].tolist() == [0]


@pytest.mark.parametrize("model_type", ["bert", "modernbert", "gemma3_text"])
@pytest.mark.parametrize("task", ["classification", "tagging", "answering", "relations"])
def test_every_head_is_scored_alike_by_transformers_and_lushan(
    model_type: str, task: str, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    merged = merged_of(tiny_folder(model_type), task, "head")
    write_form(merged, "hf", tmp_path / "hf")
    assert_same_outputs(merged, "hf", tmp_path / "hf")


def test_documents_are_padded_with_the_token_that_transformers_looks_for(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    merged = merged_of(tiny_folder("llama"), "classification", "head")
    merged.predictor.backbone.plain_model.config.pad_token_id = 2
    write_form(merged, "hf", tmp_path / "hf")
    assert_same_outputs(merged, "hf", tmp_path / "hf")


def test_decoder_that_looks_both_ways_is_scored_alike(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    both_ways = Preparation(attention="bidirectional")
    merged = merged_of(tiny_folder("llama"), "tagging", "head", both_ways)
    write_form(merged, "hf", tmp_path / "hf")
    assert_same_outputs(merged, "hf", tmp_path / "hf")


def test_folder_is_loaded_by_lushan_as_a_tuned_model(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    save_tuned(tmp_path / "run", tiny_folder("llama"), method="lora")
    write_form(load_merged(tmp_path / "run"), "hf", tmp_path / "hf")
    first, second = (
        [each.answer for each in load_predictor(tmp_path / name).predict(EXAMPLES)]
        for name in ("run", "hf")
    )
    assert first == second


def test_weights_have_the_precision_of_the_run_and_labels_their_order(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    save_tuned(tmp_path / "run", tiny_folder("llama"), method="lora", precision="bf16")
    write_form(load_merged(tmp_path / "run"), "hf", tmp_path / "hf")
    with safe_open(tmp_path / "hf" / "model.safetensors", "pt") as file:
        assert file.get_tensor("model.layers.0.mlp.up_proj.weight").dtype == torch.bfloat16
    labels = load_form("hf").read_labels(tmp_path / "hf")
    assert labels == ["0", "1", "10", "2", "3", "4", "5", "6", "7", "8", "9"]


def test_chat_template_of_the_run_is_kept_where_the_base_has_none(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    merged = merged_of(tiny_folder("llama"), "dialogue", "generate")
    features_of(merged)  # renders, and so takes the plain template
    write_form(merged, "hf", tmp_path / "hf")
    assert "Assistant:" in (tmp_path / "hf" / "chat_template.jinja").read_text(encoding="utf-8")
    meaning = json.loads((tmp_path / "hf" / "lushan.json").read_text(encoding="utf-8"))
    assert (meaning["task"], meaning["adapter"]) == ("dialogue", "full")
    assert len(examples_of("dialogue")) > 0
