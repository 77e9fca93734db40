"""What every engine is asked, timed the same way: an engine is a function from prompts to the tokens it writes after them.

Runs in the engines' own environments, so it needs the standard library alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Write = Callable[[Sequence[list[int]], int], list[list[int]]]
"""Token ids of prompts, and how many new tokens each of them gets, to the new tokens."""

NUM_NEW_TOKENS = 48
PROMPT_TOKENS = 32
LONG_PROMPT_TOKENS = 512
MOST_REQUESTS = 32
NUM_WARM_TOKENS = 4
NUM_TRIES = 3
"""Of what takes well under a second; the median counts."""
NUM_KEPT_TOKENS = 8
"""Of every answer, in order to see that all engines run the same model."""
BYTES_PER_KIBIBYTE = 1024


class Taken(NamedTuple):
    """Seconds of the clock on the wall, and of the processor in all threads: the second is the same on a busy machine."""

    wall: float
    processor: float


def parse() -> argparse.Namespace:
    """Read the command line that all engines share."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True, help="what the engine loads")
    parser.add_argument("--form", required=True, help="how the weights are stored")
    parser.add_argument("--prompts", type=Path, required=True, help="token ids, as JSON")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="result file")
    return parser.parse_args()


class Kept:
    """A result file that grows with every figure, so that a crash leaves those before it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._values: dict[str, Any] = {}

    def add(self, **values: Any) -> None:  # noqa: ANN401 - JSON values
        """Write what is known so far."""
        self._values.update(values)
        self._file.write_text(json.dumps(self._values), encoding="utf-8")


def measure(load: Callable[[argparse.Namespace], Write]) -> None:
    """Load an engine and time it."""
    options = parse()
    prompts: dict[str, list[list[int]]] = json.loads(options.prompts.read_text(encoding="utf-8"))
    kept = Kept(options.out)
    started = time.perf_counter()
    write = checked(load(options))
    write(prompts["short"][:1], NUM_WARM_TOKENS)
    kept.add(load_seconds=time.perf_counter() - started)
    for num_requests in (1, 8, MOST_REQUESTS):
        asked = prompts["short"][:num_requests]
        write(asked, NUM_WARM_TOKENS)
        first = first_tokens(write, asked, num_tries=NUM_TRIES if num_requests == 1 else 1)
        if num_requests == 1:
            kept.add(first_token_seconds=first._asdict())
        started_at = now()
        answers = write(asked, 1 + NUM_NEW_TOKENS)
        # The first token belongs to reading the prompts.
        seconds = [both - one for both, one in zip(since(started_at), first, strict=True)]
        num_tokens = num_requests * NUM_NEW_TOKENS
        rate = Taken(*(num_tokens / each for each in seconds))
        kept.add(**{f"decode_{num_requests}": rate._asdict()}, **memory(f"after_{num_requests}"))
        if num_requests == MOST_REQUESTS:
            kept.add(starts=[each[:NUM_KEPT_TOKENS] for each in answers])
    write(prompts["long"][:1], 1)
    seconds = first_tokens(write, prompts["long"][1:2])
    kept.add(prefill=Taken(*(LONG_PROMPT_TOKENS / each for each in seconds))._asdict())
    kept.add(**memory("at_the_end"))


def now() -> Taken:
    """Both clocks."""
    return Taken(time.perf_counter(), time.process_time())


def since(start: Taken) -> Taken:
    """What passed on both clocks."""
    return Taken(*(after - before for before, after in zip(start, now(), strict=True)))


def first_tokens(
    write: Write, prompts: Sequence[list[int]], *, num_tries: int = NUM_TRIES
) -> Taken:
    """Time from prompts to the first token of all of them; the median of some tries."""
    tries: list[Taken] = []
    for _ in range(num_tries):
        started = now()
        write(prompts, 1)
        tries.append(since(started))
    return Taken(*(statistics.median(each) for each in zip(*tries, strict=True)))


def checked(write: Write) -> Write:
    """Refuse an engine that stops early: its figures would tell nothing."""

    def write_all(prompts: Sequence[list[int]], num_new_tokens: int) -> list[list[int]]:
        answers = write(prompts, num_new_tokens)
        lengths = [len(each) for each in answers]
        if lengths != [num_new_tokens] * len(prompts):
            raise SystemExit(f"asked for {num_new_tokens} new tokens each, got {lengths}")
        return answers

    return write_all


def memory(when: str) -> dict[str, int]:
    """Resident size now, and the highest so far, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    sizes = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    return {
        f"rss_bytes_{when}": int(sizes["VmRSS"]) * BYTES_PER_KIBIBYTE,
        "peak_rss_bytes": int(sizes["VmHWM"]) * BYTES_PER_KIBIBYTE,
    }
