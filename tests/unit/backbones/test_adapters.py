"""What of a model is trained with each method, and what is refused."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertModel

from lushan.backbones.adapters import Method, attach, num_frozen_layers, trained_parts
from lushan.backbones.load import Backbone, Purpose, load_backbone
from lushan.data.batching import pack
from lushan.errors import SettingError
from lushan.records import Features
from tests.conftest import MakeTiny
from tests.tiny import ENCODER_TYPES, TINY_TYPES, write_class_model, write_tiny

DECODERS = tuple(each for each in TINY_TYPES if each not in ENCODER_TYPES)
LAST_LAYER = {
    "llama": r"model\.layers\.1\.|model\.norm\.|score\.",
    "gpt2": r"transformer\.h\.1\.|transformer\.ln_f\.|score\.",
    "gpt_neo": r"transformer\.h\.1\.|transformer\.ln_f\.|score\.",
    "gpt_neox": r"gpt_neox\.layers\.1\.|gpt_neox\.final_layer_norm\.|score\.",
    "qwen2": r"model\.layers\.1\.|model\.norm\.|score\.",
    "qwen3": r"model\.layers\.1\.|model\.norm\.|score\.",
    "gemma3_text": r"model\.layers\.1\.|model\.norm\.|score\.",
    "mistral": r"model\.layers\.1\.|model\.norm\.|score\.",
    "bert": r"bert\.encoder\.layer\.1\.|bert\.pooler\.|classifier\.",
    "modernbert": r"model\.layers\.1\.|model\.final_norm\.|head\.|classifier\.",
}
NEW_LAYER = {
    **dict.fromkeys(DECODERS, r"score\."),
    "bert": r"classifier\.",
    "modernbert": r"head\.|classifier\.",  # the folder has no `head`
    **dict.fromkeys(("albert", "electra", "roberta"), r"classifier\."),
    "distilbert": r"(pre_)?classifier\.",
}


def load(folder: Path, purpose: Purpose = "classify") -> Backbone:
    return load_backbone(folder, purpose=purpose, labels=("no", "yes"))


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, each in model.named_parameters() if each.requires_grad}


def names_like(model: nn.Module, pattern: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if re.match(pattern, name)}


def write_bert_without_pooler(source: Path, folder: Path) -> Path:
    BertModel.from_pretrained(source, add_pooling_layer=False).save_pretrained(folder)
    load(source).tokenizer.save(folder)
    return folder


@torch.inference_mode()
def hidden_states(backbone: Backbone, lengths: Sequence[int] = (3, 12)) -> Tensor:
    features = [Features(tuple(range(5, 5 + n)), str(n), 0) for n in lengths]
    return backbone.hidden_states(pack(features))


@pytest.mark.parametrize("model_type", TINY_TYPES)
def test_full_trains_every_weight(model_type: str, tiny_folder: MakeTiny) -> None:
    backbone = load(tiny_folder(model_type))
    backbone.model.requires_grad_(requires_grad=False)
    attach(backbone, method="full")
    assert trained_names(backbone.model) == names_like(backbone.model, "")


@pytest.mark.parametrize("model_type", NEW_LAYER)
def test_head_trains_what_is_new(model_type: str, tiny_folder: MakeTiny) -> None:
    backbone = load(tiny_folder(model_type))
    attach(backbone, method="head")
    expected = names_like(backbone.model, NEW_LAYER[model_type])
    assert trained_names(backbone.model) == expected != set()


def test_head_trains_a_pooler_that_the_folder_lacks(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    backbone = load(write_bert_without_pooler(tiny_folder("bert"), tmp_path / "a"))
    attach(backbone, method="head")
    expected = names_like(backbone.model, r"bert\.pooler\.|classifier\.")
    assert trained_names(backbone.model) == expected


@pytest.mark.parametrize("model_type", TINY_TYPES)
def test_top_trains_the_last_layer_and_what_is_behind_it(
    model_type: str, tiny_folder: MakeTiny
) -> None:
    backbone = load(tiny_folder(model_type))
    attach(backbone, method="top", layers=1)
    expected = names_like(backbone.model, LAST_LAYER[model_type])
    assert trained_names(backbone.model) == expected


@pytest.mark.parametrize(
    ("sizes", "behind"),
    [
        ({}, "final_layer_norm"),
        ({"word_embed_proj_dim": 8, "do_layer_norm_before": False}, "project_out"),
    ],
)
def test_top_trains_what_a_pass_comes_to_behind_the_layers_wherever_they_are_kept(
    sizes: dict[str, object], behind: str, tmp_path: Path
) -> None:
    write_tiny("opt", tmp_path, ffn_dim=32, **sizes)
    backbone = load(tmp_path)
    attach(backbone, method="top", layers=1)
    expected = rf"model\.decoder\.layers\.1\.|model\.decoder\.{behind}\.|score\."
    assert trained_names(backbone.model) == names_like(backbone.model, expected)


def test_top_is_refused_where_layers_share_their_weights(tiny_folder: MakeTiny) -> None:
    with pytest.raises(SettingError, match=r"`--adapter top:1`: the 2 layers .* share their weig"):
        attach(load(tiny_folder("albert")), method="top", layers=1)


@pytest.mark.parametrize("model_type", ["albert", "llama"])
def test_layers_are_frozen_as_often_as_a_text_passes_them(
    model_type: str, tiny_folder: MakeTiny
) -> None:
    backbone = load(tiny_folder(model_type))
    assert num_frozen_layers(backbone, method="head", layers=1) == 2


@pytest.mark.parametrize("purpose", ["classify", "language"])
@pytest.mark.parametrize("model_type", DECODERS)
def test_top_with_all_layers_leaves_embedding_and_vocabulary_as_they_are(
    model_type: str, purpose: Purpose, tiny_folder: MakeTiny
) -> None:
    backbone = load(tiny_folder(model_type), purpose)
    attach(backbone, method="top", layers=2)
    frozen = names_like(backbone.model, "") - trained_names(backbone.model)
    embeddings = {
        f"{name}.weight"
        for name, each in backbone.model.named_modules()
        if isinstance(each, nn.Embedding)
    }
    assert embeddings <= frozen <= {*embeddings, "lm_head.weight", "embed_out.weight"}


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text", "bert", "modernbert"])
def test_lora_trains_the_token_layer_beside_its_adapters(
    model_type: str, tiny_folder: MakeTiny
) -> None:
    backbone = load(tiny_folder(model_type), "tag")
    attach(backbone, method="lora", rank=4)
    trained = trained_names(backbone.model)
    layer = {name for name in trained if "lora_" not in name}
    assert layer
    assert all(".modules_to_save." in name for name in layer)
    assert any(name.endswith(("score.modules_to_save.default.weight", "classifier.modules_to_save.default.weight")) for name in layer)  # fmt: skip
    assert not any("score" in name or "classifier" in name for name in trained - layer)


@pytest.mark.parametrize("model_type", ["llama", "bert", "gpt_neo"])
def test_more_layers_than_there_are_is_refused(model_type: str, tiny_folder: MakeTiny) -> None:
    with pytest.raises(SettingError, match=r"`--adapter top:3`: the model has only 2 layers"):
        attach(load(tiny_folder(model_type)), method="top", layers=3)


@pytest.mark.parametrize("model_type", DECODERS)
def test_head_without_a_class_layer_is_refused(model_type: str, tiny_folder: MakeTiny) -> None:
    with pytest.raises(SettingError, match="`--adapter head` has nothing to train with `--answer"):
        attach(load(tiny_folder(model_type), "language"), method="head")


@pytest.mark.parametrize("model_type", NEW_LAYER)
def test_lora_trains_its_matrices_and_what_is_new(model_type: str, tiny_folder: MakeTiny) -> None:
    backbone = load(tiny_folder(model_type))
    attach(backbone, method="lora", rank=3)
    new = rf"base_model\.model\.({NEW_LAYER[model_type]}).*modules_to_save\."
    adapters = {name for name, _ in backbone.model.named_parameters() if ".lora_" in name}
    names = trained_names(backbone.model)
    assert names == adapters | names_like(backbone.model, new)
    assert names > adapters
    ranks = {backbone.model.get_parameter(name).shape[".lora_B." in name] for name in adapters}
    assert ranks == {3}


def test_lora_leaves_a_layer_alone_that_is_trained_whole(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    source = tiny_folder("distilbert")
    backbone = load(write_class_model(source, tmp_path / "tuned", ("no", "yes")))
    attach(backbone, method="lora", rank=3)
    names = {name for name in trained_names(backbone.model) if "classifier." in name}
    assert {name.split(".")[2] for name in names} == {"pre_classifier", "classifier"}
    assert all(".modules_to_save." in name and ".lora_" not in name for name in names)


def test_lora_is_in_every_matrix_of_the_layers_but_not_in_the_vocabulary(
    tiny_folder: MakeTiny,
) -> None:
    backbone = load(tiny_folder("llama"), "language")
    attach(backbone, method="lora")
    names = trained_names(backbone.model)
    adapted = {name.partition(".lora_")[0].removeprefix("base_model.model.") for name in names}
    parts = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert {each.rpartition(".")[2] for each in adapted} == set(parts)
    assert len(adapted) == 2 * len(parts)


@pytest.mark.parametrize("model_type", TINY_TYPES)
def test_lora_changes_nothing_before_training(model_type: str, tiny_folder: MakeTiny) -> None:
    backbone = load(tiny_folder(model_type))
    before = hidden_states(backbone)
    attach(backbone, method="lora")
    backbone.model.eval()
    assert torch.equal(hidden_states(backbone), before)


def test_lora_adds_the_product_of_its_matrices_times_alpha_over_rank(
    tiny_folder: MakeTiny,
) -> None:
    plain, tuned = load(tiny_folder("llama")), load(tiny_folder("llama"))
    attach(tuned, method="lora", rank=2, alpha=6.0)
    layer = tuned.core.layers[0].mlp.up_proj
    inner, outer = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    nn.init.normal_(outer)
    tuned.model.eval()
    with torch.no_grad():
        plain.core.layers[0].mlp.up_proj.weight += 6.0 / 2 * outer @ inner
    torch.testing.assert_close(hidden_states(tuned), hidden_states(plain), rtol=1e-4, atol=1e-5)


def test_lora_dropout_is_for_training_only(tiny_folder: MakeTiny) -> None:
    backbone = load(tiny_folder("llama"))
    attach(backbone, method="lora", dropout=0.5)
    for name, weight in backbone.model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(weight)
    backbone.model.eval()
    assert torch.equal(hidden_states(backbone), hidden_states(backbone))
    backbone.model.train()
    assert not torch.equal(hidden_states(backbone), hidden_states(backbone))


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_lora_matrices_have_the_precision_of_the_weights_and_the_class_layer_float32(
    precision: str, tiny_folder: MakeTiny
) -> None:
    backbone = load_backbone(
        tiny_folder("llama"),
        purpose="classify",
        labels=("no", "yes"),
        precision="bf16" if precision == "bf16" else "fp32",
    )
    attach(backbone, method="lora")
    model = backbone.model
    dtypes = {
        name.partition(".default")[0].rpartition(".")[2]: model.get_parameter(name).dtype
        for name in trained_names(model)
    }
    expected = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    assert dtypes == {"lora_A": expected, "lora_B": expected, "modules_to_save": torch.float32}


def test_adapter_file_holds_what_its_base_lacks(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    backbone = load(write_bert_without_pooler(tiny_folder("bert"), tmp_path / "base"))
    attach(backbone, method="lora")
    backbone.model.save_pretrained(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    kept = {name.removeprefix("base_model.model.") for name in saved if ".lora_" not in name}
    assert kept == set(backbone.fresh_weights)
    assert len(kept) == 4


@pytest.mark.parametrize(
    ("method", "num_trained"),
    # A layer: 16 x 16 twice (query, output), 16 x 8 twice (key, value), 16 x 32 three times, two norms; one norm behind.
    [("head", 32), ("top", 32 + 2 * 256 + 2 * 128 + 3 * 512 + 2 * 16 + 16)],
)
def test_trained_and_frozen_weights_are_counted(
    method: Method, num_trained: int, tiny_folder: MakeTiny
) -> None:
    backbone = load(tiny_folder("llama"))
    attach(backbone, method=method, layers=1)
    counts = trained_parts(backbone.model)
    total = sum(weight.numel() for weight in backbone.model.parameters())
    assert counts == {"trained": num_trained, "frozen": total - num_trained}


def test_lora_leaves_the_pretrained_weights_frozen_and_counts_none_twice(
    tiny_folder: MakeTiny,
) -> None:
    backbone = load(tiny_folder("llama"))
    num_pretrained = sum(weight.numel() for weight in backbone.core.parameters())
    attach(backbone, method="lora")
    counts = trained_parts(backbone.model)
    trained, _ = backbone.model.get_nb_trainable_parameters()  # PEFT's own count
    assert counts == {"trained": trained, "frozen": num_pretrained}
