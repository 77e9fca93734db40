"""Facts of a model folder, and why a folder cannot be used."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from lushan.backbones.inspect import describe, is_head, read_shapes
from lushan.errors import ModelError
from tests.conftest import MakeTiny
from tests.tiny import TINY_TYPES, write_class_model


def write_config(folder: Path, **values: object) -> Path:
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def changed_copy(source: Path, target: Path, **values: object) -> Path:
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    return write_config(target, **{**config, **values})


@pytest.mark.parametrize("model_type", TINY_TYPES)
def test_describe_agrees_with_the_loaded_model(model_type: str, tiny_folder: MakeTiny) -> None:
    facts = describe(tiny_folder(model_type))
    is_encoder = model_type in ("bert", "modernbert")
    loader = AutoModel if is_encoder else AutoModelForCausalLM
    model = loader.from_pretrained(tiny_folder(model_type))
    assert facts.model_type == model_type
    assert facts.family == ("encoder" if is_encoder else "decoder")
    assert (facts.num_layers, facts.width) == (2, 16)
    assert (facts.vocabulary_size, facts.context_tokens) == (320, 128)
    assert facts.num_parameters == sum(each.numel() for each in model.parameters())


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "longrope", "original_max_position_embeddings": 64},
        {"type": "su", "original_max_position_embeddings": 64},
    ],
)
def test_context_ends_where_all_positions_would_turn_otherwise(
    rope: dict[str, object], tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    folder = changed_copy(tiny_folder("llama"), tmp_path, rope_parameters=rope)
    assert describe(folder).context_tokens == 64


def test_context_of_an_encoder_without_a_padding_token_is_told(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    folder = changed_copy(tiny_folder("roberta"), tmp_path, pad_token_id=None)
    assert describe(folder).context_tokens == 126


def test_describe_counts_a_shared_matrix_once(tiny_folder: MakeTiny) -> None:
    assert describe(tiny_folder("gpt2")).tied
    assert not describe(tiny_folder("gpt_neox")).tied


def test_describe_counts_a_matrix_that_is_stored_twice_once(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    folder = changed_copy(tiny_folder("gpt2"), tmp_path)
    state = load_file(folder / "model.safetensors")
    state["lm_head.weight"] = state["transformer.wte.weight"].clone()
    save_file(state, folder / "model.safetensors")
    assert describe(folder).num_parameters == describe(tiny_folder("gpt2")).num_parameters


def test_describe_counts_the_weights_of_experts(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    folder = changed_copy(tiny_folder("llama"), tmp_path)
    assert describe(folder).num_expert_weights == 0
    state = load_file(folder / "model.safetensors")
    for name in (
        "experts.gate_up_proj",
        "experts.0.up_proj.weight",
        "shared_experts.up_proj.weight",
    ):
        state[f"model.layers.0.mlp.{name}"] = torch.zeros(2, 3, 4)
    save_file(state, folder / "model.safetensors")
    assert describe(folder).num_expert_weights == 48


def test_describe_knows_embeddings_of_another_width_and_layers_that_are_shared(
    tiny_folder: MakeTiny,
) -> None:
    facts = describe(tiny_folder("albert"))
    state = load_file(tiny_folder("albert") / "model.safetensors")
    (embedding,) = (w for name, w in state.items() if name.endswith("word_embeddings.weight"))
    assert embedding.shape[1] != facts.width
    assert facts.num_embedding_weights == embedding.numel()
    inner = facts.num_parameters - embedding.numel()
    assert facts.num_passed_weights == inner * facts.num_layers
    llama = describe(tiny_folder("llama"))
    assert llama.num_embedding_weights == llama.vocabulary_size * llama.width
    assert llama.num_passed_weights == llama.num_parameters - llama.num_embedding_weights


def test_describe_leaves_stored_constants_out(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    folder = changed_copy(tiny_folder("gpt2"), tmp_path)
    state = load_file(folder / "model.safetensors")
    state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 128, 128)
    save_file(state, folder / "model.safetensors")
    assert describe(folder).num_parameters == describe(tiny_folder("gpt2")).num_parameters


def test_describe_reads_an_architecture_outside_the_tested_list(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    folder = changed_copy(tiny_folder("llama"), tmp_path, model_type="cohere")
    assert describe(folder).family == "decoder"


def test_describe_sees_a_chat_template(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    folder = changed_copy(tiny_folder("llama"), tmp_path)
    assert not describe(folder).has_chat_template
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert describe(folder).has_chat_template


def test_describe_reads_split_weights(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"))
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    whole, parts = describe(tiny_folder("llama")), describe(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert parts.num_parameters == whole.num_parameters


def test_describe_names_a_missing_part(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"))
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    part = sorted(tmp_path.glob("*.safetensors"))[1]
    part.unlink()
    with pytest.raises(ModelError, match=f"incomplete: {part.name}"):
        describe(tmp_path)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "gemma3", "vision_config": {}}, "pictures or sound"),
        (
            {"model_type": "llama", "quantization_config": {"quant_method": "gptq"}},
            r"quantised \(gptq\)",
        ),
        ({"model_type": "mamba"}, "carries a state"),
        ({"model_type": "secret", "auto_map": {"AutoModel": "x.Y"}}, "Python code from its own"),
        ({"model_type": "secret"}, "`secret`.* knows no causal language model"),
        ({"architectures": ["X"]}, "names no `model_type`"),
    ],
)
def test_describe_says_why_a_model_cannot_be_used(
    values: dict[str, object], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=reason):
        describe(write_config(tmp_path, **values))


def test_describe_refuses_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere` does not exist.*`lushan models list`"):
        describe(tmp_path / "nowhere")


def test_describe_refuses_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no `config.json`"):
        describe(tmp_path)


def test_describe_names_the_base_of_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "big"}')
    with pytest.raises(ModelError, match="adapter for `big`"):
        describe(tmp_path)


@pytest.mark.parametrize("name", ["model.gguf", "folder/model.gguf"])
def test_describe_tells_how_to_convert_gguf(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.touch()
    place = file if name == "model.gguf" else file.parent
    with pytest.raises(ModelError, match=r"models get NAME --source .*model.gguf"):
        describe(place)


def test_describe_refuses_pickled_weights(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    folder = changed_copy(tiny_folder("llama"), tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only as `pytorch_model.bin`.*convert it once"):
        describe(folder)


def test_describe_refuses_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no weights; expected `model.safetensors`"):
        describe(write_config(tmp_path, model_type="llama"))


def test_describe_refuses_weights_that_are_cut_off(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    folder = changed_copy(tiny_folder("llama"), tmp_path)
    weights = folder / "model.safetensors"
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=f"cut off: expected {size:,} bytes, got {size - 100:,}"):
        describe(folder)


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\x04" + b"\x00" * 7 + b"nope"])
def test_read_shapes_refuses_what_is_no_safetensors(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"header is cut off|no safetensors file"):
        read_shapes(file)


def test_describe_refuses_a_configuration_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"config.json` is not valid JSON"):
        describe(tmp_path)


def test_describe_names_a_missing_size(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    folder = changed_copy(tiny_folder("llama"), tmp_path, hidden_size=None)
    with pytest.raises(ModelError, match="lacks `hidden_size`"):
        describe(folder)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("score.weight", True),
        ("base_model.model.classifier.modules_to_save.default.bias", True),
        ("model.layers.0.scores.weight", False),
        ("lm_head.weight", False),
    ],
)
def test_class_layer_is_known_by_its_name(name: str, expected: bool) -> None:
    assert is_head(name) is expected


@pytest.mark.parametrize(
    ("model_type", "could", "can"),
    [
        ("llama", True, False),
        ("gpt_neox", True, False),
        ("gpt2", True, True),
        ("bert", False, False),
    ],
)
def test_describe_sees_a_class_layer_that_took_the_place_of_output_weights(
    model_type: str, tiny_folder: MakeTiny, tmp_path: Path, *, could: bool, can: bool
) -> None:
    before = describe(tiny_folder(model_type))
    after = describe(write_class_model(tiny_folder(model_type), tmp_path / "tuned", ("a", "b")))
    assert (before.has_class_layer, after.has_class_layer) == (False, True)
    assert (before.can_write, after.can_write) == (could, can)
    for facts in (before, after):
        assert facts.asked_as == ("decoder" if facts.can_write else "encoder")
        assert (facts.why_silent == "") is facts.can_write
