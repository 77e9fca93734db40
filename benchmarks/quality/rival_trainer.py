"""Tune a sequence classifier with the `transformers` Trainer, as its documentation says for CPUs.

Stands alone: it needs only what `requirements-rival.txt` lists, and the folder that `cases.py` makes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from sklearn.metrics import accuracy_score, f1_score
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

BYTES_PER_KIBIBYTE = 1024


def read_rows(folder: Path, split: str) -> list[dict[str, str]]:
    """Read the rows of a split."""
    lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def encode(
    rows: Sequence[dict[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str],
    limit: int,
) -> Dataset:
    """Turn rows into token ids and class numbers."""
    encoded = tokenizer([row["text"] for row in rows], truncation=True, max_length=limit)
    if any(tokenizer.pad_token_id in ids for ids in encoded["input_ids"]):
        # The pooled token is found by looking for the padding id.
        raise SystemExit("A text contains the padding token: pooling would read the wrong token.")
    number = {label: index for index, label in enumerate(labels)}
    columns = {
        "input_ids": encoded["input_ids"],
        "attention_mask": encoded["attention_mask"],
        "labels": [number[row["label"]] for row in rows],
    }
    return Dataset.from_dict(columns)


def load(path: str, labels: Sequence[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model in fp32 with a new head, and its tokenizer, with padding that a mask hides."""
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForSequenceClassification.from_pretrained(
        path,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        dtype=torch.float32,
        local_files_only=True,
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.use_cache = False
    return model, tokenizer


def adapt(model: PreTrainedModel, method: str) -> torch.nn.Module:
    """Train all of a Llama-shaped model (`full`), adapters (`lora`), its last layers (`top:N`) or its head (`head`)."""
    if method == "full":
        return model
    if method == "lora":
        from peft import LoraConfig, TaskType, get_peft_model  # only this method needs it

        rank_16 = LoraConfig(
            task_type=TaskType.SEQ_CLS, r=16, lora_alpha=32, target_modules="all-linear"
        )
        return get_peft_model(model, rank_16)
    model.requires_grad_(requires_grad=False)
    model.score.requires_grad_(requires_grad=True)
    if method != "head":
        num_layers = int(method.removeprefix("top:"))
        for part in (*model.model.layers[-num_layers:], model.model.norm):
            part.requires_grad_(requires_grad=True)
    return model


def accuracy(outputs: EvalPrediction) -> dict[str, float]:
    """Accuracy for the Trainer's own evaluations between epochs."""
    return {"accuracy": float(accuracy_score(outputs.label_ids, outputs.predictions.argmax(-1)))}


def arguments_of(options: argparse.Namespace, folder: str) -> TrainingArguments:
    """The settings of the comparison in the Trainer's words."""
    return TrainingArguments(
        output_dir=folder,
        use_cpu=True,
        bf16=options.precision == "bf16",
        seed=options.seed,
        data_seed=options.seed,
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        per_device_train_batch_size=options.rows_at_once,
        gradient_accumulation_steps=options.rows_per_step // options.rows_at_once,
        per_device_eval_batch_size=options.eval_rows,
        weight_decay=options.weight_decay,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        lr_scheduler_type="linear",
        warmup_steps=options.warmup_fraction,
        max_grad_norm=options.max_gradient_norm,
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch" if options.each_epoch else "no",
        save_strategy="no",
        logging_steps=25,
        report_to="none",
        disable_tqdm=True,
    )


def answer(trainer: Trainer, dataset: Dataset, labels: Sequence[str]) -> dict[str, str]:
    """Predict a split, short texts first; answers by row number from 0."""
    # Otherwise `predict` would shuffle the rows by length too, and its answers could not be matched.
    trainer.args.train_sampling_strategy = "random"
    order = np.argsort([len(ids) for ids in dataset["input_ids"]], kind="stable")
    found = trainer.predict(dataset.select(order)).predictions.argmax(-1)
    by_row = {int(row): labels[int(number)] for row, number in zip(order, found, strict=True)}
    return {str(row): by_row[row] for row in sorted(by_row)}


def score(answers: dict[str, str], rows: Sequence[dict[str, str]]) -> dict[str, float]:
    """Accuracy and macro F1 over the labels that the rows have."""
    truth = [row["label"] for row in rows]
    given = list(answers.values())
    names = sorted(set(truth))
    macro = f1_score(truth, given, labels=names, average="macro", zero_division=0)
    return {"accuracy": float(accuracy_score(truth, given)), "macro_f1": float(macro)}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train, predict, and tell everything that the comparison needs."""
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    splits = dict.fromkeys((
        *("train", *options.predict),
        *(["validation"] if options.each_epoch else []),
    ))
    rows = {split: read_rows(options.data, split) for split in splits}
    labels = sorted({row["label"] for row in rows["train"]})
    set_seed(options.seed)
    model, tokenizer = load(options.model, labels)
    model = adapt(model, options.method)
    parts = {split: encode(rows[split], tokenizer, labels, options.max_length) for split in rows}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=arguments_of(options, folder),
            train_dataset=parts["train"],
            eval_dataset=parts.get("validation"),
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=accuracy,
        )
        before_training = time.perf_counter()
        trainer.train()
        trained = time.perf_counter()
        answers = {split: answer(trainer, parts[split], labels) for split in options.predict}
    finished = time.perf_counter()
    num_tokens = options.epochs * sum(len(ids) for ids in parts["train"]["input_ids"])
    return {
        "set": options.data.name,
        "seed": options.seed,
        "system": "trainer",
        "hyper_parameters": _hyper_parameters(options),
        "scores": {split: score(answers[split], rows[split]) for split in answers},
        "history": [each for each in trainer.state.log_history if "eval_accuracy" in each],
        "answers": answers,
        "num_train_rows": len(rows["train"]),
        "num_train_tokens": num_tokens,
        "seconds": {
            "load": before_training - started,
            "train": trained - before_training,
            "predict": finished - trained,
        },
        "train_tokens_per_second": num_tokens / (trained - before_training),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_KIBIBYTE,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _hyper_parameters(options: argparse.Namespace) -> dict[str, Any]:
    told = {
        **vars(options),
        "optimizer": "adamw",
        "schedule": "linear",
    }
    told["model"] = Path(options.model).name
    return {
        name: told[name]
        for name in told
        if name not in {"data", "out", "seed", "predict", "each_epoch", "method"}
    }


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with train, validation, test"
    )
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument(
        "--precision", choices=["bf16", "fp32"], required=True, help="bf16 is autocast over fp32"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows-per-step", type=int, default=16)
    parser.add_argument("--rows-at-once", type=int, help="else all of a step")
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--warmup-fraction", type=float, default=0.1)
    parser.add_argument("--max-gradient-norm", type=float, default=1.0)
    parser.add_argument("--max-length", type=int, default=256, help="tokens")
    parser.add_argument("--eval-rows", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--method", default="full", help="full, lora, head or top:N")
    parser.add_argument("--predict", nargs="*", choices=["validation", "test"], default=["test"])
    parser.add_argument(
        "--each-epoch", action="store_true", help="score validation after each epoch"
    )
    options = parser.parse_args()
    options.rows_at_once = options.rows_at_once or options.rows_per_step
    return options


def main() -> None:
    """Run once and write the result file."""
    options = parse()
    result = run(options)
    unfinished = options.out.with_suffix(".tmp")
    unfinished.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(options.out)
    print(json.dumps({"out": str(options.out), **result["scores"], "seconds": result["seconds"]}))


if __name__ == "__main__":
    main()
