"""What writes the answers of a server: our own engine, or vLLM in its place. Everything else is computed here in any case."""

from collections.abc import Mapping
from typing import Literal, Protocol, cast

import torch

from lushan.errors import ModelError, SettingError, need
from lushan.inference.engine import Engine
from lushan.inference.generate import GenerationEngine
from lushan.inference.prefix_store import PrefixStore
from lushan.inference.vllm_engine import VllmEngine
from lushan.model_store.tuned_model import base_of, is_adapter, read_meaning
from lushan.serving.hosted import HostedModel

BackendName = Literal["lushan", "vllm"]
READ_TOKENS = 256
"""Prompt tokens that are read between two tokens of running answers; more would be read faster, and hold those up longer."""


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
    is_exact = (
        backbone.weight_form is None and next(backbone.core.parameters()).dtype == torch.float32
    )
    return VllmEngine(
        backbone,
        folder,
        precision="float32" if is_exact else "bfloat16",
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
