"""Tiny random models of every supported architecture, with tokenizers trained on five sentences."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

TINY_TYPES = (
    *("llama", "gpt2", "gpt_neo", "gpt_neox", "qwen2", "qwen3", "gemma3_text", "mistral"),
    *("bert", "modernbert"),
)
CORPUS = (
    "The children ran home along the river and ate soup with fresh bread.",
    "A brave little fox lived in the forest; it helped all the other animals.",
    "What a great film! I would watch it again, 10 out of 10.",
    "The service was slow and the food was cold. Never again...",
    "def add(a, b):\n    return a + b\n",
)
TINY_VOCABULARY = 320
ENCODER_TYPES = ("bert", "modernbert")
OTHER_ENCODER_TYPES = (
    *("albert", "camembert", "deberta-v2", "distilbert", "electra", "mpnet", "roberta"),
    "xlm-roberta",
)
TURN_TEMPLATE = """\
{% for message in messages %}[{{ message.role }}] {{ message.content }}<pad>
{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"""
"""As ChatML in a base model: a turn ends with a special token that is not the stop token, `<eos>`."""


def write_tiny(model_type: str, folder: Path, **sizes: object) -> None:
    """Write a model folder: two layers, width 16, or what `sizes` says."""
    _write_tiny_model(model_type, folder, sizes)
    _write_tiny_tokenizer(model_type, folder)


def write_turns(source: Path, folder: Path) -> Path:
    """Write a copy of a tiny decoder with that template."""
    shutil.copytree(source, folder)
    (folder / "chat_template.jinja").write_text(TURN_TEMPLATE, encoding="utf-8")
    return folder


def write_class_model(source: Path, folder: Path, labels: Sequence[str]) -> Path:
    """Write a copy of a tiny model with a class layer, in the place of output weights of its own."""
    shutil.copytree(source, folder)
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(
        source,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    model.save_pretrained(folder)
    return folder


def _write_tiny_model(model_type: str, folder: Path, sizes: Mapping[str, object]) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **(_tiny_settings(model_type) | dict(sizes)))
    is_encoder = model_type in ENCODER_TYPES + OTHER_ENCODER_TYPES
    model = (AutoModel if is_encoder else AutoModelForCausalLM).from_config(config)
    model.save_pretrained(folder)


def _tiny_settings(model_type: str) -> dict[str, Any]:
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    size: dict[str, Any] = {"vocab_size": TINY_VOCABULARY, **special}
    if model_type == "gpt2":
        return {**size, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128}
    if model_type == "distilbert":
        width = {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2}
        return {**size, **width, "max_position_embeddings": 128}
    if model_type == "gpt_neo":
        layers = [[["global", "local"], 1]]
        return {
            **size,
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "max_position_embeddings": 128,
            "attention_types": layers,
            "window_size": 8,
        }
    size |= {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
    }
    if model_type in ("qwen2", "qwen3", "llama", "mistral", "gemma3_text"):
        size |= {"num_key_value_heads": 1}
    if model_type in ("qwen3", "gemma3_text"):
        size |= {"head_dim": 8}
    if model_type == "gemma3_text":
        size |= {"sliding_window": 8, "query_pre_attn_scalar": 8}
    if model_type == "modernbert":
        size |= {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 8}
    if model_type == "mpnet":  # which takes no other number for padding
        size |= {"pad_token_id": 1}
    return size


def _write_tiny_tokenizer(model_type: str, folder: Path) -> None:
    is_encoder = model_type in ENCODER_TYPES + OTHER_ENCODER_TYPES
    first, last = ("[CLS]", "[SEP]") if is_encoder else ("<bos>", "<eos>")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_VOCABULARY,
        special_tokens=["<pad>", first, last],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    template = {True: f"{first} $A {last}", False: f"{first} $A"}[is_encoder]
    if is_encoder or model_type == "gemma3_text":
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(first, 1), (last, 2)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = ("cls", "sep") if is_encoder else ("bos", "eos")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        f"{roles[0]}_token": first,
        f"{roles[1]}_token": last,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def write_byte_fallback_tokenizer(folder: Path) -> None:
    """Write a tokenizer of the sentencepiece kind: a sign for spaces, bytes for unknown letters, a first space cut."""
    names = ["<pad>", "<bos>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += ["\u2581", "\u5c71", *"abcdefghijklmnopqrstuvwxyz"]
    raw = Tokenizer(
        models.BPE(vocab={name: n for n, name in enumerate(names)}, merges=[], byte_fallback=True)
    )
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Sequence([
        decoders.Replace("\u2581", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ])
    raw.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<eos>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
