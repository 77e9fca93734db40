"""Score texts with the `transformers` pipeline, at whichever batch size is fastest on a part of them."""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import torch
from transformers import pipeline

BATCH_SIZES = (1, 8, 32, 64)
NUM_TRIAL_TEXTS = 256
BYTES_PER_KIBIBYTE = 1024


def main() -> None:
    """Choose a batch size, score every text, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl")
    parser.add_argument("--model", required=True, help="folder of a tuned classifier")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    parser.add_argument("--precision", choices=["bf16", "fp32"], required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = (options.data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    # In the order of the file, as users give them: the pipeline pads each batch to its longest text.
    texts = [json.loads(line)["text"] for line in lines]
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[options.precision]
    classify = pipeline("text-classification", model=options.model, dtype=dtype, device="cpu")
    trial = texts[:: max(1, len(texts) // NUM_TRIAL_TEXTS)]

    def seconds_of(part: list[str], batch_size: int) -> float:
        started = time.perf_counter()
        classify(part, batch_size=batch_size)
        return time.perf_counter() - started

    seconds_of(trial[:8], 8)
    batch_size = min(BATCH_SIZES, key=lambda size: seconds_of(trial, size))
    seconds = seconds_of(texts, batch_size)
    result = {
        "texts_per_second": len(texts) / seconds,
        "batch_size": batch_size,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_KIBIBYTE,
    }
    options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
