"""How long the first token takes where a prompt begins as an earlier one did, and how long running answers wait for prompts.

Three works, each with the engine of the server and the same engine without one part of it, in turns:

- the turns of a chat, each of which sends the whole conversation again, with and without the store of known starts;
- a prompt of 400 tokens of examples before each question, with and without the store;
- an answer that is being written while a prompt of 2,000 tokens comes, which is read in parts or at once.

Seconds are those of the processor: other programs may share it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lushan.backbones.hardware import machine
from lushan.data.batching import MAX_BATCH_TOKENS
from lushan.inference.generate import GenerationEngine, collect, encode_prompts, run
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.predict import Predictor
from lushan.inference.prefix_store import PrefixStore
from lushan.model_store.resident import Resident
from lushan.records import Row
from lushan.serving.backends import MOST_TOKENS, READ_TOKENS
from lushan.serving.hosted import host
from lushan.serving.serve_settings import ServeSettings

ANSWER = GenerationSettings(max_new_tokens=48)
SYSTEM = "You are a cook who answers briefly and names what can go wrong."
LINES = (
    "I have two hours, a small oven and four guests, one of whom eats no meat. What can I cook for all of them?",
    "One of them cannot have gluten either. Does that change your answer, and how?",
    "Which of this can I prepare the evening before, and how do I keep it?",
    "The oven is already full. What goes on the stove, and in which order?",
    "Write me the list of what I have to buy.",
)
EXAMPLE = "Review: {}\nIs it good or bad? {}\n\n"
REVIEWS = (
    ("a charming and funny story that stays with you long after the lights have come on", "good"),
    ("the plot goes nowhere, the jokes are old, and two hours feel like four", "bad"),
    ("what the film lacks in money it makes up for in wit and in the warmth of its cast", "good"),
    ("an honest attempt that falls apart in its last third under its own ideas", "bad"),
)
QUESTIONS = (
    "not since her first film has she been so sharp, so restless and so much fun to watch",
    "a tired sequel to a film that nobody asked for in the first place",
    "slow, quiet and in the end quite moving",
    "all noise and no heart",
    "the best two hours I have spent in a cinema this year",
)
FEW_SHOT_TOKENS = 400
LONG_TOKENS = 2_000
SHORT_IDS = tuple(range(100, 160))

Seconds = dict[str, list[float]]


def main() -> None:
    """Measure, print tables in Markdown, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of a model that chats")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    predictor = host(options.model, Resident(weights="bf16")).predictor
    first_token(engine_of(predictor, shares=False), SHORT_IDS)  # warms up
    works: dict[str, list[dict[str, float]]] = {}
    for name, work in (("chat", chat), ("few-shot", few_shot)):
        works[name] = medians([work(predictor) for _ in range(options.rounds)])
        show_work(name, works[name])
    rounds = [wait(predictor) for _ in range(options.rounds)]
    waits = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    show_waits(waits)
    if options.out is not None:
        result = {
            "model": Path(options.model).name,
            "machine": asdict(machine()),
            "seconds_to_first_token": works,
            "longest_wait_seconds": waits,
        }
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def engine_of(
    predictor: Predictor, *, shares: bool, max_read_tokens: int = READ_TOKENS
) -> GenerationEngine:
    """Make an engine as the server does, or without known starts."""
    settings = ServeSettings()
    return GenerationEngine(
        predictor.backbone,
        max_rows=settings.max_rows,
        max_tokens=MOST_TOKENS,
        max_read_tokens=max_read_tokens,
        prefixes=PrefixStore(MOST_TOKENS) if shares else None,
    )


def first_token(engine: GenerationEngine, prompt_ids: Sequence[int]) -> float:
    """Ask; gives seconds to the first token."""
    started = time.process_time()
    engine.add(prompt_ids, ANSWER, index=0)
    while not engine.step():
        pass
    return time.process_time() - started


def answer(engine: GenerationEngine, prompt_ids: Sequence[int]) -> str:
    """Write the answer to a prompt."""
    engine.add(prompt_ids, ANSWER, index=0)
    (found,) = collect(run(engine))
    return found.text


def both(engines: dict[str, GenerationEngine], prompt_ids: Sequence[int], found: Seconds) -> None:
    """Ask both engines the same, note their seconds, and leave the answer."""
    found["tokens"].append(len(prompt_ids))
    for name in ("without", "with"):
        found[name].append(first_token(engines[name], prompt_ids))
        engines[name].cancel(0)


def engines_of(predictor: Predictor) -> dict[str, GenerationEngine]:
    """Give one that shares and one that does not."""
    return {
        "with": engine_of(predictor, shares=True),
        "without": engine_of(predictor, shares=False),
    }


def chat(predictor: Predictor) -> Seconds:
    """Have a conversation; the model's answers go into it as they are written."""
    engines, found = engines_of(predictor), {"tokens": [], "with": [], "without": []}
    messages = [{"role": "system", "content": SYSTEM}]
    for number, line in enumerate(LINES, start=1):
        messages.append({"role": "user", "content": line})
        row = Row({"messages": messages}, "chat", number)
        (features,) = predictor.encode([predictor.task.read(row, needs_target=False)])
        both(engines, features.token_ids, found)
        written = answer(engines["with"], features.token_ids)
        messages.append({"role": "assistant", "content": written.strip()})
    return found


def few_shot(predictor: Predictor) -> Seconds:
    """Ask questions, each behind the same examples."""
    engines, found = engines_of(predictor), {"tokens": [], "with": [], "without": []}
    examples = "".join(EXAMPLE.format(*each) for each in REVIEWS) * 10
    (start_ids,) = encode_prompts(predictor.backbone, [examples])
    for question in QUESTIONS:
        (own_ids,) = encode_prompts(predictor.backbone, [EXAMPLE.format(question, "").rstrip()])
        both(engines, [*start_ids[:FEW_SHOT_TOKENS], *own_ids], found)
    return found


def wait(predictor: Predictor) -> dict[str, float]:
    """Write an answer while a long prompt comes; the longest time from one of its tokens to the next."""
    found: dict[str, float] = {}
    for name, most in (("read in parts", READ_TOKENS), ("read at once", MAX_BATCH_TOKENS)):
        engine = engine_of(predictor, shares=False, max_read_tokens=most)
        engine.add(SHORT_IDS, ANSWER, index=0)
        for _ in range(8):
            engine.step()
        engine.add([token % 200 + 100 for token in range(LONG_TOKENS)], ANSWER, index=1)
        longest = 0.0
        for _ in range(8):
            started = time.process_time()
            engine.step()
            longest = max(longest, time.process_time() - started)
        found[name] = longest
    return found


def medians(rounds: Sequence[Seconds]) -> list[dict[str, float]]:
    """Give the median of each prompt, over all rounds."""
    return [
        {name: statistics.median(each[name][place] for each in rounds) for name in rounds[0]}
        for place in range(len(rounds[0]["with"]))
    ]


def show_work(name: str, prompts: list[dict[str, float]]) -> None:
    """Print how long first tokens took."""
    print(f"| {name} | tokens | without, ms | with, ms | ratio |\n|---|---|---|---|---|")
    for number, each in enumerate(prompts, start=1):
        without, shared = each["without"], each["with"]
        columns = (f"{each['tokens']:.0f}", f"{1e3 * without:.0f}", f"{1e3 * shared:.0f}")
        print(f"| {number} | {' | '.join(columns)} | {without / shared:.1f} |", flush=True)


def show_waits(waits: dict[str, float]) -> None:
    """Print how long a running answer waited."""
    print(f"| prompt of {LONG_TOKENS:,} tokens | longest wait for a token, ms |\n|---|---|")
    for name, seconds in waits.items():
        print(f"| {name} | {1e3 * seconds:.0f} |")


if __name__ == "__main__":
    main()
