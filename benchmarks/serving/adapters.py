"""Ask ten tuned models of one base together, and one after another: eight LoRA adapters and two heads.

The models are made here, with random adapters: how fast they answer does not depend on what they learned.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Literal

import psutil
import torch

from lushan.backbones.adapters import Method, attach
from lushan.backbones.encoding import LengthLimit
from lushan.backbones.hardware import machine
from lushan.backbones.load import load_backbone
from lushan.catalog import load_task
from lushan.inference.generation_settings import GenerationSettings
from lushan.model_store.resident import Resident
from lushan.model_store.tuned_model import TunedModel, load_predictor, save_model, weights_digest
from lushan.records import AnswerMode, Example, Prediction, TaskState
from lushan.tasks import Preparation, Task

NUM_ADAPTERS = 8
RANK = 16
NUM_TURNS = 5
NUM_NEW_TOKENS = 24
TEXTS = (
    "a charming and funny story that stays with you long after the lights have come on again",
    "the plot goes nowhere, the jokes are old, and two hours feel like four",
    "what the film lacks in money it makes up for in wit and in the warmth of its cast",
    "an honest attempt that falls apart in its last third under the weight of its own ideas",
    "not since her first film has she been so sharp, so restless and so much fun to watch",
)
"""About twenty tokens each, as in SST-2."""
QUESTIONS = (
    "How do I keep basil fresh for a week?",
    "What should a cover letter for a first job say?",
    "Why does bread rise, and what happens if I leave out the salt?",
    "Give me three ideas for a rainy afternoon with two children.",
    "Which river flows through the most capitals?",
)

Question = tuple[str, Example]
Taken = dict[str, float]
Precision = Literal["bf16", "fp32"]


def main() -> None:
    """Make the models, take turns, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the base")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--turns", type=int, default=NUM_TURNS)
    parser.add_argument("--out", type=Path, required=True, help="result file")
    options = parser.parse_args()
    works: dict[str, dict[str, object]] = {}
    for work in ("read", "write"):
        with tempfile.TemporaryDirectory() as folder:
            models = Path(folder)
            questions = make_models(models, options.model, work, options.precision)
            works[work] = measure(models, questions, options.turns)
    result = {
        "machine": asdict(machine()),
        "threads": torch.get_num_threads(),
        "model": options.model.name,
        "precision": options.precision,
        "works": works,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: each["processor"] for name, each in works.items()}, indent=1))


def measure(models: Path, questions: Sequence[Question], num_turns: int) -> dict[str, object]:
    """Time both ways in turns, and tell what each model costs in memory."""
    resident = Resident()
    memory, load_seconds = [0], list[float]()
    for name, _ in questions:
        started = time.perf_counter()
        resident.load(models / name)
        load_seconds.append(time.perf_counter() - started)
        memory.append(resident.num_bytes)
    ways: dict[str, Callable[[], list[Prediction]]] = {
        "together": lambda: resident.predict(questions),
        "one_at_a_time": lambda: [resident.predict([each])[0] for each in questions],
    }
    answers = {name: ask() for name, ask in ways.items()}  # the first time is not counted
    pairs = zip(*answers.values(), strict=True)
    seconds: dict[str, list[Taken]] = {name: [] for name in ways}
    for _ in range(num_turns):
        for name, ask in ways.items():
            seconds[name].append(taken_by(ask))
    return {
        "wall": compared(seconds, "wall"),
        "processor": compared(seconds, "processor"),
        "same_answers": sum(ours.answer == theirs.answer for ours, theirs in pairs),
        "num_requests": len(questions),
        "added_bytes": [after - before for before, after in pairwise(memory)],
        "load_seconds": {"first": load_seconds[0], "further": statistics.median(load_seconds[1:])},
        "first_model_alone": alone(models, questions),
    }


def taken_by(ask: Callable[[], object]) -> Taken:
    """Time a call, on the clock and on the processor: the second tells more where others compute too."""
    wall, processor = time.perf_counter(), time.process_time()
    ask()
    return {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}


def compared(seconds: dict[str, list[Taken]], clock: str) -> dict[str, object]:
    """Medians of both ways, and of their ratio, turn by turn."""
    together, apart = (
        [each[clock] for each in seconds[way]] for way in ("together", "one_at_a_time")
    )
    ratios = [slow / fast for slow, fast in zip(apart, together, strict=True)]
    return {
        "together_seconds": statistics.median(together),
        "one_at_a_time_seconds": statistics.median(apart),
        "ratio": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
        "all_seconds": {"together": together, "one_at_a_time": apart},
    }


def alone(models: Path, questions: Sequence[Question]) -> dict[str, float]:
    """What one adapter takes on a backbone of its own: memory of the process, and seconds to load and to answer."""
    name, example = questions[0]
    process = psutil.Process()
    before = process.memory_info().rss
    started = time.perf_counter()
    predictor = load_predictor(models / name)
    load_seconds = time.perf_counter() - started
    predictor.predict([example])
    num_bytes = process.memory_info().rss - before
    times: list[float] = []
    for _ in range(NUM_TURNS):
        started = time.perf_counter()
        predictor.predict([example])
        times.append(time.perf_counter() - started)
    return {
        "load_seconds": load_seconds,
        "rss_bytes": num_bytes,
        "median_seconds": statistics.median(times),
    }


def make_models(folder: Path, base: Path, work: str, precision: Precision) -> list[Question]:
    """Save eight adapters that read or write, and two heads; give what each is asked."""
    task, answer = {"read": ("classification", "head"), "write": ("dialogue", "generate")}[work]
    questions: list[Question] = []
    for number in range(NUM_ADAPTERS + 2):
        is_head = number >= NUM_ADAPTERS
        name = f"{'head' if is_head else 'adapter'}-{number}"
        own_task = ("classification", "tagging")[number % 2] if is_head else task
        save(
            folder / name,
            base,
            task=own_task,
            answer="head" if is_head or answer == "head" else "generate",
            method="head" if is_head else "lora",
            precision=precision,
            seed=number,
        )
        questions.append((name, example_of(own_task, number)))
    return questions


def example_of(task: str, number: int) -> Example:
    """Give what the model of a number is asked."""
    text = (QUESTIONS if task == "dialogue" else TEXTS)[number % 5]
    extra = {"messages": [{"role": "user", "content": text}]} if task == "dialogue" else {}
    return Example(str(number), text, None, extra=extra)


def save(
    run: Path,
    base: Path,
    *,
    task: str,
    answer: AnswerMode,
    method: Method,
    precision: Precision,
    seed: int,
) -> None:
    """Save a model as `lushan tune` would, its adapter drawn at random."""
    loaded: Task = load_task(task)
    examples = [loaded.read(row) for row in loaded.sample_rows()]
    state: TaskState = loaded.prepare(examples, Preparation(), multi_label=False)
    layer = loaded.layer(state, answer=answer)
    backbone = load_backbone(base, **layer._asdict(), precision=precision, seed=seed)
    attach(backbone, method=method, rank=RANK)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in backbone.model.named_parameters():
        if "lora_B" in name:
            noise = torch.randn(weight.shape, generator=generator) * 0.01
            weight.data.copy_(noise)
    meaning = TunedModel(
        task=task,
        answer=answer,
        state=state,
        limit=LengthLimit(512, "error"),
        precision=precision,
        adapter=method,
        base_model=str(base),
        base_digest=weights_digest(base),
        tokenizer_fingerprint=backbone.tokenizer.fingerprint,
        generation=GenerationSettings(max_new_tokens=NUM_NEW_TOKENS),
    )
    run.mkdir(parents=True)
    save_model(run / "model", backbone, meaning)


if __name__ == "__main__":
    main()
