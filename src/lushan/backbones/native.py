"""What torch has no fast code for: products with packed weights, the attention of a decoding step, and norms.

All are in C++, compiled on this machine at first use.

The library stays in the cache folder, one for each source, compiler and torch. Where it cannot be had, `why_missing` says
why, and torch computes. Shapes: M rows, I inputs, O outputs; those of `slot_cache.py`.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from lushan.backbones.hardware import machine
from lushan.backbones.sources import cache_folder

NEEDED_FEATURES = ("avx512f", "avx512_bf16")
"""Of the processor."""
FORMS = {"bf16": 0, "int8": 1, "int4": 2}
"""Numbers by which the library knows what weights are."""
_SOURCES = tuple(
    Path(__file__).with_name(name)
    for name in ("products.cpp", "slot_attention.cpp", "rms_norm.cpp")
)
_FLAGS = (
    *("-std=c++17", "-O3", "-shared", "-fPIC", "-fopenmp", "-fno-exceptions"),
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-mfma"),
)
_COMPILE_SECONDS = 120
_LARGEST_ERROR = 1e-5
"""Of the self-test, as a share of the norm."""


def find_compiler() -> str | None:
    """Give the C++ compiler that is used: `CXX`, else what this system has."""
    named = os.environ.get("CXX")
    candidates = (named,) if named else ("g++", "clang++", "c++")
    return next((each for each in candidates if shutil.which(each)), None)


def why_missing() -> str:
    """Say why there are no products of our own here; empty if there are."""
    found = _load()
    return found if isinstance(found, str) else ""


def multiply(
    inputs_MI: Tensor,
    weights: Tensor,
    scales: Tensor | None,
    bias_O: Tensor | None,
    *,
    form: int,
    num_outputs: int,
    dtype: torch.dtype,
) -> Tensor:
    """Multiply rows by packed weights; (M, O).

    Args:
        inputs_MI: Rows in bfloat16, contiguous.
        weights: As `products.cpp` lays them out.
        scales: Of the weights; None in bfloat16.
        bias_O: In float32.
        form: One of `FORMS`.
        num_outputs: O.
        dtype: Of the result: bfloat16 or float32.
    """
    num_rows, num_inputs = inputs_MI.shape
    outputs_MO = torch.empty(num_rows, num_outputs, dtype=dtype)
    if num_rows == 0:
        return outputs_MO
    _library().lushan_multiply(
        inputs_MI.data_ptr(),
        weights.data_ptr(),
        None if scales is None else scales.data_ptr(),
        None if bias_O is None else bias_O.data_ptr(),
        outputs_MO.data_ptr(),
        num_rows,
        num_inputs,
        num_outputs,
        form,
        dtype == torch.float32,
        torch.get_num_threads(),
    )
    return outputs_MO


_NAMES_OF_POINTERS = (
    *("queries", "keys", "values", "key_table", "value_table", "positions", "outputs"),
)
_NAMES_OF_SIZES = (
    *("num_texts", "num_key_heads", "num_shared", "width", "query_text", "query_head"),
    *("key_text", "key_head", "value_text", "value_head", "table_text", "table_head", "window"),
)


class _SlotJob(ctypes.Structure):
    """What `slot_attention.cpp` is told."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _NAMES_OF_POINTERS),
        *((name, ctypes.c_int64) for name in _NAMES_OF_SIZES),
        ("scaling", ctypes.c_double),
    )


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
    job = _SlotJob(
        *(each.data_ptr() for each in pointers),
        *sizes,
        *tables[0].stride()[:2],
        window or 0,
        scaling,
    )
    _library().lushan_attend(job, torch.get_num_threads())
    return outputs_NHD


def rms_norm(inputs: Tensor, weight_D: Tensor, *, epsilon: float, adds_one: bool) -> Tensor:
    """Norm the last axis by its root mean square.

    Args:
        inputs: In bfloat16, (..., D), with D a multiple of 16.
        weight_D: In bfloat16.
        epsilon: Added to the mean of squares.
        adds_one: Whether the factors are 1 + `weight_D`.
    """
    inputs = inputs.contiguous()
    outputs = torch.empty_like(inputs)
    width = len(weight_D)
    _library().lushan_rms_norm(
        inputs.data_ptr(),
        weight_D.data_ptr(),
        outputs.data_ptr(),
        inputs.numel() // width,
        width,
        epsilon,
        adds_one,
    )
    return outputs


@cache
def _library() -> Any:  # noqa: ANN401 - a library without types
    found = _load()
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


@cache
def _load() -> ctypes.CDLL | str:
    """Give the library, compiled if need be; or say why there is none."""
    missing = [name for name in NEEDED_FEATURES if name not in machine().features]
    if missing:
        return f"this processor has no `{missing[0]}`"
    compiler = find_compiler()
    if compiler is None:
        return "there is no C++ compiler here (`g++` or `clang++`, or what `CXX` names)"
    try:
        library = _opened(compiler)
    except (OSError, subprocess.SubprocessError) as error:
        return f"the products could not be compiled with `{compiler}` ({error})"
    pointers, sizes = [ctypes.c_void_p] * 5, [ctypes.c_int64] * 3
    library.lushan_multiply.argtypes = [*pointers, *sizes, *([ctypes.c_int] * 3)]
    library.lushan_multiply.restype = library.lushan_attend.restype = None
    library.lushan_rms_norm.argtypes = [
        *([ctypes.c_void_p] * 3),
        *([ctypes.c_int64] * 2),
        *(ctypes.c_double, ctypes.c_int),
    ]
    library.lushan_rms_norm.restype = None
    library.lushan_attend.argtypes = [ctypes.POINTER(_SlotJob), ctypes.c_int]
    return library if _is_right(library) else "the compiled products are wrong on this processor"


def _opened(compiler: str) -> ctypes.CDLL:
    """Open the library; one that was cut short, or made on another system, is made anew."""
    file = _compiled(compiler)
    try:
        return ctypes.CDLL(str(file))
    except OSError:
        file.unlink()
        return ctypes.CDLL(str(_compiled(compiler)))


def _compiled(compiler: str) -> Path:
    """Give the file of the library; made beside and renamed, as several processes may begin at once."""
    sources = (each.read_text(encoding="utf-8") for each in _SOURCES)
    text = "\n".join((*sources, compiler, *_FLAGS, torch.__version__))
    folder = cache_folder() / "native"
    file = folder / f"products-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        # `libgomp.so.1`, which it asks for, is in the process already: torch brings it, so that there is one pool of threads.
        # Process numbers would not do: containers that share a cache give the same ones.
        with TemporaryDirectory(dir=folder, prefix=".making-") as beside:
            made = Path(beside) / file.name
            command = [compiler, *_FLAGS, *map(str, _SOURCES), "-o", str(made)]
            subprocess.run(  # noqa: S603 - our own source, by the user's compiler
                command, check=True, capture_output=True, timeout=_COMPILE_SECONDS
            )
            made.replace(file)
    return file


def _is_right(library: ctypes.CDLL) -> bool:
    """Whether a product with one block of bfloat16 weights, each with every input, is what torch gives."""
    generator = torch.Generator().manual_seed(0)
    inputs_MI, weight_OI = (
        torch.randn(size, 32, generator=generator).bfloat16() for size in (9, 16)
    )
    packed = weight_OI.view(16, 16, 2).transpose(0, 1).contiguous()
    found_MO = torch.empty(9, 16)
    pointers = (inputs_MI.data_ptr(), packed.data_ptr(), None, None, found_MO.data_ptr())
    library.lushan_multiply(*pointers, 9, 32, 16, FORMS["bf16"], 1, 1)
    exact_MO = inputs_MI.float() @ weight_OI.float().T
    return bool((found_MO - exact_MO).norm() <= _LARGEST_ERROR * exact_MO.norm())
