"""Train on the answers of conversations with LLaMA-Factory: padded, rows grouped by length."""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import json
import resource
import shutil
import sys
import tempfile
import types
from pathlib import Path

import torch
from answer_loss import mean_answer_loss
from transformers import AutoModelForCausalLM, AutoTokenizer

if importlib.util.find_spec("torchaudio") is None:
    # LLaMA-Factory imports it whatever it is asked to do; see the README. Here nothing can be heard.
    absent = types.ModuleType("torchaudio")
    absent.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = absent

from llamafactory.train.tuner import run_exp

BYTES_PER_KIBIBYTE = 1024
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""As the model's own template has it; LLaMA-Factory's ends with a full stop."""
DESCRIPTION = {
    "rows": {
        "file_name": "train.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
        },
    }
}


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
    parser.add_argument("--rows-at-once", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = (options.data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    num_tokens = sum(json.loads(line)["num_tokens"] for line in lines)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(options.data / "train.jsonl", folder)
        Path(folder, "dataset_info.json").write_text(json.dumps(DESCRIPTION), encoding="utf-8")
        out = Path(folder, "out")
        run_exp({
            "stage": "sft",
            "do_train": True,
            "model_name_or_path": options.model,
            "finetuning_type": "full",
            "flash_attn": "sdpa",
            "disable_gradient_checkpointing": True,
            "dataset": "rows",
            "dataset_dir": folder,
            "template": "smollm2",
            "default_system": SYSTEM,
            "cutoff_len": 2_048,
            "overwrite_cache": True,
            "output_dir": str(out),
            "use_cpu": True,
            "bf16": options.precision == "bf16",
            "per_device_train_batch_size": options.rows_at_once,
            "gradient_accumulation_steps": options.rows_per_step // options.rows_at_once,
            "num_train_epochs": 1.0,
            "learning_rate": 1e-4,
            "weight_decay": 0.01,
            "lr_scheduler_type": "linear",
            "warmup_steps": 0.1,
            "max_grad_norm": 1.0,
            "train_sampling_strategy": "group_by_length",
            "save_strategy": "no",
            "logging_steps": 1,
            "report_to": "none",
            "seed": options.seed,
        })
        seconds = json.loads((out / "train_results.json").read_text(encoding="utf-8"))[
            "train_runtime"
        ]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_KIBIBYTE
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(options.model, local_files_only=True)
        loss = mean_answer_loss(model, tokenizer, options.data / "validation.jsonl")
    result = {
        "seconds": {"train": seconds},
        "train_tokens_per_second": num_tokens / seconds,
        "validation_loss": loss,
        "peak_rss_bytes": peak,
    }
    options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
