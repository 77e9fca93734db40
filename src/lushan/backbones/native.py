"""What torch has no fast code for: products with packed weights, decoder layers, attention; for training `native_training.py`.

All are in C++, compiled on this machine at first use.

The library stays in the cache folder, one for each source, compiler and torch. Where it cannot be had, `why_missing` says
why, and torch computes. Shapes: M rows, I inputs, O outputs; T rows, D width; those of `slot_cache.py`.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lushan.backbones.hardware import Choice, machine
from lushan.backbones.native_compiling import Opened, open_library
from lushan.backbones.native_structures import (
    Adapted,
    DocumentJob,
    Layer,
    LowRankJob,
    Matrix,
    Moved,
    SlotJob,
    StepLayer,
    TrainedDocuments,
)

NEEDED_FEATURES = ("avx512f", "avx512_bf16", "avx512_vnni")
"""Of the processor."""
FORMS = {"bf16": 0, "int8": 1, "int4": 2}
"""Numbers by which the library knows what weights are."""
_NAMES = (
    *("products", "layers", "slot_attention", "attention", "scores"),
    *("training", "short_attention", "block_attention", "low_rank", "dropout", "adamw"),
)
_SOURCES = tuple(Path(__file__).with_name(f"{name}.cpp") for name in _NAMES)
_HEADERS = tuple(Path(__file__).with_name(name) for name in ("native.h", "documents.h"))
_LARGEST_ERROR = 1e-5
"""Of the self-test, as a share of the norm."""


def why_missing() -> str:
    """Say why there are no products of our own here; empty if there are."""
    found = _load()
    return found if isinstance(found, str) else ""


def choose_functions() -> Choice:
    """Take compiled functions where this machine can have them, else torch's."""
    if why := why_missing():
        return Choice("of torch", why)
    return Choice(
        "compiled", "the processor and the compiler can, and a product of theirs was right"
    )


def identity() -> str:
    """Name the library: another for other sources, compilers and versions of torch; empty if there is none."""
    return "" if why_missing() else Path(library()._name).stem


def environment() -> dict[str, str]:
    """Give the variables with which another process computes with the functions of this one, or as it without any."""
    found = _load()
    return {"CXX": "none" if isinstance(found, str) else found.compiler}


def matrix(
    weights: Tensor,
    scales: Tensor | None,
    bias_O: Tensor | None = None,
    *,
    num_inputs: int,
    num_outputs: int,
    form: str,
) -> Matrix:
    """Describe a packed matrix.

    Args:
        weights: As `products.cpp` lays them out.
        scales: Of the weights; None in bfloat16.
        bias_O: In float32.
        num_inputs: I, with padding.
        num_outputs: O.
        form: One of `FORMS`.
    """
    addresses = weights.data_ptr(), address_of(scales), address_of(bias_O)
    return Matrix(*addresses, num_inputs, num_outputs, FORMS[form], num_inputs)


def address_of(tensor: Tensor | None) -> int | None:
    """Where the numbers of a tensor are; None of nothing."""
    return None if tensor is None else tensor.data_ptr()


def multiply(
    inputs_MI: Tensor, packed: Matrix, bias_O: Tensor | None, *, dtype: torch.dtype
) -> Tensor:
    """Multiply rows by packed weights; (M, O).

    Args:
        inputs_MI: Rows in bfloat16, contiguous.
        packed: The matrix.
        bias_O: In float32.
        dtype: Of the result: bfloat16 or float32.
    """
    num_rows = len(inputs_MI)
    outputs_MO = torch.empty(num_rows, packed.num_outputs, dtype=dtype)
    if num_rows:
        library().lushan_multiply(
            packed,
            address_of(bias_O),
            inputs_MI.data_ptr(),
            num_rows,
            outputs_MO.data_ptr(),
            dtype == torch.float32,
            torch.get_num_threads(),
        )
    return outputs_MO


def before_attention(
    layer: Layer,
    residual_TD: Tensor,
    rotary: tuple[Tensor, Tensor],
    adapted: Adapted | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give what the attention of a layer works on: queries, keys and values, (T, heads, head width), bfloat16.

    Args:
        layer: The layer.
        residual_TD: What earlier layers made, float32, contiguous.
        rotary: Cosines and sines of every row, (T, head width), float32, contiguous.
        adapted: What is added to its linear layers.
    """
    num_rows, width = len(residual_TD), layer.head_width
    heads = (layer.num_heads, layer.num_key_heads, layer.num_key_heads)
    made = [torch.empty(num_rows, each, width, dtype=torch.bfloat16) for each in heads]
    library().lushan_before_attention(
        layer,
        adapted,
        residual_TD.data_ptr(),
        num_rows,
        *(each.data_ptr() for each in (*rotary, *made)),
        torch.get_num_threads(),
    )
    query_THD, key_TGD, value_TGD = made
    return query_THD, key_TGD, value_TGD


def after_attention(
    layer: Layer, attended_TF: Tensor, residual_TD: Tensor, adapted: Adapted | None = None
) -> Tensor:
    """Give what a layer makes of its attention; (T, D), float32.

    Args:
        layer: The layer.
        attended_TF: What its attention made, bfloat16, contiguous.
        residual_TD: What `before_attention` was given.
        adapted: The same.
    """
    outputs_TD = torch.empty_like(residual_TD)
    library().lushan_after_attention(
        layer,
        adapted,
        attended_TF.data_ptr(),
        residual_TD.data_ptr(),
        outputs_TD.data_ptr(),
        len(residual_TD),
        torch.get_num_threads(),
    )
    return outputs_TD


class InStep(NamedTuple):
    """A layer in a decoding step."""

    layer: Layer
    adapted: Adapted | None
    tables: tuple[Tensor, Tensor]
    """Of keys and values, (S, G, C, D); written to."""
    window: int | None
    """How many tokens a query sees; None for all."""
    scaling: float
    """Factor of the scores."""


def step(
    layers: Sequence[InStep],
    residual_ND: Tensor,
    rotary: tuple[Tensor, Tensor],
    positions_N: Tensor,
) -> Tensor:
    """Run the new token of every text through layers that follow each other; (N, D), float32.

    Args:
        layers: Their tables are all alike.
        residual_ND: What earlier layers made, float32, contiguous.
        rotary: Cosines and sines of every row, (N, head width), float32, contiguous.
        positions_N: Of the new tokens.
    """
    outputs_ND = torch.empty_like(residual_ND)
    told = (StepLayer * len(layers))(
        *(
            (
                ctypes.pointer(each.layer),
                each.adapted and ctypes.pointer(each.adapted),
                *(table.data_ptr() for table in each.tables),
                each.window or 0,
                each.scaling,
            )
            for each in layers
        )
    )
    table_text, table_head, *_ = layers[0].tables[0].stride()
    library().lushan_step(
        told,
        len(layers),
        residual_ND.data_ptr(),
        outputs_ND.data_ptr(),
        *(each.data_ptr() for each in (*rotary, positions_N)),
        len(residual_ND),
        table_text,
        table_head,
        torch.get_num_threads(),
    )
    return outputs_ND


def can_attend(query: Tensor) -> bool:
    """Whether `attend` takes such queries."""
    is_known = query.dtype == torch.bfloat16 and query.device.type == "cpu"
    return is_known and query.shape[-1] % 32 == 0 and not why_missing()


def attend(
    rows: tuple[Tensor, Tensor, Tensor],
    tables: tuple[Tensor, Tensor],
    positions_N: Tensor,
    *,
    scaling: float,
    window: int | None,
) -> Tensor:
    """Put the new token of every text into its slot, and let it look at the slot; (N, H, D).

    Args:
        rows: Queries (H, N, D), keys and values (G, N, D) of the new tokens, in bfloat16; D a multiple of 32.
        tables: Keys and values, (S, G, C, D) each; written to.
        positions_N: Of the new tokens.
        scaling: Factor of the scores.
        window: How many tokens a query sees, itself included; None for all.
    """
    query_HND, key_GND, value_GND = (
        each if each.stride(-1) == 1 else each.contiguous() for each in rows
    )
    heads, num_texts, width = query_HND.shape
    key_heads = key_GND.shape[0]
    outputs_NHD = query_HND.new_empty(num_texts, heads, width)
    pointers = (query_HND, key_GND, value_GND, *tables, positions_N, outputs_NHD)
    strides = (each.stride(axis) for each in (query_HND, key_GND, value_GND) for axis in (1, 0))
    sizes = (num_texts, key_heads, heads // key_heads, width, *strides)
    job = SlotJob(
        *(each.data_ptr() for each in pointers),
        *sizes,
        *tables[0].stride()[:2],
        window or 0,
        scaling,
    )
    library().lushan_attend(job, torch.get_num_threads())
    return outputs_NHD


def rms_norm(inputs: Tensor, weight_D: Tensor, *, epsilon: float, adds_one: bool) -> Tensor:
    """Norm the last axis by its root mean square; bfloat16.

    Args:
        inputs: In bfloat16, or float32 as fused layers make them; (..., D), with D a multiple of 16.
        weight_D: In bfloat16.
        epsilon: Added to the mean of squares.
        adds_one: Whether the factors are 1 + `weight_D`.
    """
    inputs = inputs.contiguous()
    outputs = torch.empty_like(inputs, dtype=torch.bfloat16)
    sizes = inputs.numel() // len(weight_D), len(weight_D), epsilon, adds_one
    given = inputs.data_ptr(), weight_D.data_ptr(), outputs.data_ptr()
    if inputs.dtype == torch.float32:
        library().lushan_norm(*given, *sizes)
    else:
        rows, weight, made = given
        library().lushan_add_and_norm(
            rows, None, weight, None, made, None, *sizes, torch.get_num_threads()
        )
    return outputs


def attend_documents(
    rows: tuple[Tensor, Tensor, Tensor],
    lengths_N: Tensor,
    prefix: tuple[Tensor, Tensor] | None,
    *,
    causal: bool,
    scaling: float,
    window: int | None,
) -> Tensor:
    """Attend inside of documents that stand behind each other; (T, H, D).

    Args:
        rows: Queries (T, H, D), keys and values (T, G, D), in bfloat16, contiguous; D a multiple of 32.
        lengths_N: Tokens of each document, int64.
        prefix: Keys and values that all continue, (G, P, D) each, alike; None for nothing.
        causal: Whether a token sees those before it alone.
        scaling: Factor of the scores.
        window: How many tokens a query sees, itself included, on each side; None for all.
    """
    query_THD, key_TGD, _ = rows
    outputs_THD = torch.empty_like(query_THD)
    given = (*rows, outputs_THD, *(prefix or (None, None)), lengths_N)
    sizes = (0, 0, 0)
    if prefix is not None:
        head, token, _ = prefix[0].stride()
        sizes = (prefix[0].shape[1], head, token)
    job = DocumentJob(
        *map(address_of, given),
        len(lengths_N),
        *(query_THD.shape[1], key_TGD.shape[1], query_THD.shape[2]),
        *(*sizes, causal, window or 0),
        scaling,
    )
    library().lushan_attend_documents(job, torch.get_num_threads())
    return outputs_THD


def summarise(scores_RV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give the likeliest of each row (the first of several), its score, and the log of the sum of exponentials; (R,) each.

    Args:
        scores_RV: In float32, contiguous.
    """
    num_rows, width = scores_RV.shape
    likeliest_R = torch.empty(num_rows, dtype=torch.int64)
    largest_R, totals_R = torch.empty(num_rows), torch.empty(num_rows)
    library().lushan_summarise(
        scores_RV.data_ptr(),
        num_rows,
        width,
        *(each.data_ptr() for each in (likeliest_R, largest_R, totals_R)),
        torch.get_num_threads(),
    )
    return likeliest_R, largest_R, totals_R


@cache
def library() -> Any:  # noqa: ANN401 - a library without types
    """Give the library.

    Raises:
        RuntimeError: If it is missing.
    """
    found = _load()
    if isinstance(found, str):
        raise RuntimeError(found)
    return found.library


@cache
def _load() -> Opened | str:
    """Give the library, compiled if need be; or say why there is none."""
    missing = [name for name in NEEDED_FEATURES if name not in machine().features]
    if missing:
        return f"this processor has no `{missing[0]}`"
    opened = open_library(_SOURCES, _HEADERS)
    if isinstance(opened, str):
        return opened
    address, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    layer, adapted = ctypes.POINTER(Layer), ctypes.POINTER(Adapted)
    for name, arguments in {
        "multiply": [ctypes.POINTER(Matrix), address, address, size, address, number, number],
        "before_attention": [layer, adapted, address, size, *([address] * 5), number],
        "after_attention": [layer, adapted, *([address] * 3), size, number],
        "step": [
            *(ctypes.POINTER(StepLayer), size, *([address] * 5)),
            *(size, size, size, number),
        ],
        "norm": [*([address] * 3), size, size, ctypes.c_double, number],
        "attend": [ctypes.POINTER(SlotJob), number],
        "summarise": [address, size, size, *([address] * 3), number],
        "attend_documents": [ctypes.POINTER(DocumentJob), number],
        "add_and_norm": [*([address] * 6), size, size, ctypes.c_double, number, number],
        "norm_backward": [*([address] * 7), size, size, number, number],
        "gates": [*([address] * 3), size, number, number],
        "gates_backward": [*([address] * 5), size, number, number],
        "turn": [*([address] * 4), size, size, size, number, number],
        "attend_trained": [ctypes.POINTER(TrainedDocuments), number],
        "attend_trained_backward": [ctypes.POINTER(TrainedDocuments), number],
        "adapt": [ctypes.POINTER(LowRankJob), number],
        "adapt_backward": [ctypes.POINTER(LowRankJob), number],
        "cross_entropy": [*([address] * 4), size, size, ctypes.c_double, number, number],
        "drop": [*([address] * 3), size, ctypes.c_uint64, size, number],
        "adamw": [ctypes.POINTER(Moved), size, *([ctypes.c_double] * 4), size, number],
        "add_gradient": [address, address, address, size, number],
        "gradient_norm": [ctypes.POINTER(Moved), size, number],
    }.items():
        function = getattr(opened.library, f"lushan_{name}")
        function.argtypes, function.restype = arguments, None
    opened.library.lushan_gradient_norm.restype = ctypes.c_double
    if not _is_right(opened.library):
        return "the compiled products are wrong on this processor"
    return opened


def _is_right(library: ctypes.CDLL) -> bool:
    """Whether a product with one block of bfloat16 weights, each with every input, is what torch gives."""
    generator = torch.Generator().manual_seed(0)
    inputs_MI, weight_OI = (
        torch.randn(size, 32, generator=generator).bfloat16() for size in (9, 16)
    )
    packed = weight_OI.view(16, 16, 2).transpose(0, 1).contiguous()
    found_MO = torch.empty(9, 16)
    described = matrix(packed, None, num_inputs=32, num_outputs=16, form="bf16")
    library.lushan_multiply(described, None, inputs_MI.data_ptr(), 9, found_MO.data_ptr(), 1, 1)
    exact_MO = inputs_MI.float() @ weight_OI.float().T
    return bool((found_MO - exact_MO).norm() <= _LARGEST_ERROR * exact_MO.norm())
