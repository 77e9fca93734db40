"""Loading: what is refused, what is drawn anew, precision, and the way in which documents are kept apart."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from lushan.backbones import load
from lushan.backbones.load import (
    Backbone,
    PackingMode,
    cast_weights,
    load_backbone,
)
from lushan.data.batching import pack
from lushan.errors import ModelError
from lushan.records import Features
from tests.conftest import MakeTiny
from tests.tiny import (
    ENCODER_TYPES,
    OTHER_ENCODER_TYPES,
    TINY_TYPES,
    TINY_VOCABULARY,
    write_class_model,
)

LENGTHS = (1, 2, 9, 13, 30, 60, 70)
"""Together more than the 128 tokens that the tiny models have positions for."""
LABELS = ("bad", "fine", "good")
GEMMA2 = {
    "vocab_size": TINY_VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "attn_logit_softcapping": 0.05,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Caps the scores of its attention, which the packed attention does not know."""


def edit_config(folder: Path, **settings: object) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | settings), encoding="utf-8")


def write_gemma2(tokenizer_of: Path, folder: Path, *, sliding_window: int) -> Path:
    torch.manual_seed(0)
    config = AutoConfig.for_model("gemma2", **GEMMA2, sliding_window=sliding_window)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    shutil.copy(tokenizer_of / "tokenizer.json", folder)
    shutil.copy(tokenizer_of / "tokenizer_config.json", folder)
    return folder


def random_features(lengths: Sequence[int] = LENGTHS) -> list[Features]:
    generator = torch.Generator().manual_seed(1)
    return [
        Features(
            tuple(torch.randint(3, 300, (length,), generator=generator).tolist()), str(index), index
        )
        for index, length in enumerate(lengths)
    ]


@torch.inference_mode()
def run_alone(folder: Path, features: Sequence[Features]) -> Tensor:
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    return torch.cat([
        model(input_ids=torch.tensor([each.token_ids])).last_hidden_state[0] for each in features
    ])


@torch.inference_mode()
def assert_same_as_alone(backbone: Backbone, folder: Path) -> None:
    features = random_features()
    hidden_TD = backbone.hidden_states(pack(features))
    torch.testing.assert_close(hidden_TD, run_alone(folder, features), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", TINY_TYPES)
def test_documents_are_packed_where_the_attention_can_be_replaced(
    model_type: str, tiny_folder: MakeTiny
) -> None:
    modes: dict[str, PackingMode] = {"gpt_neo": "masked"}
    backbone = load_backbone(tiny_folder(model_type), purpose="embed")
    assert backbone.packing_mode == modes.get(model_type, "packed")
    assert not backbone.model.training


@pytest.mark.parametrize("model_type", OTHER_ENCODER_TYPES)
def test_positions_begin_where_those_of_the_architecture_do(
    model_type: str, tiny_folder: MakeTiny
) -> None:
    backbone = load_backbone(tiny_folder(model_type), purpose="embed")
    modes: dict[str, PackingMode] = {"mpnet": "masked", "deberta-v2": "alone"}
    assert backbone.packing_mode == modes.get(model_type, "packed")
    num_lost = {"mpnet": 2, "camembert": 1, "roberta": 1, "xlm-roberta": 1}.get(model_type, 0)
    assert backbone.facts.context_tokens == 128 - num_lost
    assert_same_as_alone(backbone, tiny_folder(model_type))


def test_positions_that_are_not_known_are_refused(
    tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lushan.backbones.inspect._COUNTING_BEHIND_PADDING", frozenset())
    with pytest.raises(ModelError, match="`roberta` models count positions in a way"):
        load_backbone(tiny_folder("roberta"), purpose="embed")


@pytest.mark.parametrize(("sliding_window", "mode"), [(4096, "masked"), (8, "alone")])
def test_attention_with_a_cap_is_exact_under_a_mask_or_alone(
    sliding_window: int, mode: PackingMode, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    folder = write_gemma2(tiny_folder("llama"), tmp_path / "gemma2", sliding_window=sliding_window)
    backbone = load_backbone(folder, purpose="embed")
    assert backbone.packing_mode == mode
    assert_same_as_alone(backbone, folder)


def test_window_longer_than_the_probe_is_kept_under_a_mask(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    folder = write_gemma2(tiny_folder("llama"), tmp_path / "gemma2", sliding_window=40)
    backbone = load_backbone(folder, purpose="embed")
    assert backbone.packing_mode == "masked"
    assert_same_as_alone(backbone, folder)


@pytest.mark.parametrize("mode", ["masked", "alone"])
def test_more_documents_than_positions_are_as_alone_in_transformers(
    mode: PackingMode, tiny_folder: MakeTiny
) -> None:
    backbone = load_backbone(tiny_folder("gpt_neo"), purpose="embed")
    backbone.packing_mode = mode
    assert_same_as_alone(backbone, tiny_folder("gpt_neo"))


@pytest.mark.parametrize("model_type", ENCODER_TYPES)
def test_encoder_cannot_write(model_type: str, tiny_folder: MakeTiny) -> None:
    with pytest.raises(ModelError, match=r"is an encoder: .* Use `--answer head`"):
        load_backbone(tiny_folder(model_type), purpose="language")


def test_decoder_that_lost_its_output_weights_cannot_write(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    folder = write_class_model(tiny_folder("llama"), tmp_path / "tuned", LABELS)
    with pytest.raises(ModelError, match=r"`tuned` has no weights .* Use `--answer head`"):
        load_backbone(folder, purpose="language")
    tied = write_class_model(tiny_folder("gpt2"), tmp_path / "tied", LABELS)
    assert load_backbone(tied, purpose="language").fresh_weights == ()


def test_a_packing_that_was_proved_is_not_proved_again(
    tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_backbone(tiny_folder("llama"), purpose="embed")
    monkeypatch.setattr(load, "_first_exact", lambda *_: pytest.fail("it was proved before"))
    assert load_backbone(tiny_folder("llama"), purpose="embed").packing_mode == "packed"


@pytest.mark.parametrize("changed", ["model", "code"])
def test_another_model_or_other_code_is_proved_anew(
    changed: str, own_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_backbone(own_llama, purpose="embed")
    if changed == "model":
        edit_config(own_llama, rms_norm_eps=0.5)
    else:
        monkeypatch.setattr(load, "_code_of_packing", lambda: "other code")
    monkeypatch.setattr(load, "_first_exact", lambda _, modes: "masked" in modes and "masked")
    assert load_backbone(own_llama, purpose="embed").packing_mode == "masked"


def test_a_packing_that_failed_is_recalled_with_eager_attention(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    folder = write_gemma2(tiny_folder("llama"), tmp_path / "gemma2", sliding_window=40)
    for _ in range(2):
        backbone = load_backbone(folder, purpose="embed")
        assert backbone.packing_mode == "masked"
        assert_same_as_alone(backbone, folder)


def test_class_layer_for_another_number_of_labels_is_drawn_anew(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    folder = write_class_model(tiny_folder("llama"), tmp_path / "three", LABELS)
    backbone = load_backbone(folder, purpose="classify", labels=("yes", "no"))
    assert backbone.fresh_weights == ("score.weight",)
    assert backbone.model.score.weight.shape == (2, 16)
    assert backbone.model.config.id2label == {0: "yes", 1: "no"}


def test_weights_that_the_folder_lacks_are_named_and_drawn_from_the_seed(
    tiny_folder: MakeTiny,
) -> None:
    one, same, other = (
        load_backbone(tiny_folder("llama"), purpose="classify", labels=LABELS, seed=seed)
        for seed in (1, 1, 2)
    )
    assert one.fresh_weights == ("score.weight",)
    assert torch.equal(one.model.score.weight, same.model.score.weight)
    assert not torch.equal(one.model.score.weight, other.model.score.weight)
    assert one.model.score.weight.shape == (3, 16)
    assert torch.equal(one.core.norm.weight, other.core.norm.weight)


def test_language_model_has_no_fresh_weights(tiny_folder: MakeTiny) -> None:
    assert load_backbone(tiny_folder("gpt_neo"), purpose="language").fresh_weights == ()


@pytest.mark.parametrize(
    ("multi_label", "problem"),
    [(False, "single_label_classification"), (True, "multi_label_classification")],
)
def test_labels_stand_in_the_configuration(
    multi_label: bool, problem: str, tiny_folder: MakeTiny
) -> None:
    config = load_backbone(
        tiny_folder("llama"), purpose="classify", labels=LABELS, multi_label=multi_label
    ).model.config
    assert config.id2label == {0: "bad", 1: "fine", 2: "good"}
    assert config.label2id == {"bad": 0, "fine": 1, "good": 2}
    assert config.problem_type == problem


@pytest.mark.parametrize("model_type", ["llama", "bert", "modernbert"])
def test_bf16_is_for_all_weights_but_the_class_layer_and_for_no_buffer(
    model_type: str, tiny_folder: MakeTiny
) -> None:
    model = load_backbone(
        tiny_folder(model_type), purpose="classify", labels=LABELS, precision="bf16"
    ).model
    dtypes = {name: each.dtype for name, each in model.named_parameters()}
    exact = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert exact == {name for name in dtypes if re.match(r"(score|classifier)\.", name)}
    assert set(dtypes.values()) == {torch.float32, torch.bfloat16}
    assert torch.bfloat16 not in {buffer.dtype for buffer in model.buffers()}


def test_casting_back_restores_the_type(tiny_folder: MakeTiny) -> None:
    model = load_backbone(tiny_folder("llama"), purpose="embed", precision="bf16").model
    cast_weights(model, torch.float32)
    assert {each.dtype for each in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("configured", "expected"), [(0, 0), (5, 5), (None, 2), (-1, 2)])
def test_padding_is_the_configured_token_or_else_the_stop_token(
    configured: int | None, expected: int, own_llama: Path
) -> None:
    edit_config(own_llama, pad_token_id=configured)
    backbone = load_backbone(own_llama, purpose="classify", labels=LABELS)
    assert backbone.model.config.pad_token_id == expected


def test_padding_token_beyond_the_vocabulary_is_told(own_llama: Path) -> None:
    edit_config(own_llama, pad_token_id=TINY_VOCABULARY)
    with pytest.raises(ModelError, match=r"spoilt` cannot be loaded: Padding_idx"):
        load_backbone(own_llama, purpose="embed")


def test_backbone_is_where_its_weights_are(tiny_folder: MakeTiny) -> None:
    backbone = load_backbone(tiny_folder("llama"), purpose="embed")
    plain: Any = backbone.plain_model
    assert backbone.device == torch.device("cpu")
    assert plain is backbone.model
    assert backbone.core is plain.base_model


def test_steps_in_bf16_are_filled_up_and_give_what_unfilled_ones_do(
    tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone(
        tiny_folder("llama"), purpose="classify", labels=("a", "b"), precision="bf16"
    )
    documents = pack([Features((5, 6, 7, 8, 9), "", 0), Features(tuple(range(3, 19)), "", 1)])
    seen: list[int] = []
    backbone.layers[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    backbone.model.train()
    found: list[list[Tensor]] = []
    for tile in (8, 1):
        monkeypatch.setattr(load, "_TILE_TOKENS", tile)
        backbone.model.zero_grad()
        states_TD = backbone.hidden_states(documents)
        states_TD.float().square().mean().backward()
        gradients = [each.grad for each in backbone.core.parameters() if each.grad is not None]
        found.append([states_TD.detach(), *gradients])
    backbone.model.eval()
    with torch.inference_mode():
        backbone.hidden_states(documents)
    assert seen == [24, 21, 21]
    for filled, unfilled in zip(*found, strict=True):
        difference = (filled.float() - unfilled.float()).norm()
        assert difference <= 0.01 * unfilled.float().norm()
