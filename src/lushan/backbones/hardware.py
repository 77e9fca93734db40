"""What this machine has, how fast it really is, and what follows: device, threads, precision."""

import ctypes
import dataclasses
import json
import logging
import math
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch
from torch import Tensor
from torch.nn.functional import linear

from lushan.atomic import write_json
from lushan.errors import SettingError

Precision = Literal["bf16", "fp32"]

TELLING_FEATURES = (
    *(
        "avx2",
        "avx512f",
        "avx512_bf16",
        "avx512_vnni",
        "avx512_fp16",
        "amx_tile",
        "amx_bf16",
        "amx_int8",
    ),
    *("asimd", "bf16", "i8mm", "sve", "sve2"),
)
"""Names, as Linux gives them, of the processor features that decide the speed of products."""

LAYER_SHAPES = ((576, 576), (576, 1536), (1536, 576))
"""(inputs, outputs) of the products in a layer of a 135M model."""
NUM_TOKENS = 512
NUM_TOKENS_FIRST_LOOK = 16
LONGEST_STEP_SECONDS = 0.8
MEASURE_SECONDS = 0.8
WORTHWHILE_SPEEDUP = 1.15
"""bf16 has 8 bits of mantissa; a gain below this is within the noise and not worth them."""
LARGEST_GRADIENT_ERROR = 0.05
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
"""Numbers of the parameters in glibc's malloc.h."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What was found, without measuring."""

    processor: str
    features: tuple[str, ...]
    """Those of `TELLING_FEATURES` that it has; empty where the system does not tell."""
    num_cores: int
    """Physical cores that this process may use."""
    num_threads: int
    """Hardware threads that this process may use, at least `num_cores`."""
    memory_bytes: int
    """Main memory, or the limit of the container if that is smaller."""
    accelerators: tuple[str, ...]
    """Names of the devices that torch sees, beside the processor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast linear layers go, forward and backward, in 10^9 floating-point operations a second."""

    device: str
    """`cpu` (then the speed is that of one core) or another device type of torch."""
    fp32_gflops: float
    bf16_gflops: float
    """0 where bf16 does not run."""
    bf16_training_works: bool
    """Whether bf16 gradients are finite and close to those of fp32."""
    torch_version: str


@dataclass(frozen=True, slots=True)
class Choice:
    """A decision and its reason, for people."""

    value: str
    why: str


def machine() -> Machine:
    """Look at this machine; takes milliseconds."""
    num_threads = num_usable_threads()
    return Machine(
        processor=_processor_name(),
        features=_features(),
        num_cores=min(psutil.cpu_count(logical=False) or num_threads, num_threads),
        num_threads=num_threads,
        memory_bytes=min(psutil.virtual_memory().total, _container_memory_bytes()),
        accelerators=_accelerator_names(),
    )


def num_usable_threads() -> int:
    """Hardware threads that this process may use: those it is bound to, and no more than the share of its container."""
    if hasattr(os, "sched_getaffinity"):
        num_allowed = len(os.sched_getaffinity(0))
    else:
        num_allowed = os.cpu_count() or 1
    return min(num_allowed, _container_cores())


def _container_cores() -> int:
    """Give the processor share of the container (Linux control groups), rounded up."""
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    if not quota.isdigit():
        return 1 << 30
    return max(1, math.ceil(int(quota) / int(period)))


def _container_memory_bytes() -> int:
    limit = _read("/sys/fs/cgroup/memory.max")
    return int(limit) if limit.isdigit() else 1 << 62


def free_memory_bytes() -> int:
    """Main memory that this process could still take: its share, if `torchrun` started several on this machine."""
    inside = _container_memory_bytes()
    if used := _read("/sys/fs/cgroup/memory.current"):
        inside -= int(used) - _droppable_bytes()
    num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(0, min(psutil.virtual_memory().available, inside)) // num_processes


def device_memory_bytes(device: str) -> float:
    """Memory of an accelerator that could still be taken: main memory's for `mps`, which shares it; else infinite if torch cannot tell."""
    if device == "mps":
        return free_memory_bytes()
    try:
        return torch.get_device_module(device).mem_get_info()[0]
    except (AttributeError, RuntimeError):
        return math.inf


def _droppable_bytes() -> int:
    """Give what a container holds of files that were read, which the system forgets when memory is asked for."""
    words = _read("/sys/fs/cgroup/memory.stat").split()
    found = dict(zip(words[::2], words[1::2], strict=True))
    return sum(int(found.get(name, "0")) for name in ("inactive_file", "active_file"))


def _read(path: str) -> str:
    """Give the text of a system file, stripped; empty where there is none."""
    file = Path(path)
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def _processor_name() -> str:
    named = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), flags=re.MULTILINE)
    if named:
        return named[1].strip()
    if platform.system() == "Darwin":
        question = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(question, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    return platform.processor() or platform.machine()


def _features() -> tuple[str, ...]:
    listed = re.search(
        r"^(?:flags|Features)\s*:\s*(.+)$", _read("/proc/cpuinfo"), flags=re.MULTILINE
    )
    present = set(listed[1].split()) if listed else set[str]()
    return tuple(name for name in TELLING_FEATURES if name in present)


def _accelerator_names() -> tuple[str, ...]:
    if not torch.accelerator.is_available():
        return ()
    kind = torch.accelerator.current_accelerator()
    if kind is None:
        return ()
    if kind.type == "cuda":
        return tuple(
            torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
        )
    return (kind.type,) * torch.accelerator.device_count()


def choose_device() -> Choice:
    """Take the accelerator that torch sees, else the processor."""
    found = _accelerator_names()
    kind = torch.accelerator.current_accelerator() if found else None
    if kind is None:
        return Choice("cpu", "torch sees no accelerator here")
    return Choice(kind.type, f"torch sees {found[0]}")


def choose_num_threads() -> Choice:
    """Take what `OMP_NUM_THREADS` says, else one thread per physical core: two on one core share its multipliers."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdecimal() and int(told) > 0:
        return Choice(told, "`OMP_NUM_THREADS` says so")
    here = machine()
    why = f"one per core: this process may use {here.num_cores} of them"
    return Choice(str(here.num_cores), why)


def choose_precision(
    requested: Literal["auto", "bf16", "fp32"], device: str, *, cache: Path | None = None
) -> Choice:
    """Decide in which precision to train; `auto` takes bf16 where it is measurably faster.

    Args:
        requested: What the recipe says.
        device: `cpu` or another device type of torch.
        cache: Folder that keeps the measurement, see `measure`.

    Raises:
        SettingError: If bf16 is asked for on a device where it does not work.
    """
    if requested == "fp32":
        return Choice("fp32", "the recipe says so")
    speed = measure(device, cache=cache)
    if requested == "bf16":
        if not speed.bf16_training_works:
            raise SettingError(
                f"Setting `model.precision` is `bf16`, which gives no usable gradients on `{device}` "
                "here. Use `fp32` or `auto`."
            )
        return Choice("bf16", "the recipe says so")
    if not speed.bf16_training_works:
        return Choice("fp32", f"bf16 gives no usable gradients on `{device}` here")
    ratio = speed.bf16_gflops / speed.fp32_gflops
    where = "one core" if device == "cpu" else f"`{device}`"
    why = (
        f"measured on {where}, forward and backward: bf16 {speed.bf16_gflops:,.0f} GFLOP/s, "
        f"fp32 {speed.fp32_gflops:,.0f} ({ratio:.1f} times; bf16 is worth it from {WORTHWHILE_SPEEDUP})"
    )
    return Choice("bf16" if ratio >= WORTHWHILE_SPEEDUP else "fp32", why)


def keep_freed_memory(*, keep: bool) -> bool:
    """Have this process keep what it frees, or give all of it back, now and later; says whether that worked.

    glibc gives large blocks back to Linux at once, so every step gets its gradients and activations as fresh pages
    that the kernel has to zero first: keep them while a model works. While one is loaded, what is freed is rather
    given back: it leaves holes that nothing fits into. Blocks above 32 MiB, the largest that glibc can keep, are
    always given back. One arena serves all threads: what the forward pass frees in one is of use to the backward
    pass in another. Results are the same. Source: mallopt(3).
    """
    if (libc := _glibc()) is None:
        return False
    if not keep:
        give_back_freed_memory()
    mmap_from, trim_from = (32 << 20, 2**31 - 1) if keep else (128 << 10, 128 << 10)
    settings = ((_M_MMAP_THRESHOLD, mmap_from), (_M_TRIM_THRESHOLD, trim_from), (_M_ARENA_MAX, 1))
    return all(libc.mallopt(name, value) for name, value in settings)


def give_back_freed_memory() -> None:
    """Give the kernel the holes that freed memory has left; costs as much as filling them again. Source: malloc_trim(3)."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    is_glibc = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
    return ctypes.CDLL(None) if is_glibc else None


def measure(device: str = "cpu", *, cache: Path | None = None, again: bool = False) -> Speed:
    """Measure the linear layers of a small model on a device; about one second, once per machine.

    Args:
        device: `cpu` or another device type of torch.
        cache: Folder whose `machine.json` keeps measurements, so that the same machine makes the
            same choice again. A record of other hardware or another torch is not used.
        again: Measure although it is known, because the machine was busy then.
    """
    here = machine()
    hardware = (here.processor, *here.features, *here.accelerators)
    key = f"{device}: {' '.join(hardware)}, torch {torch.__version__}"
    known = _read_measurements(cache)
    if key in known and not again:
        return known[key]
    speed = _measure_now(device)
    if cache is not None:
        _write_measurements(cache, {**known, key: speed})
    return speed


def _measure_now(device: str) -> Speed:
    works = _bf16_training_works(device)
    num_threads = torch.get_num_threads()
    # On a busy machine two threads wait for each other, which hides what the processor can do.
    torch.set_num_threads(1)
    try:
        gflops = _gflops(device, with_bf16=works)
    finally:
        torch.set_num_threads(num_threads)
    return Speed(
        device=device,
        fp32_gflops=round(gflops[torch.float32], 1),
        bf16_gflops=round(gflops.get(torch.bfloat16, 0.0), 1),
        bf16_training_works=works,
        torch_version=torch.__version__,
    )


def _gflops(device: str, *, with_bf16: bool) -> dict[torch.dtype, float]:
    """Give the best speed seen, in billions of operations a second, by element type."""
    kinds = [torch.float32, torch.bfloat16] if with_bf16 else [torch.float32]
    steps = {kind: _Step(kind, device) for kind in kinds}
    seconds = dict.fromkeys(kinds, math.inf)
    end = time.perf_counter() + MEASURE_SECONDS
    # In turns, so that whatever else the machine does meanwhile hits both alike.
    while time.perf_counter() < end:
        for kind, step in steps.items():
            seconds[kind] = min(seconds[kind], step.seconds_per_token())
    return {kind: _num_flops_per_token() / seconds[kind] / 1e9 for kind in kinds}


def _num_flops_per_token() -> int:
    """Count multiplications and additions of forward and backward: 6 per weight."""
    return sum(6 * inputs * outputs for inputs, outputs in LAYER_SHAPES)


class _Step:
    """Forward and backward through the layers of `LAYER_SHAPES`, which can be timed."""

    def __init__(self, kind: torch.dtype, device: str) -> None:
        self._weights = [
            torch.randn(outputs, inputs, device=device).mul_(0.02).to(kind).requires_grad_()
            for inputs, outputs in LAYER_SHAPES
        ]
        self._inputs = torch.randn(NUM_TOKENS, LAYER_SHAPES[0][0], device=device).to(kind)
        self._num_tokens = NUM_TOKENS_FIRST_LOOK
        self.seconds_per_token()  # the first call prepares kernels
        first_look_seconds = min(self.seconds_per_token() for _ in range(3))
        if first_look_seconds * NUM_TOKENS < LONGEST_STEP_SECONDS:
            self._num_tokens = NUM_TOKENS

    def seconds_per_token(self) -> float:
        """Run once and give the wall time per token."""
        _wait_for(self._inputs)
        start = time.perf_counter()
        hidden = self._inputs[: self._num_tokens].detach().requires_grad_()
        for weight in self._weights:
            hidden = linear(hidden, weight)
        torch.autograd.backward(hidden, torch.ones_like(hidden))
        _wait_for(self._inputs)
        return (time.perf_counter() - start) / self._num_tokens


def _wait_for(tensor: Tensor) -> None:
    if tensor.device.type != "cpu":
        torch.accelerator.synchronize()


def _bf16_training_works(device: str) -> bool:
    """Tell whether a bf16 layer gives nearly the weight gradient that fp32 gives."""
    generator = torch.Generator().manual_seed(0)
    inputs_TI = torch.randn(64, 576, generator=generator)
    weight_OI = torch.randn(192, 576, generator=generator) * 0.04
    try:
        rough = _weight_gradient(inputs_TI, weight_OI, kind=torch.bfloat16, device=device)
    except (NotImplementedError, RuntimeError, TypeError):
        return False
    exact = _weight_gradient(inputs_TI, weight_OI, kind=torch.float32, device="cpu")
    error = (rough - exact).norm() / exact.norm()
    return bool(error < LARGEST_GRADIENT_ERROR)  # False for NaN


def _weight_gradient(
    inputs_TI: Tensor, weight_OI: Tensor, *, kind: torch.dtype, device: str
) -> Tensor:
    leaf = weight_OI.to(device=device, dtype=kind).requires_grad_()
    answer = linear(inputs_TI.to(device=device, dtype=kind), leaf)
    (gradient,) = torch.autograd.grad(torch.tanh(answer).sum(), leaf)
    return gradient.float().cpu()


def _read_measurements(cache: Path | None) -> dict[str, Speed]:
    """Read what was measured before; a file that is missing or not ours counts as nothing known."""
    if cache is None or not (cache / "machine.json").is_file():
        return {}
    try:
        stored = json.loads((cache / "machine.json").read_text(encoding="utf-8"))
        return {key: Speed(**values) for key, values in stored.items()}
    except (ValueError, TypeError, AttributeError) as error:
        logger.warning("Measuring again: `%s` cannot be read (%s).", cache / "machine.json", error)
        return {}


def _write_measurements(cache: Path, measurements: dict[str, Speed]) -> None:
    values = {key: dataclasses.asdict(speed) for key, speed in measurements.items()}
    try:
        cache.mkdir(parents=True, exist_ok=True)
        write_json(cache / "machine.json", values)
    except OSError as error:  # a cache that cannot be written only costs time
        logger.warning("What was measured of this machine is not kept: %s.", error)
