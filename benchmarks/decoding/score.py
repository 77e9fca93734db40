"""Score short texts with a tuned classifier, from text to class, in one of several ways.

Runs in the environment of the way: each imports its own packages alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from measure import Kept, Taken, memory, now, since

BATCH_SIZE = 32
NUM_WARM_TEXTS = 64
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""What `lushan export --to openvino` says of its files."""

Score = Callable[[Sequence[str]], Sequence[int]]
"""Texts to the numbers of their classes, in any order that is the same for all texts."""


def main() -> None:
    """Score every text, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of a run")
    parser.add_argument("--export", type=Path, required=True, help="its OpenVINO form")
    parser.add_argument("--texts", type=Path, required=True, help="texts, as JSON")
    parser.add_argument("--form", required=True, help="which way")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="result file")
    options = parser.parse_args()
    texts: list[str] = json.loads(options.texts.read_text(encoding="utf-8"))
    ways = {"lushan": lushan, "openvino-int8": openvino}
    score = ways.get(options.form, transformers)(options)
    kept = Kept(options.out)
    score(texts[:NUM_WARM_TEXTS])
    started = now()
    classes = score(texts)
    rate = Taken(*(len(texts) / each for each in since(started)))
    kept.add(scoring=rate._asdict(), num_first_class=list(classes).count(0))
    kept.add(**memory("at_the_end"))


def lushan(options: argparse.Namespace) -> Score:
    """Lushan's own interface."""
    import torch

    import lushan

    torch.set_num_threads(options.threads)
    model = lushan.load(options.run)

    def score(texts: Sequence[str]) -> list[int]:
        answers = [each.answer for each in model.predict(list(texts))]
        names = json.loads((options.run / "model" / "config.json").read_text("utf-8"))["label2id"]
        return [names[each] for each in answers]

    return score


def transformers(options: argparse.Namespace) -> Score:
    """Batches padded to their longest text: in the order of the texts (`padded`), or by length (`sorted`)."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(options.threads)
    order, precision = options.form.split("-")
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    model_type = AutoModelForSequenceClassification
    model = model_type.from_pretrained(options.run / "model", dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.run / "model")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    def score(texts: Sequence[str]) -> list[int]:
        texts = sorted(texts, key=len) if order == "sorted" else texts
        classes: list[int] = []
        with torch.inference_mode():
            for start in range(0, len(texts), BATCH_SIZE):
                part = list(texts[start : start + BATCH_SIZE])
                logits_BC = model(**tokenizer(part, padding=True, return_tensors="pt")).logits
                classes += logits_BC.argmax(dim=-1).tolist()
        return classes

    return score


def openvino(options: argparse.Namespace) -> Score:
    """Batches by length, padded to their longest text."""
    import numpy as np
    import openvino
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(options.export / "tokenizer.json"))
    tokenizer.enable_padding()
    settings = {**SETTINGS, "INFERENCE_NUM_THREADS": options.threads}
    compiled = openvino.Core().compile_model(str(options.export / "model.xml"), "CPU", settings)

    def score(texts: Sequence[str]) -> list[int]:
        texts = sorted(texts, key=len)
        classes: list[int] = []
        for start in range(0, len(texts), BATCH_SIZE):
            encoded = tokenizer.encode_batch(list(texts[start : start + BATCH_SIZE]))
            ids_BL = np.array([each.ids for each in encoded], np.int64)
            mask_BL = np.array([each.attention_mask for each in encoded], np.int64)
            logits_BC = compiled({"input_ids": ids_BL, "attention_mask": mask_BL})["logits"]
            classes += logits_BC.argmax(axis=-1).tolist()
        return classes

    return score


if __name__ == "__main__":
    main()
