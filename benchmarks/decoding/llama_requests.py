"""Requests to a llama.cpp server, and how large its context must be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.request import Request, urlopen

from measure import LONG_PROMPT_TOKENS, MOST_REQUESTS, NUM_NEW_TOKENS, PROMPT_TOKENS, Write

PLACES_STEP = 256
_NEEDED = max(MOST_REQUESTS * (PROMPT_TOKENS + NUM_NEW_TOKENS + 2), LONG_PROMPT_TOKENS + 2)
CONTEXT_TOKENS = -(-_NEEDED // PLACES_STEP) * PLACES_STEP
"""Shared by all slots."""


def asks(address: str) -> Write:
    """Give what asks the server at an address, all prompts in one request: it spreads them over its slots."""

    def write(prompts: Sequence[list[int]], num_new_tokens: int) -> list[list[int]]:
        question = {
            "prompt": prompts,
            "n_predict": num_new_tokens,
            "samplers": ["top_k"],
            "top_k": 1,
            "ignore_eos": True,
            "cache_prompt": False,
            "return_tokens": True,
        }
        headers = {"Content-Type": "application/json"}
        body = json.dumps(question).encode()
        request = Request(f"{address}/completion", body, headers)  # noqa: S310
        with urlopen(request) as response:  # noqa: S310 - an address of this machine
            found = json.load(response)
        answers = found if isinstance(found, list) else [found]
        return [each["tokens"] for each in sorted(answers, key=lambda each: each["index"])]

    return write
