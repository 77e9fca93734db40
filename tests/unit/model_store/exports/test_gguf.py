"""A GGUF file holds the weights bit for bit where its type can, and llama.cpp writes what Lushan writes."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

from lushan.backbones.convert_gguf import convert_gguf, read_vocabulary
from lushan.backbones.gguf_tokenizer import GgufVocabulary, build_tokenizer
from lushan.data.batching import pack
from lushan.errors import ModelError
from lushan.inference.generate import generate
from lushan.inference.generation_settings import GenerationSettings
from lushan.model_store.export_program import Questions, ask_program, first_tokens
from lushan.model_store.exports import SCRATCH, load_form
from lushan.model_store.exports import gguf as form_of_gguf
from lushan.model_store.exports.gguf import FILE, _likeliest, interleaved
from lushan.model_store.merged import Merged
from lushan.records import Features
from lushan.workflows.export_check import equal_tokens
from tests.conftest import MakeTiny
from tests.exported import features_of, merged_of, write_form
from tests.tiny import TURN_TEMPLATE
from tests.unit.backbones.gguf_files import sentencepiece_vocabulary

CONFIGS = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "gemma3_text": Gemma3TextConfig,
}


def wide_base(
    tiny_folder: MakeTiny,
    folder: Path,
    model_type: str = "llama",
    **options: Any,  # noqa: ANN401
) -> Path:
    """Write a model whose rows fill blocks of 32, with weights that 16 bits hold exactly, and its family's tokenizer."""
    torch.manual_seed(3)
    folder.mkdir()
    raw = _tokenizer(model_type, tiny_folder("llama"))
    raw.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": raw.id_to_token(0)}
    settings |= {"bos_token": raw.id_to_token(1), "eos_token": raw.id_to_token(2)}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    size = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    size |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    size |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    size |= {"vocab_size": raw.get_vocab_size()}
    if model_type == "gemma3_text":
        size |= {"head_dim": 256, "sliding_window": 16, "query_pre_attn_scalar": 256}
    model: Any = AutoModelForCausalLM.from_config(CONFIGS[model_type](**size, **options))
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_((weight * 20).half().float() if weight.ndim == 2 else weight)
    model.save_pretrained(folder)
    return folder


def _tokenizer(model_type: str, byte_level: Path) -> tokenizers.Tokenizer:
    raw = tokenizers.Tokenizer.from_file(str(byte_level / "tokenizer.json"))
    if model_type == "llama":
        return raw
    if model_type.startswith("qwen"):
        merges = json.loads(raw.to_str())["model"]["merges"]
        tokens = [raw.id_to_token(number) or "" for number in range(raw.get_vocab_size())]
        types = [3] * 3 + [1] * (len(tokens) - 3)
        joined = [" ".join(each) for each in merges]
        rule: dict[str, Any] = {"kind": "gpt2", "pre": "qwen2", "merges": joined, "scores": []}
    else:
        found = sentencepiece_vocabulary()
        tokens, types = found.tokens, found.types
        rule = {"kind": "llama", "pre": "default", "merges": [], "scores": found.scores}
    ids = {"bos": 1, "eos": 2, "unk": 0} if rule["kind"] == "llama" else {"bos": 1, "eos": 2}
    is_gemma = rule["kind"] == "llama"
    return build_tokenizer(
        GgufVocabulary(
            tokens=tokens,
            token_types=types,
            special_ids=ids,
            add_bos=is_gemma,
            add_space_prefix=False,
            chat_template=None,
            **rule,
        )
    )


def exported(base: Path, folder: Path, quantise: str = "f16") -> Merged:
    merged = merged_of(base, "completion", "generate")
    write_form(merged, "gguf", folder, quantise)
    return merged


@pytest.mark.parametrize("tied", [False, True], ids=["own", "tied"])
def test_weights_that_16_bits_hold_come_back_bit_for_bit(
    tied: bool, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    base = wide_base(tiny_folder, tmp_path / "base", tie_word_embeddings=tied)
    exported(base, tmp_path / "gguf")
    (tmp_path / "back").mkdir()
    convert_gguf(tmp_path / "gguf" / FILE, tmp_path / "back", dtype=torch.float32)
    first, second = (
        AutoModelForCausalLM.from_pretrained(each, dtype=torch.float32)
        for each in (base, tmp_path / "back")
    )
    assert second.config.tie_word_embeddings is tied
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("model_type", ["qwen2", "gemma3_text"])
def test_every_architecture_computes_the_same_when_it_is_read_back(
    model_type: str, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    base = wide_base(tiny_folder, tmp_path / "base", model_type)
    merged = exported(base, tmp_path / "gguf")
    reads = load_form("gguf").reread(merged, tmp_path / "gguf")
    batch = pack([Features(tuple(range(3, 60)), "", 0)])
    with torch.inference_mode():
        first, second = (each.backbone.hidden_states(batch) for each in (merged.predictor, reads))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def test_copy_in_float32_stands_where_later_exports_remove_it(
    tiny_folder: MakeTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = exported(wide_base(tiny_folder, tmp_path / "base"), tmp_path / "gguf")
    places: list[Path] = []

    def interrupt(_: Path, place: Path, **__: object) -> None:
        places.append(place)
        assert place.is_dir()
        raise KeyboardInterrupt

    monkeypatch.setattr(form_of_gguf, "convert_gguf", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_form("gguf").reread(merged, tmp_path / "gguf")
    assert places == [tmp_path / SCRATCH]
    assert not places[0].exists()


def test_queries_and_keys_are_ordered_as_llama_cpp_reads_them() -> None:
    rows = np.arange(16, dtype=np.float32)[:, None]
    assert interleaved(rows, 2)[:, 0].tolist() == [
        *(0, 4, 1, 5, 2, 6, 3, 7),
        *(8, 12, 9, 13, 10, 14, 11, 15),
    ]


def test_tokenizer_template_and_shape_stand_in_the_file(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    base = wide_base(tiny_folder, tmp_path / "base")
    (base / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    exported(base, tmp_path / "gguf")
    vocabulary = read_vocabulary(tmp_path / "gguf" / FILE)
    assert (vocabulary.kind, vocabulary.pre, vocabulary.add_bos) == ("gpt2", "gpt-2", False)
    assert vocabulary.special_ids == {"bos": 1, "eos": 2, "pad": 0}
    assert vocabulary.token_types[:4] == [3, 3, 3, 1]
    assert vocabulary.chat_template == "{{ messages }}"
    fields = gguf.GGUFReader(tmp_path / "gguf" / FILE).fields
    assert fields["llama.attention.head_count_kv"].contents() == 2
    assert fields["llama.context_length"].contents() == 128


def test_end_of_a_turn_stands_in_the_file_beside_the_stop_token(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    base = wide_base(tiny_folder, tmp_path / "base")
    exported(base, tmp_path / "plain")
    assert read_vocabulary(tmp_path / "plain" / FILE).stop_ids == [2]
    (base / "chat_template.jinja").write_text(TURN_TEMPLATE, encoding="utf-8")
    exported(base, tmp_path / "turns")
    assert read_vocabulary(tmp_path / "turns" / FILE).stop_ids == [2, 0]


@pytest.mark.parametrize(
    ("quantise", "kind", "vocabulary_kind"),
    [("f16", "F16", "F16"), ("q8_0", "Q8_0", "Q8_0"), ("q4_0", "Q4_0", "Q8_0")],
)
def test_matrices_are_stored_as_asked_and_norms_in_float32(
    quantise: str, kind: str, vocabulary_kind: str, *, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    merged = merged_of(wide_base(tiny_folder, tmp_path / "base"), "completion", "generate")
    notes = write_form(merged, "gguf", tmp_path / "gguf", quantise)
    kinds = {x.name: x.tensor_type.name for x in gguf.GGUFReader(tmp_path / "gguf" / FILE).tensors}
    assert kinds["blk.0.ffn_up.weight"] == kind
    assert kinds["token_embd.weight"] == kinds["output.weight"] == vocabulary_kind
    assert kinds["blk.1.attn_norm.weight"] == "F32"
    assert notes == (["2 of the matrices are stored as Q8_0."] if quantise == "q4_0" else [])


def test_rows_that_fill_no_block_keep_16_bits_and_that_is_told(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    merged = merged_of(tiny_folder("llama"), "completion", "generate")  # width 16
    (note,) = write_form(merged, "gguf", tmp_path / "gguf", "q8_0")
    assert "stored as F16" in note


@pytest.mark.parametrize("model_type", CONFIGS)
def test_llama_cpp_reads_the_same_tokens_and_writes_what_lushan_writes(
    model_type: str, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp")
    base = wide_base(tiny_folder, tmp_path / "base", model_type)
    merged = exported(base, tmp_path / "gguf")
    prompts = [list(each.token_ids) for each in features_of(merged)]
    settings = GenerationSettings(max_new_tokens=12)
    backbone = merged.predictor.backbone
    expected = [each.token_ids for each in generate(backbone, prompts, settings)]
    texts = ["a  b\n the fox, 2024!", "</s><eos>caf\u00e9 12"]
    place = str(tmp_path / "gguf")
    found = ask_program(
        Questions("gguf", place, "completion", 0, prompts=prompts, answers=expected, texts=texts)
    )
    raw = tokenizers.Tokenizer.from_str(backbone.tokenizer.to_json())
    assert found.token_ids == [raw.encode(x, add_special_tokens=False).ids for x in texts]
    # It rounds what enters a product to 16 bits: near ties may fall otherwise.
    assert equal_tokens(expected, [first_tokens(each) for each in found.followed]) > 0.95


def test_llama_cpp_is_asked_without_a_proxy(
    tiny_folder: MakeTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xllamacpp")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    exported(wide_base(tiny_folder, tmp_path / "base"), tmp_path / "gguf")
    asked = Questions("gguf", str(tmp_path / "gguf"), "completion", 0, prompts=[[3]], answers=[[4]])
    assert len(ask_program(asked).followed) == 1


def test_likeliest_tokens_are_read_and_part_of_a_character_has_no_number() -> None:
    told = [{"id": 5, "token": "a", "logprob": -0.1}, {"id": 9, "token": "b", "logprob": -2.0}]
    places = [{"id": 5, "logprob": -0.1, "top_logprobs": told}]
    found = {"tokens": [5], "completion_probabilities": places}
    assert _likeliest(found) == [(5, -0.1), (9, -2.0)]
    assert _likeliest({"tokens": [7]}) == [(7, 0.0)]


def test_rules_for_texts_stand_in_the_file(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    base = wide_base(tiny_folder, tmp_path / "base")
    (base / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    merged = exported(base, tmp_path / "gguf")
    rules = load_form("gguf").read_rules(tmp_path / "gguf")
    texts = ["a  b\n the fox, 2024!", "caf\u00e9"]
    own = merged.predictor.backbone.tokenizer
    assert [x.ids for x in rules.tokenizer.encode(texts)] == [x.ids for x in own.encode(texts)]
    assert rules.tokenizer.chat.text == "{{ messages }}"
    assert (rules.context_tokens, rules.tokenizer.stop_id) == (128, 2)


def test_head_is_refused_with_what_is_possible(tiny_folder: MakeTiny) -> None:
    merged = merged_of(tiny_folder("llama"), "classification", "head")
    with pytest.raises(ModelError, match=r"answers by a head.*`--to onnx`"):
        load_form("gguf").check(merged.predictor, "classify")


def test_architecture_that_is_not_known_is_refused_with_those_that_are(
    tiny_folder: MakeTiny,
) -> None:
    merged = merged_of(tiny_folder("gpt2"), "completion", "generate")
    with pytest.raises(ModelError, match=r"`gpt2` models cannot.*llama, qwen2, qwen3, gemma3_text"):
        load_form("gguf").check(merged.predictor, "language")


@pytest.mark.parametrize(
    ("name", "value"), [("mlp_bias", True), ("hidden_act", "gelu"), ("attention_bias", True)]
)
def test_what_llama_cpp_computes_otherwise_is_refused_by_name(
    name: str, value: object, tiny_folder: MakeTiny
) -> None:
    merged = merged_of(tiny_folder("llama"), "completion", "generate")
    setattr(merged.predictor.backbone.plain_model.config, name, value)
    with pytest.raises(ModelError, match=f"`{name}={value}`"):
        load_form("gguf").check(merged.predictor, "language")


def test_scaled_positions_are_refused(tiny_folder: MakeTiny) -> None:
    merged = merged_of(tiny_folder("llama"), "completion", "generate")
    config = merged.predictor.backbone.plain_model.config
    config.rope_parameters = {**config.rope_parameters, "rope_type": "yarn"}
    with pytest.raises(ModelError, match="scales its positions"):
        load_form("gguf").check(merged.predictor, "language")


def test_weight_that_16_bits_cannot_hold_is_refused(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    merged = merged_of(tiny_folder("llama"), "completion", "generate")
    with torch.no_grad():
        merged.predictor.backbone.plain_model.lm_head.weight[3, 4] = 70_000
    with pytest.raises(ModelError, match=r"`lm_head\.weight` is too large for 16 bits"):
        write_form(merged, "gguf", tmp_path / "gguf", "f16")
