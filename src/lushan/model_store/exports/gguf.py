"""One GGUF file with weights, tokenizer and chat template, for llama.cpp and whatever is built on it.

Names, the order of rows and what is added to norms are those of llama.cpp's `convert_hf_to_gguf.py`.

Shapes: H heads, O outputs and I inputs of a matrix product.
"""

import importlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, NamedTuple
from urllib.request import ProxyHandler, Request, build_opener

import gguf
import numpy as np
import torch

from lushan.backbones.chat import read_chat_template
from lushan.backbones.convert_gguf import (
    convert_gguf,
    open_gguf,
    read_vocabulary,
    write_tokenizer,
)
from lushan.backbones.gguf_tokenizer import GgufVocabulary
from lushan.backbones.load import Purpose, load_backbone
from lushan.backbones.tokenizer import Tokenizer
from lushan.errors import ModelError
from lushan.inference.predict import Predictor
from lushan.model_store import exports, probes
from lushan.model_store.exports import (
    NUM_LIKELIEST,
    Encode,
    Follow,
    Likeliest,
    TextRules,
    Tolerance,
)
from lushan.model_store.gguf_vocabulary import vocabulary_of
from lushan.model_store.merged import Merged
from lushan.model_store.tuned_model import write_meaning

FILE = "model.gguf"
_CONTEXT_TOKENS = 2_048
"""Of the server that is asked whether it writes the same."""
_GEMMA_PERIOD = 6
"""llama.cpp takes every sixth layer of a Gemma 3 for one that sees everything."""


class _Architecture(NamedTuple):
    """How llama.cpp knows an architecture."""

    code: gguf.MODEL_ARCH
    interleaves: bool = False
    """Whether queries and keys are turned in neighbouring pairs, and not in halves."""
    adds_one: bool = False
    """Whether norms multiply by their weight plus one, which the file holds added."""


_ARCHITECTURES = {
    "llama": _Architecture(gguf.MODEL_ARCH.LLAMA, interleaves=True),
    "qwen2": _Architecture(gguf.MODEL_ARCH.QWEN2),
    "qwen3": _Architecture(gguf.MODEL_ARCH.QWEN3),
    "gemma3_text": _Architecture(gguf.MODEL_ARCH.GEMMA3, adds_one=True),
}
_HEAD_WIDTHS = {"qwen3": 128, "gemma3_text": 256}
"""What transformers takes when it reads these back: it leaves the width of a head in the file unread."""
_TYPES = {
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}


_ROUNDED = probes.Tolerance(
    0.1, 0.5, "llama.cpp rounds what enters a product to 8 bits, in groups of 32"
)


class Form(exports.Form):
    """Matrices in 16, 8 or 4 bits, norms in float32."""

    program = "xllamacpp"
    packages: ClassVar = ("xllamacpp",)
    tolerances: ClassVar = {
        "f16": Tolerance(1e-3, 0.97, 0.97, 0.01),
        "q8_0": Tolerance(1e-3, 0.9, 0.95, 0.03),
        "q4_0": Tolerance(1e-3, 0.9, 0.8, 0.3),
    }
    arithmetic: ClassVar = {
        "f16": probes.Tolerance(0.01, 0.05, "llama.cpp rounds what enters a product to 16 bits"),
        "q8_0": _ROUNDED,
        "q4_0": _ROUNDED,
    }
    own_rules: ClassVar = ("stop_tokens", "tokenizer")
    most_prompt_tokens: ClassVar = _CONTEXT_TOKENS - probes.NUM_WRITTEN_TOKENS

    def check(self, predictor: Predictor, purpose: Purpose) -> None:
        """Refuse a head, which GGUF cannot hold, and architectures whose conversion is not tested."""
        if purpose != "language":
            raise ModelError(
                "This model answers by a head, which GGUF has no place for. Use `--to onnx`, `openvino` or `hf`, or tune "
                "with `--answer generate`."
            )
        _check_config(predictor.backbone.plain_model.config)

    def write(self, merged: Merged, folder: Path, *, quantise: str) -> list[str]:
        """Write the file."""
        backbone = merged.predictor.backbone
        model = backbone.plain_model
        vocabulary = vocabulary_of(
            backbone.tokenizer,
            num_rows=model.get_input_embeddings().weight.shape[0],
            padding_id=model.config.pad_token_id,
            chat_template=read_chat_template(merged.folder),
        )
        architecture = _ARCHITECTURES[model.config.model_type]
        writer = gguf.GGUFWriter(folder / FILE, gguf.MODEL_ARCH_NAMES[architecture.code])
        quantisation, file_type = _TYPES[quantise]
        writer.add_type("model")
        writer.add_name(f"{Path(merged.meaning.base_model).name} for {merged.meaning.task}")
        writer.add_file_type(file_type)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_shape(writer, model.config)
        _add_vocabulary(writer, vocabulary)
        notes = _add_weights(writer, model, architecture, quantisation)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        write_meaning(folder, replace(merged.meaning, adapter="full"))
        return notes

    def reread(self, merged: Merged, folder: Path) -> Predictor:
        """Restore the weights from the file, by the code of `transformers` that reads GGUF."""
        predictor = merged.predictor
        place = folder.with_name(exports.SCRATCH)  # later exports find what a killed one left
        place.mkdir()
        try:
            convert_gguf(folder / FILE, place, dtype=torch.float32)
            backbone = load_backbone(place, purpose="language", precision="fp32")
            # That of the file was compared with it when it was written, and goes away with its folder.
            backbone.tokenizer = predictor.backbone.tokenizer
        finally:
            shutil.rmtree(place)
        return Predictor(
            backbone,
            predictor.task,
            predictor.state,
            predictor.answer,
            predictor.limit,
            generation=predictor.generation,
        )

    def read_rules(self, folder: Path) -> TextRules:
        """Read tokenizer, chat template and length from the file."""
        reader = open_gguf(folder / FILE)
        name = gguf.Keys.LLM.CONTEXT_LENGTH.format(
            arch=reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
        )
        with TemporaryDirectory() as place:
            write_tokenizer(read_vocabulary(folder / FILE), Path(place))
            tokenizer = Tokenizer.load(Path(place))
            assert tokenizer.chat.text  # noqa: S101 - read before its folder is gone
        return TextRules(tokenizer, int(reader.fields[name].contents()))

    def open_follower(self, folder: Path) -> tuple[Follow, Encode]:
        """Load the file into llama.cpp, whose server then listens on loopback until the process ends."""
        xllamacpp: Any = importlib.import_module("xllamacpp")  # optional, native, without types
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(folder / FILE)
        parameters.n_ctx = _CONTEXT_TOKENS
        parameters.n_parallel = 1
        parameters.warmup = False
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.cpuparams.n_threads = torch.get_num_threads()
        parameters.cpuparams_batch.n_threads = torch.get_num_threads()
        server = xllamacpp.Server(parameters)
        opener = build_opener(ProxyHandler({}))  # a proxy would get to know the prompts

        def ask(path: str, question: dict[str, Any]) -> dict[str, Any]:
            body = json.dumps(question).encode()
            headers = {"Content-Type": "application/json"}
            request = Request(f"{server.listening_address}/{path}", body, headers)  # noqa: S310 - of this process
            with opener.open(request) as response:
                return json.load(response)

        def follow(prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> list[Likeliest]:
            question = {"n_predict": 1, "temperature": 0, "return_tokens": True}
            question |= {"n_probs": NUM_LIKELIEST}
            starts = ([*prompt_ids, *answer_ids[:place]] for place in range(len(answer_ids)))
            told = (ask("completion", {**question, "prompt": each}) for each in starts)
            return [_likeliest(each) for each in told]

        def encode(text: str) -> list[int]:
            return ask("tokenize", {"content": text, "add_special": False})["tokens"]

        return follow, encode


def _likeliest(told: dict[str, Any]) -> Likeliest:
    """Read what llama.cpp says of the token that it wrote; of a part of a character it says how likely none is."""
    places = told.get("completion_probabilities")
    if not places:
        return [(told["tokens"][0], 0.0)]
    return [(each["id"], each["logprob"]) for each in places[0]["top_logprobs"]]


def _check_config(config: Any) -> None:  # noqa: ANN401 - transformers' configurations share no useful type
    """Refuse what llama.cpp would compute in another way.

    Raises:
        ModelError: If there is something; names it.
    """
    if config.model_type not in _ARCHITECTURES:
        raise ModelError(
            f"`{config.model_type}` models cannot be written as GGUF; {', '.join(_ARCHITECTURES)} can. Use `--to hf`."
        )
    usual: dict[str, Any] = {
        "attention_bias": False,
        "mlp_bias": False,
        "use_sliding_window": False,
        "use_bidirectional_attention": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "hidden_act": "silu",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
    }
    if config.model_type in _HEAD_WIDTHS:
        usual["head_dim"] = _HEAD_WIDTHS[config.model_type]
    if config.model_type == "gemma3_text":
        last = _GEMMA_PERIOD - 1
        usual["layer_types"] = [
            "full_attention" if number % _GEMMA_PERIOD == last else "sliding_attention"
            for number in range(config.num_hidden_layers)
        ]
    for name, value in usual.items():
        if getattr(config, name, value) != value:
            raise ModelError(
                f"This `{config.model_type}` model has `{name}={getattr(config, name)}`; as GGUF only {value} is known here. "
                "Use `--to hf`."
            )
    for each in _rotations(config).values():
        if each.get("rope_type", "default") != "default":
            raise ModelError(
                f"This model scales its positions (`{each['rope_type']}`), which cannot be written as GGUF here. Use `--to hf`."
            )


def _rotations(config: Any) -> dict[str, dict[str, Any]]:  # noqa: ANN401
    """Give the rotary settings, by the kind of layer."""
    settings = config.rope_parameters
    return settings if "full_attention" in settings else {"full_attention": settings}


def _add_shape(writer: gguf.GGUFWriter, config: Any) -> None:  # noqa: ANN401
    head_width = getattr(config, "head_dim", None)
    head_width = head_width or config.hidden_size // config.num_attention_heads
    rotations = _rotations(config)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_width)
    writer.add_value_length(head_width)
    writer.add_rope_dimension_count(head_width)
    writer.add_rope_freq_base(rotations["full_attention"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if "sliding_attention" in rotations:
        writer.add_rope_freq_base_swa(rotations["sliding_attention"]["rope_theta"])
        writer.add_sliding_window(config.sliding_window)


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: GgufVocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.kind)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.token_types)
    if vocabulary.kind == "gpt2":
        writer.add_token_merges(vocabulary.merges)
    else:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    add_id = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "unk": writer.add_unk_token_id,
        "pad": writer.add_pad_token_id,
    }
    for role, number in vocabulary.special_ids.items():
        add_id[role](number)
    for number in set(vocabulary.stop_ids) - {vocabulary.special_ids.get("eos")}:
        writer.add_eot_token_id(number)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(value=False)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


def _add_weights(
    writer: gguf.GGUFWriter,
    model: Any,  # noqa: ANN401
    architecture: _Architecture,
    quantisation: gguf.GGMLQuantizationType,
) -> list[str]:
    """Add every weight under llama.cpp's name; gives what was stored in another way than asked for.

    Raises:
        ModelError: If a weight is unknown to llama.cpp, or too large for its type.
    """
    config = model.config
    names = gguf.get_tensor_name_map(architecture.code, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    others: dict[str, int] = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        new_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new_name is None:
            raise ModelError(f"llama.cpp has no name for the weight `{name}`. Use `--to hf`.")
        values = tensor.float().numpy()
        part = name.split(".")[-2]
        if architecture.interleaves and part in heads:
            values = interleaved(values, heads[part])
        if architecture.adds_one and part.endswith("norm"):
            values = values + 1
        kind = _type_of(new_name, values, quantisation)
        if values.ndim == 2 and kind != quantisation:
            others[kind.name] = others.get(kind.name, 0) + 1
        if np.abs(values).max() > np.finfo(np.float16).max:
            raise ModelError(f"The weight `{name}` is too large for 16 bits. Use `--to hf`.")
        writer.add_tensor(new_name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    return [f"{number} of the matrices are stored as {kind}." for kind, number in others.items()]


def _type_of(
    name: str, values: np.ndarray, wanted: gguf.GGMLQuantizationType
) -> gguf.GGMLQuantizationType:
    """Norms stay in float32; the vocabulary keeps 8 bits, and rows that fill no blocks 16."""
    types = gguf.GGMLQuantizationType
    if values.ndim == 1:
        return types.F32
    if wanted == types.Q4_0 and name in ("token_embd.weight", "output.weight"):
        wanted = types.Q8_0
    block_weights, _ = gguf.GGML_QUANT_SIZES[wanted]
    return types.F16 if values.shape[1] % block_weights else wanted


def interleaved(values: np.ndarray, num_heads: int) -> np.ndarray:
    """Put the rows of a head that turn together side by side, as llama.cpp reads them; (O, I) or (O,)."""
    in_halves = values.reshape(num_heads, 2, values.shape[0] // num_heads // 2, *values.shape[1:])
    return np.ascontiguousarray(in_halves.swapaxes(1, 2).reshape(values.shape))
