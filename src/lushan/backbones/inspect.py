"""Tells what a model folder holds, from its configuration and the headers of its weights, without loading it."""

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lushan.errors import ModelError

DECODERS = frozenset({
    *(
        "gemma",
        "gemma2",
        "gemma3_text",
        "gpt2",
        "gpt_neo",
        "gpt_neox",
        "gptj",
        "granite",
        "llama",
        "mistral",
    ),
    *("olmo", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen3", "smollm3", "stablelm", "starcoder2"),
})
ENCODERS = frozenset({
    *(
        "albert",
        "bert",
        "camembert",
        "deberta",
        "deberta-v2",
        "distilbert",
        "electra",
        "ernie",
        "modernbert",
    ),
    *("mpnet", "roberta", "xlm-roberta"),
})
_RECURRENT = (
    "bamba",
    "falcon_h1",
    "falcon_mamba",
    "granitemoehybrid",
    "jamba",
    "lfm2",
    "mamba",
    "mamba2",
    "nemotron_h",
)
_RECURRENT += ("qwen3_next", "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2")
Family = Literal["decoder", "encoder"]

_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_CONTEXTS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
_OUTPUTS = ("lm_head.weight", "embed_out.weight")
_CLASS_LAYERS = ("score", "classifier")
_EXPERTS = ".experts."
"""In the names of their weights."""
_SHARING_LAYERS = ("albert",)
_PASSED_WHOLE = ("deberta", "deberta-v2")
_COUNTING_BEHIND_PADDING = frozenset({
    *("camembert", "data2vec-text", "mpnet", "roberta", "roberta-prelayernorm"),
    *("xlm-roberta", "xlm-roberta-xl", "xmod"),
})
_CONSTANTS = (".attn.bias", ".attention.bias", ".masked_bias", ".inv_freq", ".position_ids")
"""Ends of names of stored tensors that are no weights, such as the causal mask of GPT-2."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What must be known before a model is loaded."""

    architecture: str
    """Class name in the configuration, such as `LlamaForCausalLM`; empty where it names none."""
    family: Family
    num_layers: int
    width: int
    vocabulary_size: int
    context_tokens: int
    num_parameters: int
    """A matrix that input and output share counts once."""
    tied: bool
    """Whether input and output share one matrix."""
    has_chat_template: bool
    model_type: str
    weights_bytes: int
    """Size of the weights on disk."""
    first_position: int = 0
    """Of a document's first token."""
    can_write: bool = True
    """Whether it is a decoder with weights that score the next token."""
    has_class_layer: bool = False
    """Whether it was saved with a layer that scores labels."""
    num_expert_weights: int = 0
    """Of the parameters those of experts, of which a token passes a few."""
    token_width: int | None = None
    """Of the embedding, where the layers have another (ALBERT, ELECTRA, OPT of 350M)."""

    @property
    def num_embedding_weights(self) -> int:
        """What a model has for its tokens: one vector each."""
        return self.vocabulary_size * (self.token_width or self.width)

    @property
    def num_passed_weights(self) -> int:
        """What a token passes beside its embedding; a layer that is shared counts each time, and experts all."""
        inner = max(self.num_parameters - self.num_embedding_weights, 1)
        return inner * self.num_layers if self.shares_layers else inner

    @property
    def shares_layers(self) -> bool:
        """Whether its layers are one, which a text passes several times."""
        return self.model_type in _SHARING_LAYERS

    @property
    def is_passed_whole(self) -> bool:
        """Whether a text cannot begin behind some of its layers: they hand on more than its states."""
        return self.model_type in _PASSED_WHOLE

    @property
    def why_silent(self) -> str:
        """Why it cannot write, to be said behind its name; empty where it can."""
        if self.family == "encoder":
            return "is an encoder: it fills gaps and cannot write"
        if self.can_write:
            return ""
        return (
            "has no weights that score the next token (`lm_head`): it was saved without them, as class models are, and "
            "cannot write"
        )

    @property
    def asked_as(self) -> Family:
        """The family in whose way the untouched model is asked: whatever cannot write is asked as encoders are."""
        return "encoder" if self.why_silent else "decoder"


def is_head(parameter_name: str) -> bool:
    """Whether a weight belongs to the class layer."""
    return any(part in _CLASS_LAYERS for part in parameter_name.split("."))


def describe(folder: Path) -> ModelFacts:
    """Read the facts of a model folder.

    Raises:
        ModelError: If Lushan cannot work with it; says why and what to do.
    """
    config = _read_config(folder)
    model_type = config.get("model_type", "")
    family = _find_family(folder, config)
    shapes, weights_bytes = _read_weights(folder)
    # Defaults differ by architecture; where nothing is said, the file itself shows it.
    tied = bool(config.get("tie_word_embeddings", not shapes.keys() & set(_OUTPUTS)))
    num_parameters = sum(
        math.prod(shape)
        for name, shape in shapes.items()
        if not (tied and name in _OUTPUTS) and not name.endswith(_CONSTANTS)
    )
    vocabulary_size = _number(folder, config, ("vocab_size",))
    by_token = [each for each in shapes.values() if len(each) == 2 and each[0] == vocabulary_size]
    width = _number(folder, config, _WIDTHS)
    token_widths = {token_width for _, token_width in by_token}
    return ModelFacts(
        architecture=(config.get("architectures") or [""])[0],
        family=family,
        num_layers=_number(folder, config, _LAYERS),
        width=width,
        vocabulary_size=vocabulary_size,
        context_tokens=_context_tokens(folder, config),
        num_parameters=num_parameters,
        tied=tied,
        has_chat_template=(folder / "chat_template.jinja").is_file()
        or bool(read_json(folder / "tokenizer_config.json").get("chat_template")),
        model_type=model_type,
        weights_bytes=weights_bytes,
        first_position=_first_position(config),
        can_write=family == "decoder" and (tied or len(by_token) > 1),
        has_class_layer=any(map(is_head, shapes)),
        num_expert_weights=sum(
            math.prod(shape) for name, shape in shapes.items() if _EXPERTS in name
        ),
        token_width=min(token_widths) if token_widths and width not in token_widths else None,
    )


def _first_position(config: dict[str, Any]) -> int:
    """Some encoders count from behind the number of their padding token."""
    if config["model_type"] not in _COUNTING_BEHIND_PADDING:
        return 0
    padding_id = config.get("pad_token_id")
    return 2 if padding_id is None else padding_id + 1


def _context_tokens(folder: Path, config: dict[str, Any]) -> int:
    most = _number(folder, config, _CONTEXTS) - _first_position(config)
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if scaling.get("rope_type", scaling.get("type")) not in {"longrope", "su"}:
        return most
    # Beyond it all positions turn by other angles, those of texts beside and of what was read before too.
    own = config.get("original_max_position_embeddings")
    return min(most, own or scaling.get("original_max_position_embeddings", most))


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is no such file.

    Raises:
        ModelError: If the file is no JSON object.
    """
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"`{file}` is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ModelError(f"`{file}` must hold a JSON object; got {type(value).__name__}.")
    return value


def file_digest(file: Path) -> str:
    """Give the SHA-256 of a file, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_config(folder: Path) -> dict[str, Any]:
    if folder.suffix == ".gguf":
        raise ModelError(
            f"`{folder}` is a GGUF file. Convert it once: `lushan models get NAME --source {folder}`."
        )
    if folder.is_file():
        raise ModelError(
            f"`{folder}` is a file. Expected a folder with a Hugging Face model, or a name from `lushan models list`."
        )
    if not folder.is_dir():
        raise ModelError(
            f"Model folder `{folder}` does not exist. Name another, or one of `lushan models list`."
        )
    if not (folder / "config.json").is_file():
        raise ModelError(f"`{folder}` is no model folder: {_what_it_is(folder)}.")
    config = read_json(folder / "config.json")
    if not config.get("model_type"):
        raise ModelError(f"`{folder / 'config.json'}` names no `model_type`.")
    return config


def _what_it_is(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        return f"it holds an adapter for `{base}`; merge it first, or name the base model"
    if found := sorted(folder.glob("*.gguf")):
        return (
            f"it holds `{found[0].name}`; convert it: `lushan models get NAME --source {found[0]}`"
        )
    if (folder / "model" / "config.json").is_file():
        return f"it is a run, whose model is in `{folder / 'model'}`"
    return "it has no `config.json`; expected a Hugging Face model, or a name from `lushan models list`"


def _find_family(folder: Path, config: dict[str, Any]) -> Family:
    model_type = config["model_type"]
    if refusal := _why_not(config):
        raise ModelError(f"`{folder}` (`{model_type}`) cannot be used: {refusal}")
    if model_type in DECODERS:
        return "decoder"
    if model_type in ENCODERS:
        return "encoder"
    # The library's own tables know the rest; importing them takes seconds.
    from transformers.models.auto import modeling_auto

    if model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "decoder"
    if model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "encoder"
    if "auto_map" in config:
        raise ModelError(
            f"`{folder}` (`{model_type}`) cannot be used: it needs Python code from its own folder, which Lushan never "
            "runs."
        )
    raise ModelError(
        f"`{folder}` (`{model_type}`) cannot be used: the installed transformers knows no causal language model or "
        f"encoder of this type. Tested: {', '.join(sorted(DECODERS | ENCODERS))}."
    )


def _why_not(config: dict[str, Any]) -> str | None:
    model_type = config["model_type"]
    if config.get("is_encoder_decoder"):
        return "it is an encoder-decoder (sequence to sequence); choose a causal language model or an encoder."
    if "vision_config" in config or "audio_config" in config:
        return "it reads pictures or sound; choose its text-only version."
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method", "quantised")
        return f"its weights are quantised ({method}) and cannot be trained; choose the original."
    if model_type in _RECURRENT:
        return "it carries a state from token to token, so documents cannot share a batch."
    return None


def _number(folder: Path, config: dict[str, Any], names: tuple[str, ...]) -> int:
    for name in names:
        if isinstance(value := config.get(name), int) and value > 0:
            return value
    raise ModelError(f"`{folder / 'config.json'}` lacks `{names[0]}`.")


def _read_weights(folder: Path) -> tuple[dict[str, list[int]], int]:
    """Give the shape of every tensor and the size of all files in bytes."""
    index = read_json(folder / "model.safetensors.index.json").get("weight_map", {})
    names = sorted(set(index.values())) or ["model.safetensors"]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(_explain_missing(folder, missing))
    shapes: dict[str, list[int]] = {}
    for name in names:
        shapes |= read_shapes(folder / name)
    return shapes, sum((folder / name).stat().st_size for name in names)


def _explain_missing(folder: Path, missing: list[str]) -> str:
    if len(missing) > 1 or missing != ["model.safetensors"]:
        return f"`{folder}` is incomplete: {', '.join(missing)} named in its index is missing."
    pickled = [
        name
        for name in ("pytorch_model.bin", "pytorch_model.bin.index.json")
        if (folder / name).is_file()
    ]
    if pickled:
        return (
            f"`{folder}` holds its weights only as `{pickled[0]}`, a format that can run code when it is read. If you "
            "trust it, convert it once with transformers: `AutoModelForCausalLM.from_pretrained(F).save_pretrained(F)`."
        )
    return f"`{folder}` holds no weights; expected `model.safetensors`."


def read_shapes(file: Path) -> dict[str, list[int]]:
    """Read the shapes of a safetensors file from its header.

    Raises:
        ModelError: If the header is broken or the file is shorter than the header says.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > size - 8:
            raise ModelError(f"`{file}` is broken: its header is cut off. Fetch it again.")
        try:
            header = json.loads(stream.read(length))
        except ValueError:
            raise ModelError(f"`{file}` is no safetensors file.") from None
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if 8 + length + end != size:
        raise ModelError(
            f"`{file}` is cut off: expected {8 + length + end:,} bytes, got {size:,}. Fetch it again."
        )
    return {name: entry["shape"] for name, entry in header.items()}
