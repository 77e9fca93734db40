"""Where the time of an optimizer step goes: products of matrices, attention, what is between, the optimizer.

Prints a table in Markdown. Rows are those of the files, 16 a step or as many as it is told; shares come from torch's profiler, which adds its own
time to small operations, so that those look a little larger than they are.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ours_gemm_share import SETTINGS
from torch.profiler import ProfilerActivity, profile, record_function
from works import ADAPTER_WEIGHTS, LAYER_WEIGHTS, VOCABULARY_WEIGHTS

from lushan.backbones import native_training
from lushan.backbones.adapters import Method, attach, num_frozen_layers
from lushan.backbones.frozen import FrozenStates
from lushan.backbones.hardware import measure
from lushan.backbones.load import Backbone, load_backbone
from lushan.backbones.trained_layers import fuse_trained_layers
from lushan.catalog import load_task
from lushan.data.batching import pack, split_by_tokens
from lushan.records import Batch, Features, LossSum, TaskState
from lushan.training.optimizer import Optimizer

ROWS_PER_CONVERSATION_STEP = 16
NUM_STEPS = 10
NUM_CONVERSATION_STEPS = 4
MOST_TOKENS_AT_ONCE = 4_096
STATE = TaskState(labels=("a", "b"))
OPERATIONS_PER_WEIGHT: dict[str, float] = {
    "full": 6,
    "lora": 4 + 6 * ADAPTER_WEIGHTS / LAYER_WEIGHTS,
    "top": 6 * 4 / 30,
}
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "mkldnn::_linear_pointwise")
_ATTENTION = ("aten::bmm", "aten::_softmax", "aten::_softmax_backward_data", "aten::index_select")


@dataclass(frozen=True)
class Job:
    """What is trained, and what of it any program computes."""

    title: str
    backbone: Backbone
    steps: Sequence[Sequence[Batch]]
    loss: Callable[[Batch], LossSum]
    operations: float
    """Of the products of one step, on the mean."""


def texts_job(method: Method, model: Path, file: Path, *, rows_per_step: int) -> Job:
    """Train a classifier on the first texts of a file."""
    backbone = load_backbone(model, purpose="classify", labels=STATE.labels, precision="bf16")
    attach(backbone, method=method)
    fuse_trained_layers(backbone)
    lines = file.read_text(encoding="utf-8").splitlines()[: rows_per_step * NUM_STEPS]
    encoded = backbone.tokenizer.encode([json.loads(line)["text"] for line in lines])
    features = [
        Features(tuple(each.ids), f"text {number}", number, target=number % 2)
        for number, each in enumerate(encoded)
    ]
    batches = [pack(each) for each in batched(features, rows_per_step)]
    if depth := num_frozen_layers(backbone, method=method, layers=4):
        backbone.frozen = frozen_states(backbone, depth, batches)
    tokens = statistics.mean(batch.num_tokens for batch in batches)
    task = load_task("classification")
    return Job(
        f"`{method}`",
        backbone,
        [[batch] for batch in batches],
        lambda batch: task.loss(backbone, batch, STATE, dropout=0.0),
        OPERATIONS_PER_WEIGHT[method] * LAYER_WEIGHTS * tokens,
    )


def conversations_job(model: Path, file: Path) -> Job:
    """Train all weights on the answers of the first conversations of a file, 16 at a time."""
    backbone = load_backbone(model, purpose="language", precision="bf16")
    fuse_trained_layers(backbone)
    tokenizer, features = backbone.tokenizer, list[Features]()
    lines = file.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines[: ROWS_PER_CONVERSATION_STEP * NUM_CONVERSATION_STEPS]):
        said = json.loads(line)["messages"]
        texts = [
            tokenizer.render_chat(said[:-1]),
            tokenizer.render_chat(said, add_generation_prompt=False),
        ]
        asked, whole = (each.ids for each in tokenizer.encode(texts))
        features.append(Features(tuple(whole), f"row {number}", number, targets_from=len(asked)))
    steps = [
        [pack(part) for part in split_by_tokens(rows, MOST_TOKENS_AT_ONCE)]
        for rows in batched(features, ROWS_PER_CONVERSATION_STEP)
    ]
    num_tokens = sum(len(each.token_ids) for each in features)
    num_answered = sum(each.num_supervised for each in features)
    print(f"{num_tokens:,} tokens of conversations, {num_answered / num_tokens:.0%} in answers.\n")
    operations = 6 * (LAYER_WEIGHTS * num_tokens + VOCABULARY_WEIGHTS * num_answered)
    task, state = load_task("completion"), TaskState()
    return Job(
        "`full`, conversations",
        backbone,
        steps,
        lambda batch: task.loss(backbone, batch, state, dropout=0.0),
        operations / len(steps),
    )


def batched(features: Sequence[Features], size: int) -> list[Sequence[Features]]:
    """Cut documents into parts of one size."""
    return [features[start : start + size] for start in range(0, len(features), size)]


def frozen_states(backbone: Backbone, depth: int, batches: list[Batch]) -> FrozenStates:
    """Stand in for what frozen layers made of the texts before training."""
    documents = [each for batch in batches for each in batch.features]
    ends = list(itertools.accumulate(len(each.token_ids) for each in documents))
    first_rows = dict(zip((each.content for each in documents), [0, *ends[:-1]], strict=True))
    width = backbone.core.config.hidden_size
    states_RD = torch.randn(ends[-1], width, dtype=backbone.core.dtype)
    return FrozenStates(depth, "all", first_rows, states_RD)


def profile_job(job: Job, limit: float) -> str:
    """Train some steps; a line of the table."""
    batches = [batch for step in job.steps for batch in step]
    tokens_read = {token for batch in batches for token in batch.token_ids_1T[0].tolist()}
    optimizer = Optimizer(
        job.backbone.model,
        SETTINGS,
        num_steps=100,
        read_rows=job.backbone.read_rows(list(tokens_read)),
    )
    job.backbone.model.train()

    def train(step: Sequence[Batch]) -> None:
        for batch in step:
            job.loss(batch).total.backward()
            optimizer.collect()
        with record_function("optimizer"):
            optimizer.step()

    train(job.steps[0])
    seconds: list[float] = []
    for step in job.steps:
        started = time.perf_counter()
        train(step)
        seconds.append(time.perf_counter() - started)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for step in job.steps:
            train(step)
    shares = _shares(profiler)
    tokens = sum(batch.num_tokens for batch in batches) / len(job.steps)
    typical = statistics.median(seconds)
    columns = [f"{shares[name]:.0%}" for name in ("products", "attention", "optimizer", "rest")]
    return (
        f"| {job.title} | {tokens / typical:,.0f} | {typical * 1000:,.0f} | {job.operations / limit * 1000:,.0f} | "
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
    parser.add_argument("--data", type=Path, help="JSON Lines with `text`")
    parser.add_argument("--conversations", type=Path, help="JSON Lines with `messages`")
    parser.add_argument("--model", type=Path, required=True, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--rows-per-step", type=int, default=16, help="of texts")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if not options.data and not options.conversations:
        parser.error("give --data, --conversations or both")
    torch.set_num_threads(options.threads)
    limit = measure().bf16_gflops * options.threads * 1e9
    print(f"{options.threads} thread(s); best product rate {limit / 1e9:,.0f} GFLOP/s.\n")
    print(
        "| adapter | tokens/s | ms a step | ms of its products at the best rate | products | attention | optimizer | rest |"
    )
    print("|---|---|---|---|---|---|---|---|")
    methods: tuple[Method, ...] = ("full", "lora", "top") if options.data else ()
    for method in methods:
        job = texts_job(method, options.model, options.data, rows_per_step=options.rows_per_step)
        print(profile_job(job, limit), flush=True)
    if options.conversations:
        print(profile_job(conversations_job(options.model, options.conversations), limit))


if __name__ == "__main__":
    main()
