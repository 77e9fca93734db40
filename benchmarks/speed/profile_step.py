"""Where the time of an optimizer step goes: products of matrices, attention, what is between, the optimizer.

Prints a table in Markdown. Texts are those of the file, 16 a step; shares come from torch's profiler, which adds its own
time to small operations, so that those look a little larger than they are.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ours_gemm_share import SETTINGS
from torch.profiler import ProfilerActivity, profile, record_function
from works import LAYER_WEIGHTS

from lushan.backbones import native_training
from lushan.backbones.adapters import Method, attach, num_frozen_layers
from lushan.backbones.frozen import FrozenStates
from lushan.backbones.hardware import measure
from lushan.backbones.load import Backbone, load_backbone
from lushan.backbones.trained_layers import fuse_trained_layers
from lushan.catalog import load_task
from lushan.data.batching import pack
from lushan.records import Batch, Features, TaskState
from lushan.training.optimizer import Optimizer

ROWS_PER_STEP = 16
NUM_STEPS = 10
STATE = TaskState(labels=("a", "b"))
OPERATIONS_PER_WEIGHT: dict[str, float] = {"full": 6, "lora": 4, "top": 6 * 4 / 30}
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "mkldnn::_linear_pointwise")
_ATTENTION = ("aten::bmm", "aten::_softmax", "aten::_softmax_backward_data", "aten::index_select")


def make_batches(file: Path, backbone: Backbone) -> list[Batch]:
    """Pack the first texts of a file, 16 at a time."""
    lines = file.read_text(encoding="utf-8").splitlines()[: ROWS_PER_STEP * NUM_STEPS]
    encoded = backbone.tokenizer.encode([json.loads(line)["text"] for line in lines])
    features = [
        Features(tuple(each.ids), f"text {number}", number, target=number % 2)
        for number, each in enumerate(encoded)
    ]
    starts = range(0, len(features), ROWS_PER_STEP)
    return [pack(features[start : start + ROWS_PER_STEP]) for start in starts]


def frozen_states(backbone: Backbone, depth: int, batches: list[Batch]) -> FrozenStates:
    """Stand in for what frozen layers made of the texts before training."""
    documents = [each for batch in batches for each in batch.features]
    ends = list(itertools.accumulate(len(each.token_ids) for each in documents))
    first_rows = dict(zip((each.content for each in documents), [0, *ends[:-1]], strict=True))
    width = backbone.core.config.hidden_size
    states_RD = torch.randn(ends[-1], width, dtype=backbone.core.dtype)
    return FrozenStates(depth, "all", first_rows, states_RD)


def profile_method(method: Method, model: Path, file: Path, limit: float) -> str:
    """Train some steps with one method; a line of the table."""
    backbone = load_backbone(model, purpose="classify", labels=STATE.labels, precision="bf16")
    attach(backbone, method=method)
    fuse_trained_layers(backbone)
    batches, task = make_batches(file, backbone), load_task("classification")
    tokens_read = {token for batch in batches for token in batch.token_ids_1T[0].tolist()}
    optimizer = Optimizer(
        backbone.model,
        SETTINGS,
        num_steps=10 * NUM_STEPS,
        read_rows=backbone.read_rows(list(tokens_read)),
    )
    backbone.model.train()
    if depth := num_frozen_layers(backbone, method=method, layers=4):
        backbone.frozen = frozen_states(backbone, depth, batches)

    def step(batch: Batch) -> None:
        task.loss(backbone, batch, STATE, dropout=0.0).total.backward()
        optimizer.collect()
        with record_function("optimizer"):
            optimizer.step()

    step(batches[0])
    seconds: list[float] = []
    for batch in batches:
        started = time.perf_counter()
        step(batch)
        seconds.append(time.perf_counter() - started)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for batch in batches:
            step(batch)
    shares = _shares(profiler)
    tokens = statistics.mean(batch.num_tokens for batch in batches)
    typical = statistics.median(seconds)
    least = OPERATIONS_PER_WEIGHT[method] * LAYER_WEIGHTS * tokens / limit
    columns = [f"{shares[name]:.0%}" for name in ("products", "attention", "optimizer", "rest")]
    return (
        f"| `{method}` | {tokens / typical:,.0f} | {typical * 1000:,.0f} | {least * 1000:,.0f} | "
        f"{' | '.join(columns)} |"
    )


def _shares(profiler: profile) -> Counter[str]:
    """Share of the time by kind."""
    found: Counter[str] = Counter()
    for each in profiler.key_averages():
        kind = "rest"
        if each.key in _PRODUCTS:
            kind = "products"
        elif each.key in _ATTENTION or "attention" in each.key.lower():
            kind = "attention"
        if each.key == "optimizer":
            found["optimizer"] += each.cpu_time_total
            found["rest"] -= each.cpu_time_total - each.self_cpu_time_total
        else:
            found[kind] += each.self_cpu_time_total
    total = sum(found.values())
    return Counter({kind: value / total for kind, value in found.items()})  # pyright: ignore[reportArgumentType]


def _named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Have the profiler count a call of the library, which it does not see, under a name."""

    def run(*given: object, **how: object) -> Any:  # noqa: ANN401 - as the function
        with record_function(name):
            return function(*given, **how)

    return run


def main() -> None:
    """Print the table."""
    for name in ("attend", "attend_backward"):
        setattr(native_training, name, _named("attention", getattr(native_training, name)))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="JSON Lines with `text`")
    parser.add_argument("--model", type=Path, required=True, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    limit = measure().bf16_gflops * options.threads * 1e9
    print(f"{options.threads} thread(s); best product rate {limit / 1e9:,.0f} GFLOP/s.\n")
    print(
        "| adapter | tokens/s | ms a step | ms of its products at the best rate | products | attention | optimizer | rest |"
    )
    print("|---|---|---|---|---|---|---|---|")
    methods: tuple[Method, ...] = ("full", "lora", "top")
    for method in methods:
        print(profile_method(method, options.model, options.data, limit))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
