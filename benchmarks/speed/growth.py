"""What more rows cost: seconds to the first step, speed of the first 200 steps, and memory, at 1,000 rows to a million.

Rows are drawn, not copied: words of the model's own vocabulary, a few frequent and most rare, as many in a row as in
SST-2. Validation and test have the same few rows at every size, so that only the training rows grow.
"""

import argparse
import contextlib
import csv
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from lushan.training.loop import StepDone
from lushan.workflows.recipe import flags_of, make_recipe
from lushan.workflows.tune import tune

SIZES = (1_000, 10_000, 100_000, 1_000_000)
NUM_STEPS = 200
NUM_OTHER_ROWS = 200
LABELS = ("negative", "positive")
MEAN_LOG_WORDS, SPREAD_LOG_WORDS, MOST_WORDS = 2.8, 0.55, 52
ROWS_PER_DRAW = 10_000
WORD = re.compile("(?:\u0120|\u2581)[a-z]{2,12}")


class Enough(Exception):  # noqa: N818 - no error: it ends a run early
    """The steps that are timed are done."""


def main() -> None:
    """Time each size in a process of its own, and print a table."""
    options = _options()
    if options.child:
        _train_first_steps(options)
        return
    with tempfile.TemporaryDirectory(prefix="growth-", dir=options.work) as work:
        print(
            "| rows | seconds to first step | tokens/s | peak MB | seconds, caches warm | peak MB |"
        )
        print("|---|---|---|---|---|---|")
        for size in options.sizes:
            data = Path(work, f"{size}")
            write_rows(data, size, format_=options.format, words=words_of(options.model))
            cold, warm = (_in_process(options, data, Path(work)) for _ in range(2))
            print(
                f"| {size:,} | {cold['first_step']:.1f} | {cold['tokens_per_second']:,.0f} | {cold['peak_mb']:,.0f} "
                f"| {warm['first_step']:.1f} | {warm['peak_mb']:,.0f} |",
                flush=True,
            )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a model folder")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    parser.add_argument("--adapter", default="full")
    parser.add_argument("--format", choices=("jsonl", "csv", "parquet"), default="jsonl")
    parser.add_argument("--work", type=Path, help="folder for the rows and the caches")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def words_of(model: Path) -> list[str]:
    """Give the words of a tokenizer, the most frequent first."""
    vocabulary = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))["model"][
        "vocab"
    ]
    ordered = sorted(vocabulary, key=vocabulary.__getitem__)
    words = [token[1:] for token in ordered if WORD.fullmatch(token)]
    return (
        words
        if len(words) > 1_000
        else [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdfgklmnprst"]
    )


def write_rows(folder: Path, size: int, *, format_: str, words: Sequence[str]) -> None:
    """Write train, validation and test files."""
    folder.mkdir()
    random = np.random.default_rng(size)
    for name, num_rows in (
        ("train", size),
        ("validation", NUM_OTHER_ROWS),
        ("test", NUM_OTHER_ROWS),
    ):
        _write(folder / f"{name}.{format_}", drawn_rows(random, num_rows, words))


def drawn_rows(
    random: np.random.Generator, num_rows: int, words: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Draw texts and labels."""
    shares = 1 / (np.arange(len(words)) + 10.0)
    shares /= shares.sum()
    for start in range(0, num_rows, ROWS_PER_DRAW):
        num = min(ROWS_PER_DRAW, num_rows - start)
        lengths = np.exp(random.normal(MEAN_LOG_WORDS, SPREAD_LOG_WORDS, num))
        lengths = np.clip(lengths.round().astype(int), 2, MOST_WORDS)
        drawn = random.choice(len(words), lengths.sum(), p=shares)
        labels = random.integers(len(LABELS), size=num)
        ends = lengths.cumsum()
        for end, length, label in zip(ends, lengths, labels, strict=True):
            yield " ".join(words[word] for word in drawn[end - length : end]), LABELS[label]


def _write(path: Path, rows: Iterator[tuple[str, str]]) -> None:
    if path.suffix == ".parquet":
        table = pyarrow.table(dict(zip(("text", "label"), zip(*rows, strict=True), strict=True)))
        parquet.write_table(table, path)
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            writer = csv.writer(file)
            writer.writerow(("text", "label"))
            writer.writerows(rows)
            return
        file.writelines(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)


def _in_process(options: argparse.Namespace, data: Path, work: Path) -> dict[str, Any]:
    environment = {**os.environ, "LUSHAN_CACHE": str(work / "cache"), "STARTED": str(time.time())}
    command = [
        sys.executable,
        __file__,
        "--child",
        str(data),
        "--model",
        str(options.model.resolve()),
    ]
    command += ["--steps", str(options.steps), "--adapter", options.adapter]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


class _Steps:
    """Hears of steps, and ends the run when there were enough."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self.first_at = 0.0
        self.tokens = 0
        self.seconds = 0.0

    def on_step(self, done: StepDone) -> None:
        self.first_at = self.first_at or time.time()
        self.tokens += done.tokens
        self.seconds += done.seconds
        if done.step == self.num_steps:
            raise Enough

    def on_evaluation(self, *_: object) -> None:
        """Evaluations are not timed."""


def _train_first_steps(options: argparse.Namespace) -> None:
    flags = flags_of({
        "model": options.model,
        "adapter": options.adapter,
        "epochs": 1_000,
        "baselines": False,
    })
    steps = _Steps(options.steps)
    folder = tempfile.TemporaryDirectory(dir=options.child.parent)
    with folder, contextlib.suppress(Enough):
        tune(
            options.child,
            make_recipe(None, flags, []),
            out=Path(folder.name, "run"),
            tell=lambda line: print(line, file=sys.stderr),
            listeners=[steps],
        )
    print(
        json.dumps({
            "first_step": steps.first_at - float(os.environ["STARTED"]),
            "tokens_per_second": steps.tokens / steps.seconds,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        })
    )


if __name__ == "__main__":
    main()
