"""Fine-tune as textbooks show it: fp32, every text padded to 128 tokens, AdamW, one loop."""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

PADDED_TOKENS = 128
LEARNING_RATE = 1e-4
BYTES_PER_KIBIBYTE = 1024


def main() -> None:
    """Train one epoch and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl")
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    parser.add_argument("--rows-per-step", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    lines = (options.data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    labels = sorted({row["label"] for row in rows})
    tokenizer = AutoTokenizer.from_pretrained(options.model, local_files_only=True)
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=len(labels), dtype=torch.float32, local_files_only=True
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    model.train()
    num_tokens = 0
    started = time.perf_counter()
    for start in range(0, len(rows), options.rows_per_step):
        part = rows[start : start + options.rows_per_step]
        batch = tokenizer(
            [row["text"] for row in part],
            padding="max_length",
            truncation=True,
            max_length=PADDED_TOKENS,
            return_tensors="pt",
        )
        truth = torch.tensor([labels.index(row["label"]) for row in part])
        model(**batch, labels=truth).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        num_tokens += int(batch["attention_mask"].sum())
    seconds = time.perf_counter() - started
    result = {
        "seconds": {"train": seconds},
        "train_tokens_per_second": num_tokens / seconds,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_KIBIBYTE,
    }
    options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
