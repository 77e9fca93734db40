"""What more rows cost: seconds to the first step, speed of the first 200 steps, and memory, at 1,000 rows to a million.

The first run of a size makes the tokens; others find them kept. Of these there are as many as it is told, in turns over
the sizes: medians are printed, and of the speed the lowest and the highest too.

Rows are drawn: words of the model's own vocabulary, a few frequent and most rare, as many in a row as in SST-2; beyond
`--distinct` they repeat. Validation and test have the same few rows at every size, so that only the training rows grow.

Other programs on the machine lengthen seconds, but not the seconds of processor time, so both are printed.
"""

import argparse
import contextlib
import csv
import itertools
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from lushan.data.batching import PackedSource, Step
from lushan.training.loop import StepDone
from lushan.workflows.recipe import flags_of, make_recipe
from lushan.workflows.tune import tune

sys.path.append(str(Path(__file__).resolve().parent.parent / "quality"))

import table

SIZES = (1_000, 10_000, 100_000, 1_000_000)
NUM_STEPS = 200
NUM_OTHER_ROWS = 200
MOST_DISTINCT = 1_000_000
LABELS = ("negative", "positive")
MEAN_LOG_WORDS, SPREAD_LOG_WORDS, MOST_WORDS = 2.8, 0.55, 52
ROWS_PER_DRAW = 10_000
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
WORD = re.compile("(?:\u0120|\u2581)[a-z]{2,12}")


HEADER = """\
| rows | seconds to the first step (of processor time) | the same, tokens kept | tokens/s (lowest to highest) | \
tokens a second of processor time | ms a step to read its rows | most MB before the first step | the same, tokens kept | \
MB while training, tokens kept |
|---|---|---|---|---|---|---|---|---|"""


class Enough(Exception):  # noqa: N818 - no error: it ends a run early
    """The steps that are timed are done."""


def main() -> None:
    """Time each size in a process of its own, and print a table."""
    options = _options()
    if options.child:
        _train_first_steps(options)
        return
    with tempfile.TemporaryDirectory(prefix="growth-", dir=options.work) as name:
        work = Path(name)
        for size in options.sizes:
            write_rows(work / str(size), size, options=options)
        cold = {size: _in_process(options, work / str(size), work) for size in options.sizes}
        warm = {size: list[dict[str, float]]() for size in options.sizes}
        for _, (size, found) in itertools.product(range(options.repeats), warm.items()):
            found.append(_in_process(options, work / str(size), work))
    lines = [HEADER, *(_line(size, cold[size], warm[size]) for size in options.sizes)]
    print("\n".join(lines))
    if options.document:
        table.put_between_markers(options.document, "\n".join(lines), name=options.name)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a model folder")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument(
        "--distinct", type=int, default=MOST_DISTINCT, help="different rows; then they repeat"
    )
    parser.add_argument(
        "--words", type=int, help="different words, so that few rows have them all; else thousands"
    )
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    parser.add_argument("--repeats", type=int, default=1, help="of the runs that find tokens kept")
    parser.add_argument("--adapter", default="full")
    parser.add_argument("--format", choices=("jsonl", "csv", "parquet"), default="jsonl")
    parser.add_argument("--work", type=Path, help="folder for the rows and the caches")
    parser.add_argument(
        "--tiny", action="store_true", help="the model's tokenizer, with few and random weights"
    )
    parser.add_argument("--document", type=Path, help="put the table between this file's markers")
    parser.add_argument("--name", default="growth", help="name of the markers")
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


def write_rows(folder: Path, size: int, *, options: argparse.Namespace) -> None:
    """Write train, validation and test files."""
    folder.mkdir()
    words = words_of(options.model)[: options.words]
    for seed, name in enumerate(("train", "validation", "test")):
        num_rows = NUM_OTHER_ROWS if seed else size
        rows = repeated_rows([seed, size], num_rows, words, num_distinct=options.distinct)
        _write(folder / f"{name}.{options.format}", rows)


def repeated_rows(
    seed: Sequence[int], num_rows: int, words: Sequence[str], *, num_distinct: int
) -> Iterator[tuple[str, str]]:
    """Draw rows, and begin anew with the first where there are enough different ones."""
    drawn = drawn_rows(np.random.default_rng(seed), min(num_distinct, num_rows), words)
    return drawn if num_rows <= num_distinct else itertools.islice(itertools.cycle(drawn), num_rows)


def write_tiny_model(like: Path, folder: Path) -> None:
    """Write a llama with few and random weights that reads the tokens of another model."""
    from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM  # slow to import

    folder.mkdir()
    for name in TOKENIZER_FILES:
        if (like / name).is_file():
            shutil.copy(like / name, folder / name)
    size = AutoConfig.from_pretrained(like).vocab_size
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


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
    if options.tiny and not (work / "tiny").is_dir():
        write_tiny_model(options.model, work / "tiny")
    model = work / "tiny" if options.tiny else options.model.resolve()
    environment = {**os.environ, "LUSHAN_CACHE": str(work / "cache"), "STARTED": str(time.time())}
    command = [
        sys.executable,
        __file__,
        "--child",
        str(data),
        "--model",
        str(model),
    ]
    command += ["--steps", str(options.steps), "--adapter", options.adapter]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found = done.stdout.splitlines()[-1]
    print(found, file=sys.stderr, flush=True)
    return json.loads(found)


def _line(size: int, cold: Mapping[str, float], runs: Sequence[Mapping[str, float]]) -> str:
    warm = {name: statistics.median(run[name] for run in runs) for name in cold}
    speeds = sorted(run["tokens_per_second"] for run in runs)
    return (
        f"| {size:,} | {_seconds(cold)} | {_seconds(warm)} "
        f"| {warm['tokens_per_second']:,.0f} ({speeds[0]:,.0f} to {speeds[-1]:,.0f}) "
        f"| {warm['tokens_per_cpu_second']:,.0f} | {warm['reading_ms']:.2f} "
        f"| {cold['mb_before']:,.0f} | {warm['mb_before']:,.0f} | {warm['mb_training']:,.0f} |"
    )


def _seconds(found: Mapping[str, float]) -> str:
    return f"{found['first_step']:,.0f} ({found['cpu_first_step']:,.0f})"


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _resident_mb() -> float:
    """Memory of this process now, without files that the system can forget."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


class _Steps:
    """Hears of steps, and ends the run when there were enough."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self.before: dict[str, float] = {}
        self.tokens, self.seconds, self.cpu_seconds = 0, 0.0, 0.0
        self._cpu_at = 0.0

    def on_step(self, done: StepDone) -> None:
        now = time.process_time()
        if not self.before:
            started = float(os.environ["STARTED"])
            self.before = {
                "first_step": time.time() - started,
                "cpu_first_step": now,
                "mb_before": _peak_mb(),
            }
        else:
            self.tokens += done.tokens
            self.seconds += done.seconds
            self.cpu_seconds += now - self._cpu_at
        self._cpu_at = now
        if done.step == self.num_steps:
            raise Enough

    def on_evaluation(self, *_: object) -> None:
        """Evaluations are not timed."""
        self._cpu_at = time.process_time()


def _time_reading() -> list[float]:
    """From now on note what every step waits for its rows: drawing, reading and packing them."""
    seconds: list[float] = []
    untimed = PackedSource.rest_of_epoch

    def rest_of_epoch(source: PackedSource) -> Iterator[Step]:
        steps = untimed(source)
        while True:
            started = time.perf_counter()
            step = next(steps, None)
            if step is None:
                return
            seconds.append(time.perf_counter() - started)
            yield step

    PackedSource.rest_of_epoch = rest_of_epoch
    return seconds


def _train_first_steps(options: argparse.Namespace) -> None:
    flags = flags_of({
        "model": options.model,
        "adapter": options.adapter,
        "epochs": 1_000,
        "baselines": False,
    })
    steps, reading = _Steps(options.steps), _time_reading()
    folder = tempfile.TemporaryDirectory(dir=options.child.parent)
    with folder, contextlib.suppress(Enough):
        tune(
            options.child,
            # Compiling pays for long runs only, and would make the sizes differ in what a step takes.
            make_recipe(None, flags, ["engine.compile=false"]),
            out=Path(folder.name, "run"),
            tell=lambda line: print(line, file=sys.stderr, flush=True),
            listeners=[steps],
        )
    print(
        json.dumps({
            **steps.before,
            "tokens_per_second": steps.tokens / steps.seconds,
            "tokens_per_cpu_second": steps.tokens / steps.cpu_seconds,
            "reading_ms": 1_000 * statistics.median(reading),
            "mb_training": _resident_mb(),
        })
    )


if __name__ == "__main__":
    main()
