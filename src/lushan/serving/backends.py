"""What writes the answers of a server: our own engine, or vLLM in its place. Everything else is computed here in any case."""

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol, cast

import torch

from lushan.backbones.hardware import device_memory_bytes, free_memory_bytes
from lushan.backbones.load import Backbone
from lushan.errors import ModelError, SettingError, need
from lushan.inference.engine import Engine
from lushan.inference.generate import GenerationEngine
from lushan.inference.prefix_store import PrefixStore, bytes_of_token
from lushan.inference.vllm_engine import VllmEngine
from lushan.model_store.tuned_model import base_of, is_adapter, read_meaning
from lushan.serving.hosted import HostedModel

BackendName = Literal["lushan", "vllm"]
READ_TOKENS = 256
"""Prompt tokens that are read between two tokens of running answers; more would be read faster, and hold those up longer."""
MOST_TOKENS = 65_536
LEAST_TOKENS = 2_048
"""Tokens that a model remembers at most, and in any case, where nobody says how many."""
START_SHARE = 0.5
"""Of the memory that weights leave: what models of a server may take for that together, once they are all loaded."""
LATER_SHARE = 0.25
"""Of the memory that is free: what a model may take that comes when others are served already."""


class Room(NamedTuple):
    """How much a model may remember of texts."""

    num_tokens: int
    num_bytes: int


def room_for(model: HostedModel, max_tokens: int | None, *, share: float) -> Room:
    """Decide how many tokens a model may remember, together with all that share its layers.

    Args:
        model: The model, loaded.
        max_tokens: What a user said; None takes as many as a share of the free memory holds, within bounds.
        share: Of the memory that is free where it computes.
    """
    backbone, _ = model.writes_with
    of_token = bytes_of_token(backbone, _precision(backbone))
    if max_tokens is None:
        kind = backbone.device.type
        free = free_memory_bytes() if kind == "cpu" else device_memory_bytes(kind)
        fitting = min(MOST_TOKENS, share * free / max(of_token, 1))
        max_tokens = max(LEAST_TOKENS, int(fitting))
    return Room(max_tokens, max_tokens * of_token)


def _precision(backbone: Backbone) -> str:
    """Give the type of keys and values, as torch calls it."""
    is_exact = (
        backbone.weight_form is None and next(backbone.core.parameters()).dtype == torch.float32
    )
    return "float32" if is_exact else "bfloat16"


class MakeEngine(Protocol):
    """Make what writes for a model, and for all that share its layers."""

    def __call__(self, model: HostedModel, *, max_rows: int, max_tokens: int) -> Engine:
        """Make an engine without requests.

        Args:
            model: The first that is asked.
            max_rows: Answers that are written at once.
            max_tokens: Tokens that are remembered at once.

        Raises:
            ModelError: If the model cannot write.
        """
        ...


def own_engine(model: HostedModel, *, max_rows: int, max_tokens: int) -> Engine:
    """Make one of Lushan's engines, which uses the weights that are loaded."""
    backbone, many = model.writes_with
    return GenerationEngine(
        backbone,
        max_rows=max_rows,
        max_tokens=max_tokens,
        max_read_tokens=READ_TOKENS,
        prefixes=PrefixStore(max_tokens),
        many=many,
    )


def vllm_engine(model: HostedModel, *, max_rows: int, max_tokens: int) -> Engine:
    """Start vLLM, with weights of its own."""
    folder = model.folder
    backbone, many = model.writes_with
    if is_adapter(folder):
        if many is None:
            raise ModelError(
                f"vLLM cannot take the adapter of `{model.name}`, which shares its layers with no other model. "
                "Serve it with `--backend lushan`, or write it whole: `lushan export --to hf`."
            )
        folder = base_of(folder, read_meaning(folder))
    return VllmEngine(
        backbone,
        folder,
        precision=_precision(backbone),
        max_rows=max_rows,
        max_tokens=max_tokens,
        takes_adapters=many is not None,
    )


BACKENDS: Mapping[BackendName, MakeEngine] = {"lushan": own_engine, "vllm": vllm_engine}


def choose_backend(name: str) -> BackendName:
    """Check what a user named.

    Raises:
        SettingError: If there is none of this name.
        MissingExtraError: If it is not installed.
    """
    if name not in BACKENDS:
        raise SettingError(f"`--backend {name}` is not known. Known: {', '.join(BACKENDS)}.")
    if name == "vllm":
        need("vllm", extra="vllm", purpose="`--backend vllm`")
    return cast("BackendName", name)
