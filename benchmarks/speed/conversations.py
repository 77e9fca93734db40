"""Rows of the work `sft`: one question and one answer each, of 200 to 1,000 tokens under the model's chat template."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from lushan.backbones.tokenizer import Tokenizer

DATASET = "dialogue/alpaca_en_demo"
"""Folder below `LUSHAN_DATA`."""
LEAST_TOKENS = 200
MOST_TOKENS = 1_000


def write_conversations(data: Path, into: Path, *, model: Path, sizes: dict[str, int]) -> Path:
    """Make a folder with the first rows that fit: `messages`, and `num_tokens` that every system is credited with.

    Args:
        data: The folder that `LUSHAN_DATA` names.
        into: The folder to make.
        model: Hugging Face folder whose tokenizer and chat template count.
        sizes: Split to its number of rows.
    """
    tokenizer = Tokenizer.load(model)
    into.mkdir(parents=True, exist_ok=True)
    for split, size in sizes.items():
        kept: list[dict[str, Any]] = []
        for messages in _conversations(data / DATASET, split):
            text = tokenizer.render_chat(messages, add_generation_prompt=False)
            num_tokens = len(tokenizer.encode([text])[0].ids)
            if LEAST_TOKENS <= num_tokens <= MOST_TOKENS:
                kept.append({"messages": messages, "num_tokens": num_tokens})
        if len(kept) < size:
            raise SystemExit(
                f"`{data / DATASET}`: {split} has {len(kept)} rows that fit, not {size}."
            )
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in kept[:size]]
        (into / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return into


def _conversations(folder: Path, split: str) -> list[list[dict[str, str]]]:
    plain, packed = folder / f"{split}.jsonl", folder / f"{split}.jsonl.gz"
    if not plain.is_file() and not packed.is_file():
        raise SystemExit(f"`{folder}` has no {plain.name} or {packed.name}; set LUSHAN_DATA.")
    with plain.open("rb") if plain.is_file() else gzip.open(packed) as lines:
        return [json.loads(line)["messages"] for line in lines]
