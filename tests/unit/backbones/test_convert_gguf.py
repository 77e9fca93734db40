"""A converted folder computes what the original model computes, and none of the known traps is left in it."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, normalizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lushan.backbones.convert_gguf import check_same_ids, convert_gguf, read_vocabulary
from lushan.backbones.load import load_backbone
from lushan.errors import ModelError
from lushan.inference.generate import stop_ids
from tests.unit.backbones.gguf_files import (
    CONTROL,
    NORMAL,
    sentencepiece_vocabulary,
    tiny_llama,
    write_gguf,
)

NOWHERE = 2**32 - 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    return made


def make_gguf(tmp_path: Path, *, tied: bool = False, **overrides: Any) -> Path:  # noqa: ANN401
    vocabulary = sentencepiece_vocabulary()
    model = tiny_llama(len(vocabulary.tokens), tied=tied)
    return write_gguf(tmp_path / "tiny.gguf", model, vocabulary, **overrides)


def embedding_of(*, noise: float) -> np.ndarray:
    """The tiny model's input matrix with relative noise, as a second quantisation would give."""
    matrix = tiny_llama(len(sentencepiece_vocabulary().tokens)).get_input_embeddings().weight
    assert isinstance(matrix, torch.Tensor)
    values = matrix.detach().numpy()
    dice = np.random.default_rng(0).standard_normal(values.shape).astype(np.float32)
    return (values + noise * values.std() * dice).astype(np.float32)


def logits_of(model: Any) -> torch.Tensor:  # noqa: ANN401
    with torch.inference_mode():
        return model(input_ids=torch.arange(3, 60)[None]).logits


def test_converted_model_computes_what_the_original_computes(tmp_path: Path, folder: Path) -> None:
    convert_gguf(make_gguf(tmp_path), folder, dtype=torch.float32)
    converted = AutoModelForCausalLM.from_pretrained(folder)
    original = tiny_llama(converted.config.vocab_size)
    torch.testing.assert_close(logits_of(converted), logits_of(original), rtol=1e-5, atol=1e-6)


def test_converted_model_can_be_trained_and_saved(tmp_path: Path, folder: Path) -> None:
    convert_gguf(make_gguf(tmp_path), folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert getattr(model, "hf_quantizer", None) is None
    model(input_ids=torch.arange(9)[None], labels=torch.arange(9)[None]).loss.backward()
    assert model.lm_head.weight.grad is not None
    model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").is_file()


def test_configuration_is_clean(tmp_path: Path, folder: Path) -> None:
    convert_gguf(make_gguf(tmp_path), folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert not config.keys() & {"quantization_config", "_name_or_path", "_model_name_or_path"}
    assert config["rms_norm_eps"] == 1e-5
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)


def test_id_that_says_there_is_none_is_left_out(tmp_path: Path, folder: Path) -> None:
    convert_gguf(make_gguf(tmp_path, padding_token_id=NOWHERE), folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert AutoConfig.from_pretrained(folder).pad_token_id is None
    assert model.generation_config.pad_token_id is None
    assert AutoTokenizer.from_pretrained(folder).pad_token is None
    assert NOWHERE not in json.loads((folder / "config.json").read_text()).values()


def test_padding_that_is_the_stop_token_is_kept(tmp_path: Path, folder: Path) -> None:
    convert_gguf(make_gguf(tmp_path, padding_token_id=2), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (2, 2)


def test_every_file_can_be_read_by_others(tmp_path: Path, folder: Path) -> None:
    convert_gguf(make_gguf(tmp_path), folder)
    modes = {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}
    assert set(modes.values()) == {0o644}
    assert "model.safetensors" in modes


def test_model_without_output_matrix_shares_one(tmp_path: Path, folder: Path) -> None:
    assert convert_gguf(make_gguf(tmp_path, tied=True), folder) == []
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_equal_output_matrix_is_shared_and_told(tmp_path: Path, folder: Path) -> None:
    file = make_gguf(tmp_path, tied=True, output=embedding_of(noise=0))
    assert "share one matrix" in convert_gguf(file, folder)[0]
    assert AutoConfig.from_pretrained(folder).tie_word_embeddings


def test_second_quantisation_of_one_matrix_is_kept_and_told(tmp_path: Path, folder: Path) -> None:
    file = make_gguf(tmp_path, tied=True, output=embedding_of(noise=0.02))
    notes = convert_gguf(file, folder)
    assert "adds 10,880 weights. Ask for `--retie`" in notes[0]
    assert not AutoConfig.from_pretrained(folder).tie_word_embeddings


def test_second_quantisation_of_one_matrix_is_shared_on_request(
    tmp_path: Path, folder: Path
) -> None:
    file = make_gguf(tmp_path, tied=True, output=embedding_of(noise=0.02))
    assert "differed by 2.0%" in convert_gguf(file, folder, retie=True)[0]
    assert AutoConfig.from_pretrained(folder).tie_word_embeddings


def test_output_matrix_of_its_own_stays_even_on_request(tmp_path: Path, folder: Path) -> None:
    assert convert_gguf(make_gguf(tmp_path), folder, retie=True) == []
    assert not AutoConfig.from_pretrained(folder).tie_word_embeddings


def test_weights_are_stored_in_bfloat16(tmp_path: Path, folder: Path) -> None:
    convert_gguf(make_gguf(tmp_path), folder)
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16


def make_llama3(tmp_path: Path, factors: np.ndarray) -> Path:
    """Write a file as Llama 3.1 has it: a large base, a long context, and a factor for each frequency."""
    vocabulary = sentencepiece_vocabulary()
    model = tiny_llama(len(vocabulary.tokens))
    model.config.max_position_embeddings = 131_072
    return write_gguf(
        tmp_path / "llama3.gguf",
        model,
        vocabulary,
        tensors={"rope_freqs.weight": factors.astype(np.float32)},
        rope={"freq_base": 500_000.0},
    )


def llama3_factors(factor: float) -> np.ndarray:
    """By how much each frequency is lowered (llama.cpp, `convert_hf_to_gguf.py`, `generate_extra_tensors`)."""
    wavelengths = 2 * np.pi / llama3_frequencies()
    smooth = np.clip((8192 / wavelengths - 1) / (4 - 1), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)


def llama3_frequencies() -> np.ndarray:
    return 500_000.0 ** -(np.arange(0, 8, 2) / 8)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_positions_scaled_as_by_llama_3_are_scaled_by_the_configuration(
    factor: float, tmp_path: Path, folder: Path
) -> None:
    factors = llama3_factors(factor)
    convert_gguf(make_llama3(tmp_path, factors), folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    expected = torch.tensor(llama3_frequencies() / factors, dtype=torch.float32)
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, expected)
    assert model.config.rope_parameters["rope_type"] == "llama3"
    assert model.config.rope_parameters["factor"] == factor


def test_factors_of_one_scale_nothing(tmp_path: Path, folder: Path) -> None:
    convert_gguf(make_llama3(tmp_path, np.ones(4)), folder)
    assert AutoConfig.from_pretrained(folder).rope_parameters["rope_type"] == "default"


@pytest.mark.parametrize("factors", [[1.0, 1.0, 2.0, 8.0], [1.0, 8.0]], ids=["other", "fewer"])
def test_factors_that_no_known_rotation_explains_are_refused(
    factors: list[float], tmp_path: Path, folder: Path
) -> None:
    with pytest.raises(ModelError, match=r"llama3.gguf` holds 1 tensor.* rope_freqs.weight\. Exp"):
        convert_gguf(make_llama3(tmp_path, np.array(factors)), folder)


@pytest.mark.parametrize("name", ["rope_factors_long.weight", "blk.0.attn_q.bias"])
def test_tensor_that_would_be_skipped_is_refused(name: str, tmp_path: Path, folder: Path) -> None:
    file = make_gguf(tmp_path, tensors={name: np.ones(32, dtype=np.float32)})
    with pytest.raises(ModelError, match=rf"not use: {name}\. Expected none.*original folder"):
        convert_gguf(file, folder)
    assert not (folder / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("rope", "told"),
    [
        ({"scaling.type": "yarn", "scaling.factor": 4.0}, "scaling.type` yarn, .*factor` 4.0"),
        ({"scaling.factor": 2.0}, "scaling.factor` 2.0"),
        ({"scale_linear": 4.0}, "scale_linear` 4.0"),
        ({"scaling.attn_factor": 1.19}, "scaling.attn_factor` 1.19"),
    ],
)
def test_metadata_that_scale_positions_are_refused(
    rope: dict[str, str | float], told: str, tmp_path: Path, folder: Path
) -> None:
    with pytest.raises(ModelError, match=rf"tiny.gguf` scales its positions.*`llama.rope.{told}"):
        convert_gguf(make_gguf(tmp_path, rope=rope), folder)


def test_metadata_that_scale_nothing_are_read_over(tmp_path: Path, folder: Path) -> None:
    rope = {"scaling.type": "linear", "scaling.factor": 1.0, "scaling.original_context_length": 64}
    convert_gguf(make_gguf(tmp_path, rope=rope), folder)
    assert AutoConfig.from_pretrained(folder).rope_parameters["rope_type"] == "default"


def test_only_stop_token_stands_alone(tmp_path: Path, folder: Path) -> None:
    convert_gguf(make_gguf(tmp_path), folder)
    assert GenerationConfig.from_pretrained(folder).eos_token_id == 2


def test_every_named_end_of_an_answer_stops_it(tmp_path: Path, folder: Path) -> None:
    convert_gguf(make_gguf(tmp_path, eot_token_id=7, eom_token_id=NOWHERE), folder)
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [2, 7]
    assert AutoConfig.from_pretrained(folder).eos_token_id == 2
    assert AutoTokenizer.from_pretrained(folder).eos_token_id == 2


def test_end_of_a_turn_is_known_by_its_text(tmp_path: Path, folder: Path) -> None:
    vocabulary = sentencepiece_vocabulary()
    vocabulary.add("<end_of_turn>", CONTROL)
    vocabulary.add("<|im_end|>", NORMAL)
    model = tiny_llama(len(vocabulary.tokens))
    convert_gguf(write_gguf(tmp_path / "it.gguf", model, vocabulary), folder)
    found = stop_ids(load_backbone(folder, purpose="language"))
    assert found == {2, vocabulary.tokens.index("<end_of_turn>")}


@pytest.mark.parametrize(("pre", "adds"), [("llama-bpe", True), ("smollm", False)])
def test_file_that_says_nothing_of_bos_is_read_as_llama_cpp_reads_it(
    pre: str, *, adds: bool, tmp_path: Path
) -> None:
    file = make_gguf(tmp_path, kind="gpt2", pre=pre, merges=["t h"])
    assert read_vocabulary(file).add_bos is adds


def test_chat_template_is_kept(tmp_path: Path, folder: Path) -> None:
    convert_gguf(make_gguf(tmp_path, chat_template="{{ messages }}"), folder)
    assert AutoTokenizer.from_pretrained(folder).chat_template == "{{ messages }}"


def test_tokenizer_that_normalises_only_after_reload_is_refused(
    tmp_path: Path, folder: Path
) -> None:
    convert_gguf(make_gguf(tmp_path), folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    saved = Tokenizer.from_file(str(folder / "tokenizer.json"))
    saved.normalizer = normalizers.Sequence([normalizers.NFC(), saved.normalizer])
    saved.save(str(folder / "tokenizer.json"))
    with pytest.raises(ModelError, match=r"saved tokenizer reads 'caf.* differently"):
        check_same_ids(tokenizer, folder)


def test_class_that_rebuilds_the_tokenizer_is_refused(tmp_path: Path, folder: Path) -> None:
    convert_gguf(make_gguf(tmp_path), folder)
    settings = folder / "tokenizer_config.json"
    text = settings.read_text(encoding="utf-8").replace("PreTrainedTokenizerFast", "GPT2Tokenizer")
    settings.write_text(text, encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with pytest.raises(ModelError, match="`AutoTokenizer` reads 'The sun"):
        check_same_ids(tokenizer, folder)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no model at all, but some text" * 9])
def test_file_that_is_no_gguf_is_refused(content: bytes, tmp_path: Path, folder: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"broken.gguf` cannot be read as GGUF"):
        convert_gguf(file, folder)


def test_gguf_that_is_cut_off_is_refused(tmp_path: Path, folder: Path) -> None:
    file = make_gguf(tmp_path)
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(ModelError, match=r"tiny.gguf` cannot be read as GGUF"):
        convert_gguf(file, folder)


def test_real_model_tells_its_story(folder: Path) -> None:
    file = Path(os.environ.get("LUSHAN_DATA", "nowhere")).parent / "models" / "stories260K.gguf"
    if not file.is_file():
        pytest.skip("stories260K.gguf is not here")
    convert_gguf(file, folder, dtype=torch.float32)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    ids = model.generate(torch.tensor([[1]]), max_new_tokens=40, do_sample=False, pad_token_id=2)
    story = Tokenizer.from_file(str(folder / "tokenizer.json")).decode(ids[0].tolist())
    assert story.startswith("Once upon a time, there was a little girl named Lily.")
