"""Train on the answers of conversations with TRL's SFTTrainer, padded and grouped by length, or without padding."""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from answer_loss import mean_answer_loss
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from trl import SFTConfig, SFTTrainer

BYTES_PER_KIBIBYTE = 1024
LARGEST_DIFFERENCE = 1e-3


def check_keeps_documents_apart(model: PreTrainedModel) -> None:
    """End the program unless documents side by side give the logits that each gives alone."""
    generator = torch.Generator().manual_seed(0)
    documents = [torch.randint(1_000, (length,), generator=generator) for length in (37, 61, 50)]
    positions = torch.cat([torch.arange(len(each)) for each in documents])
    with torch.inference_mode():
        # As SFTTrainer calls it: no mask, and no cache, with which documents would see each other.
        packed = model(
            torch.cat(documents)[None], position_ids=positions[None], use_cache=False
        ).logits[0]
        alone = torch.cat([model(each[None], use_cache=False).logits[0] for each in documents])
    difference = float((packed - alone).abs().max())
    if difference > LARGEST_DIFFERENCE:
        raise SystemExit(f"Packed and alone differ by {difference:.2g}: documents see each other.")


def as_prompts(file: Path) -> tuple[Dataset, int]:
    """Read rows as prompt and completion, and the number of their tokens."""
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()
    ]
    columns = {
        "prompt": [row["messages"][:-1] for row in rows],
        "completion": [row["messages"][-1:] for row in rows],
    }
    return Dataset.from_dict(columns), sum(row["num_tokens"] for row in rows)


def arguments_of(options: argparse.Namespace, folder: str) -> SFTConfig:
    """The settings of the comparison in TRL's words."""
    return SFTConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=options.precision == "bf16",
        max_length=None,
        padding_free=options.layout == "padding-free",
        per_device_train_batch_size=options.rows_at_once,
        gradient_accumulation_steps=options.rows_per_step // options.rows_at_once,
        gradient_checkpointing=False,  # on by default
        completion_only_loss=True,
        num_train_epochs=1,
        max_steps=options.steps,
        learning_rate=1e-4,
        weight_decay=0.01,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        lr_scheduler_type="linear",
        warmup_steps=0.1,
        max_grad_norm=1.0,
        train_sampling_strategy="group_by_length",
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        seed=options.seed,
    )


def main() -> None:
    """Train one epoch and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with train, validation")
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    parser.add_argument("--rows-per-step", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument(
        "--precision", choices=["bf16", "fp32"], required=True, help="bf16: autocast"
    )
    parser.add_argument("--layout", choices=["padded", "padding-free"], default="padded")
    parser.add_argument("--rows-at-once", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=-1, help="end earlier, to try a setting")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.model, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    )
    if options.layout == "padding-free":
        check_keeps_documents_apart(model)
    rows, num_tokens = as_prompts(options.data / "train.jsonl")
    if options.steps > 0:
        rows = rows.select(range(options.steps * options.rows_per_step))
        lines = (options.data / "train.jsonl").read_text(encoding="utf-8").splitlines()
        num_tokens = sum(json.loads(line)["num_tokens"] for line in lines[: len(rows)])
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=arguments_of(options, folder),
            train_dataset=rows,
            processing_class=tokenizer,
        )
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_KIBIBYTE
    result = {
        "seconds": {"train": seconds},
        "train_tokens_per_second": num_tokens / seconds,
        "validation_loss": mean_answer_loss(
            trainer.model, tokenizer, options.data / "validation.jsonl"
        ),
        "peak_rss_bytes": peak,
    }
    options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
