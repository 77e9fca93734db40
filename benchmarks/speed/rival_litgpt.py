"""Train on the answers of conversations with LitGPT's full fine-tuning; it pads, and takes one question per row."""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from litgpt.args import EvalArgs, TrainArgs
from litgpt.data import JSON
from litgpt.finetune import full
from litgpt.prompts import SmolLM2
from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint

BYTES_PER_KIBIBYTE = 1024
MODEL_NAME = "SmolLM2-135M-Instruct"
"""Its name in LitGPT's table of architectures."""


def write_rows(data: Path, into: Path) -> int:
    """Write rows as LitGPT reads them; gives the number of tokens in train."""
    num_tokens = 0
    for split, name in (("train", "train"), ("validation", "val")):
        lines = (data / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        asked = [
            {"instruction": question["content"], "output": answer["content"]}
            for question, answer in (row["messages"] for row in rows)
        ]
        (into / f"{name}.json").write_text(json.dumps(asked), encoding="utf-8")
        if split == "train":
            num_tokens = sum(row["num_tokens"] for row in rows)
    return num_tokens


def main() -> None:
    """Train one epoch and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with train, validation")
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    parser.add_argument("--rows-per-step", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument(
        "--precision", choices=["bf16", "fp32"], required=True, help="bf16: autocast"
    )
    parser.add_argument("--rows-at-once", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seconds = dict.fromkeys(("fit", "validate"), 0.0)

    def timed(name: str) -> None:
        inner = getattr(full, name)

        def outer(*values: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever LitGPT passes
            started = time.perf_counter()
            try:
                return inner(*values, **named)
            finally:
                seconds[name] += time.perf_counter() - started

        setattr(full, name, outer)

    timed("fit")
    timed("validate")  # its two batches before training are no part of it
    with tempfile.TemporaryDirectory() as folder:
        rows, model = Path(folder, "rows"), Path(folder, MODEL_NAME)
        rows.mkdir()
        num_tokens = write_rows(options.data, rows)
        shutil.copytree(options.model, model)
        convert_hf_checkpoint(model, model_name=MODEL_NAME)
        sys.argv = [
            "litgpt",
            str(model),
        ]  # which LitGPT reads once more when it writes its settings down
        full.setup(
            checkpoint_dir=model,
            seed=options.seed,
            out_dir=Path(folder, "out"),
            precision="bf16-mixed" if options.precision == "bf16" else "32-true",
            data=JSON(rows, mask_prompt=True, prompt_style=SmolLM2(), num_workers=0),
            train=TrainArgs(
                save_interval=None,
                log_interval=1,
                global_batch_size=options.rows_per_step,
                micro_batch_size=options.rows_at_once,
                lr_warmup_steps=1,
                epochs=1,
            ),
            eval=EvalArgs(interval=1_000_000, max_new_tokens=1, final_validation=False),
            optimizer={
                "class_path": "torch.optim.AdamW",
                "init_args": {"lr": 1e-4, "weight_decay": 0.01, "fused": True},
            },
        )
    train_seconds = seconds["fit"] - seconds["validate"]
    result = {
        "seconds": {"train": train_seconds},
        "train_tokens_per_second": num_tokens / train_seconds,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_KIBIBYTE,
    }
    options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
