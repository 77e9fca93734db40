"""Train on the answers of conversations through Lushan's own parts; a task for dialogue will take this file's place."""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import torch

from lushan.backbones.load import Backbone, load_backbone
from lushan.catalog import load_task
from lushan.data.batching import MAX_BATCH_TOKENS, PackedSource, pack, split_by_tokens
from lushan.data.feature_store import distinct_tokens
from lushan.records import Batch, Features, LossSum, TaskState
from lushan.training.checkpoint import Checkpoints
from lushan.training.loop import Evaluated, FitSettings, fit
from lushan.training.optimizer import Optimizer, OptimizerSettings

BYTES_PER_KIBIBYTE = 1024
SETTINGS = OptimizerSettings(
    optimizer="adamw",
    learning_rate=1e-4,
    head_learning_rate=1e-4,
    momentum=0.9,
    weight_decay=0.01,
    warmup_fraction=0.1,
    schedule="linear",
    max_gradient_norm=1.0,
)


def encode(file: Path, backbone: Backbone) -> list[Features]:
    """Turn conversations into tokens, of which the last message's are supervised."""
    tokenizer = backbone.tokenizer
    found: list[Features] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
        messages = json.loads(line)["messages"]
        question = tokenizer.render_chat(messages[:-1])
        whole = tokenizer.render_chat(messages, add_generation_prompt=False)
        prompt, everything = tokenizer.encode([question, whole])
        if everything.ids[: len(prompt.ids)] != prompt.ids:
            raise SystemExit(f"`{file}`, row {number + 1}: the answer changes the prompt's tokens.")
        found.append(
            Features(
                token_ids=tuple(everything.ids),
                place=f"row {number + 1}",
                example_index=number,
                target=-1,
                targets_from=len(prompt.ids),
            )
        )
    return found


def main() -> None:
    """Train one epoch and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with train, validation")
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    parser.add_argument("--rows-per-step", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--precision", choices=["bf16", "fp32"], required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    backbone = load_backbone(options.model, purpose="language", precision=options.precision)
    rows = encode(options.data / "train.jsonl", backbone)
    asked = encode(options.data / "validation.jsonl", backbone)
    task, state = load_task("classification"), TaskState(labels=())

    def loss(batch: Batch) -> LossSum:
        return task.loss(backbone, batch, state, dropout=0.0)

    def evaluate() -> Evaluated:
        with torch.inference_mode():
            parts = [loss(pack(each)) for each in split_by_tokens(asked, MAX_BATCH_TOKENS)]
        mean = float(sum(each.total for each in parts)) / sum(each.count for each in parts)
        return Evaluated(-mean, mean)

    source = PackedSource(rows, rows_per_step=options.rows_per_step, seed=0)
    optimizer = Optimizer(
        backbone.model,
        SETTINGS,
        num_steps=source.num_steps_per_epoch,
        read_rows=backbone.read_rows(distinct_tokens(rows).tolist()),
    )
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        progress = fit(
            backbone.model,
            source,
            settings=FitSettings(num_epochs=1, keep="last"),
            optimizer=optimizer,
            loss=loss,
            evaluate=evaluate,
            checkpoints=Checkpoints(Path(folder)),
        ).progress
    result = {
        "seconds": {"train": progress.seconds, "all": time.perf_counter() - started},
        "train_tokens_per_second": progress.num_tokens / progress.seconds,
        "validation_loss": progress.validation[-1]["loss"],
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_KIBIBYTE,
    }
    options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
