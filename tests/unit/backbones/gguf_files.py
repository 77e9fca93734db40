"""Writes tiny GGUF files as llama.cpp's converter does, to be converted back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

SPACE = "\u2581"
WORDS = ("the", "fox", "he", "ran", "home", "in", "to", "20", "24")
NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6


@dataclass
class Vocabulary:
    """Tokens in the order of their ids."""

    tokens: list[str] = field(default_factory=list[str])
    types: list[int] = field(default_factory=list[int])
    scores: list[float] = field(default_factory=list[float])

    def add(self, token: str, kind: int, score: float = 0.0) -> None:
        if token not in self.tokens:
            self.tokens.append(token)
            self.types.append(kind)
            self.scores.append(score)


def sentencepiece_vocabulary() -> Vocabulary:
    """Control tokens, all bytes, runs of spaces and newlines as user-defined tokens, letters, pieces of words."""
    vocabulary = Vocabulary()
    for token, kind in (("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)):
        vocabulary.add(token, kind)
    for byte in range(256):
        vocabulary.add(f"<0x{byte:02X}>", BYTE)
    for length in range(2, 6):
        vocabulary.add(" " * length, USER, -1000.0)
        vocabulary.add("\n" * length, USER, -1000.0)
    pieces = [word[:end] for word in WORDS for end in range(2, len(word) + 1)]
    pieces += [SPACE + piece for piece in [*(word[0] for word in WORDS), *pieces]]
    for rank, piece in enumerate(sorted(set(pieces), key=lambda each: (len(each), each))):
        vocabulary.add(piece, NORMAL, -float(rank))
    for number, letter in enumerate([SPACE, *"abcdefghijklmnopqrstuvwxyz0123456789.,"]):
        vocabulary.add(letter, NORMAL, -1000.0 - number)
    return vocabulary


def tiny_llama(num_tokens: int, *, tied: bool = False) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=num_tokens,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def write_gguf(
    file: Path,
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    *,
    output: np.ndarray | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    rope: Mapping[str, str | float] | None = None,
    **overrides: Any,  # noqa: ANN401
) -> Path:
    """Write a Llama model.

    Args:
        file: Where to.
        model: Its weights and sizes.
        vocabulary: Its tokens.
        output: An output matrix beside the embedding.
        tensors: Further tensors.
        rope: Further `llama.rope.*` values.
        overrides: `tokenizer.ggml.*` values to replace or add, and the `kind` of tokenizer; None leaves one out.
    """
    writer = gguf.GGUFWriter(file, "llama")
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    for name, value in (rope or {}).items():
        if isinstance(value, str):
            writer.add_string(f"llama.rope.{name}", value)
        else:
            writer.add_float32(f"llama.rope.{name}", value)
    _add_vocabulary(writer, vocabulary, overrides)
    for name, tensor in {**_tensors(model), **(tensors or {})}.items():
        writer.add_tensor(name, tensor)
    if output is not None:
        writer.add_tensor("output.weight", output)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_vocabulary(
    writer: gguf.GGUFWriter, vocabulary: Vocabulary, overrides: dict[str, Any]
) -> None:
    writer.add_tokenizer_model(overrides.pop("kind", "llama"))
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_scores(vocabulary.scores)
    if "merges" in overrides:
        writer.add_token_merges(overrides.pop("merges"))
    if "chat_template" in overrides:
        writer.add_chat_template(overrides.pop("chat_template"))
    if "pre" in overrides:
        writer.add_tokenizer_pre(overrides.pop("pre"))
    ids = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, **overrides}
    for name, number in ids.items():
        if number is not None:
            writer.add_uint32(f"tokenizer.ggml.{name}", number)


def _tensors(model: PreTrainedModel) -> dict[str, np.ndarray]:
    config = model.config
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    state = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    tensors = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
    }
    if not config.tie_word_embeddings:
        tensors["output.weight"] = state["lm_head.weight"]
    for layer in range(config.num_hidden_layers):
        old, new = f"model.layers.{layer}", f"blk.{layer}"
        for part in ("q", "k", "v", "o"):
            weight = state[f"{old}.self_attn.{part}_proj.weight"]
            name = {"o": "attn_output"}.get(part, f"attn_{part}")
            tensors[f"{new}.{name}.weight"] = (
                _interleaved(weight, heads[part]) if part in heads else weight
            )
        for part in ("gate", "up", "down"):
            tensors[f"{new}.ffn_{part}.weight"] = state[f"{old}.mlp.{part}_proj.weight"]
        tensors[f"{new}.attn_norm.weight"] = state[f"{old}.input_layernorm.weight"]
        tensors[f"{new}.ffn_norm.weight"] = state[f"{old}.post_attention_layernorm.weight"]
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def _interleaved(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Order rows for llama.cpp's rotary embedding: pairs side by side instead of halves."""
    half = weight.shape[0] // num_heads // 2
    return weight.reshape(num_heads, 2, half, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
