"""Compile the layers of a backbone, where a prediction says that this pays back.

What a layer does between its matrix products (norms, rotary angles, gates, residuals) becomes fewer passes over memory.
All layers share one compiled code, and it takes any number of tokens, so that no batch is padded. Attention stays as
it is: its groups differ from batch to batch. The products themselves are the same calls, so the gain is what they leave.

Shapes: T tokens, D width.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lushan.atomic import write_json
from lushan.backbones import attention
from lushan.backbones.frozen import other_forwards
from lushan.backbones.hardware import Choice, machine
from lushan.backbones.inspect import ModelFacts
from lushan.backbones.load import Backbone
from lushan.backbones.native import why_missing
from lushan.backbones.native_compiling import find_compiler
from lushan.backbones.trained_layers import checkpointed
from lushan.records import Batch

Tell = Callable[[str], None]

COLD_SECONDS = 40.0
"""For a model's first compilation: measured on one core of an AMD EPYC 9005."""
USUAL_SPEEDUP = 1.03
"""Of a step, where it was not measured: about half of what full tuning gains on an AMD EPYC 9005."""
USUAL_SPEEDUP_AMX = 1.3
"""With matrix units the products take less of a step, and what is between them more."""
_SLOWEST_GFLOPS = 5.0
_LARGEST_ERROR = {torch.bfloat16: 0.25, torch.float32: 1e-3}
"""Of hidden states and gradients, as a share of their norm. In bf16, 30 layers were seen to round 0.08 apart: what is
looked for is code that is wrong."""
_FILE = "compiling.json"
_NUM_TURNS = 4
_FAILURES = (
    *(RuntimeError, TypeError, ValueError, KeyError, AssertionError, AttributeError),
    *(NotImplementedError, OSError),
)

logger = logging.getLogger(__name__)


class Work(NamedTuple):
    """Whose layers, and how they are trained: what decides the gain."""

    facts: ModelFacts
    precision: str
    method: str
    num_trained_layers: int
    num_threads: int

    @property
    def key(self) -> str:
        """The name of a measurement: work and machine."""
        here, facts = machine(), self.facts
        model = f"{facts.architecture} {facts.num_layers} x {facts.width}, {facts.num_parameters}"
        how = (
            f"{self.precision}, {self.method} {self.num_trained_layers}, {self.num_threads} threads"
        )
        # Layers that run fused are what compiled ones are compared with.
        fused = ", fused" if self.precision == "bf16" and not why_missing() else ""
        where = " ".join((here.processor, *here.features))
        return f"{model}: {how}{fused}: {where}, torch {torch.__version__}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What compiling took and what it gave, forward and backward, the optimizer left out."""

    eager_seconds_per_token: float
    compiled_seconds_per_token: float
    cold_seconds: float | None = None
    """Of compiling what was not on disk."""
    warm_seconds: float | None = None
    """Of taking what was on disk."""

    @property
    def speedup(self) -> float:
        """How many times as fast compiled layers are."""
        return self.eager_seconds_per_token / self.compiled_seconds_per_token


def choose_compiling(
    work: Work,
    *,
    num_tokens: float,
    seconds_per_token: Callable[[], float],
    device: str,
    cache: Path,
) -> Choice:
    """Decide whether compiling pays back within a run; `on` or `off`.

    Args:
        work: Whose layers.
        num_tokens: Tokens that the run trains on, over all epochs.
        seconds_per_token: Predicts forward and backward; only asked if it can matter.
        device: `cpu` or another device type of torch.
        cache: Folder that keeps measurements.
    """
    if work.num_trained_layers == 0:
        return Choice("off", "no layer is trained")
    if (work.method, work.precision) == ("lora", "bf16"):
        return Choice(
            "off", "compiled adapters could not use frozen weights that are laid out once"
        )
    if reason := why_impossible(device):
        return Choice("off", reason)
    known = _read(cache).get(work.key)
    if known is not None:
        cost = known.warm_seconds or known.cold_seconds or COLD_SECONDS
        saved = num_tokens * (known.eager_seconds_per_token - known.compiled_seconds_per_token)
        why = f"measured here: steps are {known.speedup:.2f} times as fast"
    else:
        cost = COLD_SECONDS
        speedup = USUAL_SPEEDUP_AMX if "amx_bf16" in machine().features else USUAL_SPEEDUP
        share = 1 - 1 / speedup
        if num_tokens * _most_seconds_per_token(work) * share < cost:
            return Choice("off", f"the run is too short for the {cost:.0f} s that it takes")
        saved = num_tokens * seconds_per_token() * share
        why = f"not measured here: steps are taken to be {speedup:.2f} times as fast"
    pays = saved > cost
    why = f"{why}, which saves {max(saved, 0):.0f} s of the run, and compiling takes {cost:.0f} s"
    return Choice("on" if pays else "off", why)


def why_impossible(device: str) -> str | None:
    """Say why layers cannot be compiled here, if so."""
    if device != "cpu":
        return f"layers are compiled for processors alone, not for `{device}`"
    if find_compiler() is None:
        return "there is no C++ compiler here (`g++` or `clang++`, or what `CXX` names)"
    return None


def _most_seconds_per_token(work: Work) -> float:
    """On the slowest core that is worth a thought, so that short runs need not measure theirs."""
    return 6 * work.facts.num_parameters / (_SLOWEST_GFLOPS * 1e9)


class CompiledLayers:
    """The trained layers of a backbone, compiled; they run so only while `in_use` lasts."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        """Prepare; code is made at the first pass."""
        self._layers = list(layers)
        options = _options()
        self._forwards = [
            checkpointed(each, torch.compile(_plain_forward(each), dynamic=True, options=options))
            for each in layers
        ]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Run the layers compiled; what is called around them (hooks) stays as it is."""
        attention.keep_out_of_compilation()
        with other_forwards(self._layers, self._forwards):
            yield


def _options() -> dict[str, Any]:
    """How torch compiles: with the compiler that we use, of which the environment of other processes is not told."""
    # Dropout then draws the numbers that it draws uncompiled.
    options: dict[str, Any] = {"fallback_random": True}
    if compiler := find_compiler():
        options["cpp.cxx"] = (compiler,)
    return options


def _plain_forward(layer: nn.Module) -> Callable[..., Any]:
    """What a layer computes, without the checkpointing that `transformers` puts around it: that is never compiled."""
    forward = type(layer).forward
    if isinstance(layer, GradientCheckpointingLayer):
        forward = getattr(forward, "__wrapped__", forward)
    return partial(forward, layer)


def compile_layers(
    backbone: Backbone, probe: Batch, work: Work, *, cache: Path, gain_decides: bool, tell: Tell
) -> CompiledLayers | None:
    """Compile the trained layers and compare them with themselves uncompiled; None if they are better left alone.

    Args:
        backbone: Ready to train.
        probe: Documents to try them on. Code may depend on their number of tokens: take the same in every run.
        work: The same as was asked about.
        cache: Folder that keeps code and measurements.
        gain_decides: Whether to leave the layers alone if they are no faster. A known gain is believed then, else it is
            measured anew.
        tell: Takes one line for a person.
    """
    if backbone.packing_mode != "packed":
        tell(f"Not compiling: documents run `{backbone.packing_mode}` in this architecture.")
        return None
    _prepare_library(cache)
    layers = CompiledLayers(list(backbone.layers)[-work.num_trained_layers :])
    trial = _Trial(backbone, layers, probe)
    was_training = backbone.model.training
    backbone.model.train()
    try:
        with torch.random.fork_rng(devices=[]):
            speedup = _try(trial, work, cache, believe=gain_decides, tell=tell)
    except _FAILURES as error:
        logger.debug("Compiling failed.", exc_info=True)
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        tell(f"Not compiling: these layers cannot be compiled ({reason}).")
        return None
    finally:
        backbone.model.train(was_training)
    if speedup is None or (gain_decides and speedup <= 1):
        tell("The layers run as they are.")
        return None
    return layers


def _prepare_library(cache: Path) -> None:
    """Say where code is kept; what the user's environment says comes first."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # slow to import

    # When torch is imported, it may already have put its default there: a folder that does not outlive a restart.
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR") in (None, default_cache_dir()):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache / "compiled")


def _try(trial: "_Trial", work: Work, cache: Path, *, believe: bool, tell: Tell) -> float | None:
    """Compile, compare and measure, unless that is known; gives how many times as fast, None if it is not the same."""
    before = _cache_counts()
    started = time.perf_counter()
    found = trial.run(compiled=True)
    seconds = time.perf_counter() - started
    num_hits, num_misses = (now - then for now, then in zip(_cache_counts(), before, strict=True))
    error = _relative_distance(trial.run(), found)
    largest = _LARGEST_ERROR[trial.backbone.core.dtype]
    del found
    if not error <= largest:
        tell(
            f"Not compiling: compiled layers give results {error:.1e} of their norm away from the uncompiled; "
            f"at most {largest} is rounding."
        )
        return None
    known = _read(cache).get(work.key)
    if known is None or not believe:
        eager, compiled = trial.seconds_per_token()
        known = replace(
            known or Measured(eager_seconds_per_token=eager, compiled_seconds_per_token=compiled),
            eager_seconds_per_token=eager,
            compiled_seconds_per_token=compiled,
        )
    if num_misses:
        known = replace(known, cold_seconds=seconds)
    elif num_hits:
        known = replace(known, warm_seconds=seconds)
    _write(cache, work.key, known)
    tell(
        f"Compiled {work.num_trained_layers} layers in {seconds:.1f} s"
        f"{', from disk' if num_hits and not num_misses else ''}: {known.speedup:.2f} times as fast, measured."
    )
    return known.speedup


class _Trial:
    """The same documents, forward and backward, with compiled layers and without."""

    def __init__(self, backbone: Backbone, layers: CompiledLayers, batch: Batch) -> None:
        self.backbone = backbone
        self._layers, self._batch = layers, batch
        self._trained = [each for each in backbone.core.parameters() if each.requires_grad]

    def run(self, *, compiled: bool = False) -> list[Tensor]:
        """Give the hidden states, (T, D), and all gradients of a sum over them."""
        torch.manual_seed(0)  # dropout
        with self._layers.in_use() if compiled else nullcontext():
            hidden_TD = self.backbone.hidden_states(self._batch)
        # Different factors: behind a norm, the sum of squares has no gradient.
        factors_TD = torch.arange(hidden_TD.numel()).cos().view_as(hidden_TD).to(hidden_TD)
        gradients = torch.autograd.grad(
            (hidden_TD * factors_TD).sum(), self._trained, allow_unused=True
        )
        return [hidden_TD.detach(), *(each for each in gradients if each is not None)]

    def seconds_per_token(self) -> tuple[float, float]:
        """Time it uncompiled and compiled, in turns; the best of each is what the machine can do."""
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(2 * _NUM_TURNS):
            started = time.perf_counter()
            self.run(compiled=turn % 2 == 1)
            seconds[turn % 2 == 1].append(time.perf_counter() - started)
        num_tokens = self._batch.num_tokens
        return min(seconds[False]) / num_tokens, min(seconds[True]) / num_tokens


def _relative_distance(expected: list[Tensor], found: list[Tensor]) -> float:
    """The larger of two distances, each as a share of the norm: of hidden states, and of all gradients together."""
    squares = torch.tensor([
        [(one - two).float().square().sum(), one.float().square().sum()]
        for one, two in zip(expected, found, strict=True)
    ])
    parts = torch.stack([squares[0], squares[1:].sum(dim=0)])
    return float((parts[:, 0] / parts[:, 1]).sqrt().max())


def _cache_counts() -> tuple[int, int]:
    """How many graphs were found on disk so far, and how many were not."""
    from torch._dynamo.utils import counters  # slow to import, rarely needed

    found = counters["inductor"]
    return found["fxgraph_cache_hit"], found["fxgraph_cache_miss"] + found["fxgraph_cache_bypass"]


def _read(cache: Path) -> dict[str, Measured]:
    """Read what was measured before; a file that is missing or not ours counts as nothing known."""
    file = cache / _FILE
    if not file.is_file():
        return {}
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        return {key: Measured(**values) for key, values in stored.items()}
    except (ValueError, TypeError, AttributeError) as error:
        logger.warning("Measuring again: `%s` cannot be read (%s).", file, error)
        return {}


def _write(cache: Path, key: str, found: Measured) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    everything = {**_read(cache), key: found}
    write_json(cache / _FILE, {name: asdict(each) for name, each in everything.items()})
