"""How much of the machine's best product rate, in bf16 or fp32, full tuning reaches, on packed steps of 2,048 real tokens.

Counted are 6 operations per weight of the layers and token, and, apart from them, those of attention as a causal
model needs them: 6 per pair of positions, width and layer. Embeddings, norms and the optimizer count as nothing,
but their time does.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

import torch

from lushan.backbones.hardware import measure
from lushan.backbones.load import Backbone, load_backbone
from lushan.backbones.trained_layers import fuse_trained_layers
from lushan.catalog import load_task
from lushan.data.batching import PackedSource
from lushan.data.feature_store import distinct_tokens
from lushan.records import Features, TaskState
from lushan.training.checkpoint import Checkpoints
from lushan.training.loop import Evaluated, FitSettings, StepDone, fit
from lushan.training.optimizer import Optimizer, OptimizerSettings

BYTES_PER_KIBIBYTE = 1024
DOCUMENT_TOKENS = 256
ROWS_PER_STEP = 8
NUM_STEPS = 12
SETTINGS = OptimizerSettings(
    optimizer="adamw",
    learning_rate=1e-5,
    head_learning_rate=1e-5,
    momentum=0.9,
    weight_decay=0.01,
    warmup_fraction=0.1,
    schedule="linear",
    max_gradient_norm=1.0,
)


class Steps:
    """A listener that keeps the seconds of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step(self, done: StepDone) -> None:
        """Keep its time."""
        self.seconds.append(done.seconds)

    def on_evaluation(self, epoch: int, step: int, found: Evaluated) -> None:
        """Nothing is asked here."""


def make_documents(file: Path, backbone: Backbone) -> list[Features]:
    """Cut the texts of a file, one after another, into documents of equal length."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    encoded = backbone.tokenizer.encode([row["text"] for row in rows])
    ids = [token for each in encoded for token in each.ids]
    num_documents = ROWS_PER_STEP * NUM_STEPS
    if len(ids) < num_documents * DOCUMENT_TOKENS:
        raise SystemExit(f"`{file}` has {len(ids):,} tokens, too few for {NUM_STEPS} steps.")
    return [
        Features(
            token_ids=tuple(ids[number * DOCUMENT_TOKENS : (number + 1) * DOCUMENT_TOKENS]),
            place=f"document {number}",
            example_index=number,
            target=number % 2,
        )
        for number in range(num_documents)
    ]


def flops_per_step(backbone: Backbone) -> tuple[int, int]:
    """Operations of a step, forward and backward: of the layers' weights, and of attention."""
    num_weights = sum(each.numel() for each in backbone.layers.parameters())
    config = backbone.core.config
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    pairs = ROWS_PER_STEP * DOCUMENT_TOKENS**2
    return (
        6 * num_weights * ROWS_PER_STEP * DOCUMENT_TOKENS,
        6 * len(backbone.layers) * pairs * width,
    )


def core_rate(precision: str) -> float:
    """GFLOP/s of one core's products now."""
    return getattr(measure(), f"{precision}_gflops")


def main() -> None:
    """Measure products, train, measure products again, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl")
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument(
        "--core-gflops",
        type=float,
        required=True,
        help="one core's in this precision, as `lushan doctor` says",
    )
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    core_gflops = max(options.core_gflops, core_rate(options.precision))
    backbone = load_backbone(
        options.model, purpose="classify", labels=("a", "b"), precision=options.precision
    )
    fuse_trained_layers(backbone)
    documents = make_documents(options.data / "train.jsonl", backbone)
    source = PackedSource(documents, rows_per_step=ROWS_PER_STEP, seed=0)
    optimizer = Optimizer(
        backbone.model,
        SETTINGS,
        num_steps=NUM_STEPS,
        read_rows=backbone.read_rows(distinct_tokens(documents).tolist()),
    )
    task, state, steps = load_task("classification"), TaskState(labels=("a", "b")), Steps()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        fit(
            backbone.model,
            source,
            settings=FitSettings(num_epochs=1, keep="last"),
            optimizer=optimizer,
            loss=lambda batch: task.loss(backbone, batch, state, dropout=0.0),
            evaluate=lambda: Evaluated(0.0, 0.0),
            checkpoints=Checkpoints(Path(folder)),
            listeners=[steps],
        )
    # A busy minute would make the limit low and the share high: the best rate ever seen counts.
    limit = max(core_gflops, core_rate(options.precision)) * options.threads * 1e9
    seconds = statistics.median(steps.seconds[1:])
    of_weights, of_attention = flops_per_step(backbone)
    result = {
        "seconds": {"train": time.perf_counter() - started, "step": seconds},
        "train_tokens_per_second": ROWS_PER_STEP * DOCUMENT_TOKENS / seconds,
        "gemm_fraction": of_weights / seconds / limit,
        "attention_fraction": of_attention / seconds / limit,
        "limit_gflops": limit / 1e9,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_KIBIBYTE,
    }
    options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
