"""Many clients at once, some of them rude: does anything fail, how long do answers take, does memory stay.

Asks a server that runs: rows of every tuned model, chat of every model that writes (half of it streamed), and beside them
clients that leave in the middle, read slowly, or send what is no request. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import httpx
import psutil

TEXTS = (
    "a charming and funny story that stays with you",
    "the plot goes nowhere and two hours feel like four",
    "what it lacks in money it makes up for in wit",
    "no",
)
MALFORMED = (b"", b"{", b'{"model": 3}', b'{"model": "nobody", "messages": []}', b"\xff\xfe")
NUM_TOKENS = 24
SLOW_SECONDS = 0.2


@dataclass
class Found:
    """What happened."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """By kind of request."""
    of_client: Counter[int] = field(default_factory=Counter)
    """Answers that each client got."""
    wrong: Counter[str] = field(default_factory=Counter)
    """Answers that should not have come."""


class Client:
    """One client: asks, waits for the answer, asks again."""

    def __init__(self, http: httpx.AsyncClient, models: list[dict[str, object]], seed: int) -> None:
        self._http = http
        self._draw = random.Random(seed)
        self._tuned = [each for each in models if each["tuned"] and each["labels"]]
        self._writers = [each for each in models if not each["labels"]]

    def next_request(self) -> tuple[str, Callable[[], Awaitable[str | None]]]:
        """Draw a request; what it gives is what went wrong."""
        kinds: list[tuple[str, int, Callable[[], Awaitable[str | None]]]] = [
            ("malformed body", 1, self._send_nonsense)
        ]
        if self._tuned:
            kinds.append(("rows", 8, self._predict))
        if self._writers:
            kinds.append(("chat", 4, self._chat))
            kinds.append(("streamed chat", 4, self._stream))
            kinds.append(("streamed chat, read slowly", 1, self._read_slowly))
            kinds.append(("streamed chat, left", 1, self._leave))
        (chosen,) = self._draw.choices(kinds, weights=[each[1] for each in kinds])
        return chosen[0], chosen[2]

    async def _predict(self) -> str | None:
        rows = [{"text": self._draw.choice(TEXTS)} for _ in range(self._draw.randint(1, 4))]
        model = self._draw.choice(self._tuned)["id"]
        answer = await self._http.post(f"/v1/predict/{model}", json=rows)
        is_right = answer.status_code == 200 and len(answer.json()) == len(rows)
        return None if is_right else f"{answer.status_code}: {answer.text[:80]}"

    def _body(self, *, stream: bool) -> dict[str, object]:
        text = self._draw.choice(TEXTS)
        return {
            "model": self._draw.choice(self._writers)["id"],
            "messages": [{"role": "user", "content": f"Say it in other words: {text}"}],
            "max_tokens": NUM_TOKENS,
            "stream": stream,
        }

    async def _chat(self) -> str | None:
        answer = await self._http.post("/v1/chat/completions", json=self._body(stream=False))
        return None if answer.status_code == 200 else f"{answer.status_code}: {answer.text[:80]}"

    async def _stream(self, *, pause: float = 0.0, most_lines: int | None = None) -> str | None:
        body, num_lines, last = self._body(stream=True), 0, ""
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                return f"{answer.status_code}"
            async for line in answer.aiter_lines():
                if line:
                    num_lines, last = num_lines + 1, line
                if most_lines is not None and num_lines >= most_lines:
                    return None
                await asyncio.sleep(pause)
        return None if last == "data: [DONE]" else f"a stream ended with {last[:80]}"

    async def _read_slowly(self) -> str | None:
        return await self._stream(pause=SLOW_SECONDS)

    async def _leave(self) -> str | None:
        return await self._stream(most_lines=3)

    async def _send_nonsense(self) -> str | None:
        body = self._draw.choice(MALFORMED)
        answer = await self._http.post("/v1/chat/completions", content=body)
        is_right = 400 <= answer.status_code < 500
        return None if is_right else f"{answer.status_code} to a malformed body"


async def ask_until(end: float, number: int, client: Client, found: Found) -> None:
    """Have one client ask until a time."""
    while time.monotonic() < end:
        kind, ask = client.next_request()
        started = time.perf_counter()
        try:
            wrong = await ask()
        except httpx.HTTPError as error:
            wrong = repr(error)
        found.seconds[kind].append(time.perf_counter() - started)
        found.of_client[number] += 1
        if wrong:
            found.wrong[f"{kind}: {wrong}"] += 1


async def main() -> None:
    """Ask, and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default="http://127.0.0.1:8000")
    parser.add_argument("--pid", type=int, required=True, help="of the server, for its memory")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=600.0)
    options = parser.parse_args()
    server, found = psutil.Process(options.pid), Found()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=options.address, timeout=300, limits=limits) as http:
        models = (await http.get("/v1/models")).json()["data"]
        memory = [server.memory_info().rss]
        end = time.monotonic() + options.seconds
        clients = [Client(http, models, seed) for seed in range(options.clients)]
        asking = asyncio.gather(
            *(ask_until(end, number, each, found) for number, each in enumerate(clients))
        )
        while not asking.done():
            await asyncio.sleep(options.seconds / 20)
            memory.append(server.memory_info().rss)
        await asking
    print("| request | number | median, s | 99th of 100, s |\n|---|---|---|---|")
    for kind, seconds in sorted(found.seconds.items()):
        last = statistics.quantiles(seconds, n=100)[-1] if len(seconds) > 1 else seconds[0]
        print(f"| {kind} | {len(seconds)} | {statistics.median(seconds):.2f} | {last:.2f} |")
    numbers = found.of_client.values()
    print(
        f"\nAnswers a client: {min(numbers)} to {max(numbers)}. Wrong: {sum(found.wrong.values())}."
    )
    print(json.dumps(found.wrong.most_common(10)))
    print("MB over time:", " ".join(f"{each / 1e6:.0f}" for each in memory))


if __name__ == "__main__":
    asyncio.run(main())
