"""llama.cpp: the server of the `xllamacpp` wheel in this process, with as many slots as requests."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from urllib.request import Request, urlopen

import xllamacpp
from measure import LONG_PROMPT_TOKENS, MOST_REQUESTS, NUM_NEW_TOKENS, PROMPT_TOKENS, Write, measure

PLACES_STEP = 256
_NEEDED = max(MOST_REQUESTS * (PROMPT_TOKENS + NUM_NEW_TOKENS + 2), LONG_PROMPT_TOKENS + 2)
CONTEXT_TOKENS = -(-_NEEDED // PLACES_STEP) * PLACES_STEP
"""Shared by all slots."""


def load(options: argparse.Namespace) -> Write:
    """Load a GGUF file; the server listens on loopback until the process ends."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(options.model)
    parameters.n_parallel = MOST_REQUESTS
    parameters.n_ctx = CONTEXT_TOKENS
    parameters.kv_unified = True
    parameters.warmup = False
    parameters.cpuparams.n_threads = options.threads
    parameters.cpuparams_batch.n_threads = options.threads
    server = xllamacpp.Server(parameters)

    def write(prompts: Sequence[list[int]], num_new_tokens: int) -> list[list[int]]:
        # All prompts in one request: the server spreads them over its slots.
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
        address = f"{server.listening_address}/completion"
        request = Request(address, json.dumps(question).encode(), headers)  # noqa: S310
        with urlopen(request) as response:  # noqa: S310 - an address of this process
            found = json.load(response)
        answers = found if isinstance(found, list) else [found]
        return [each["tokens"] for each in sorted(answers, key=lambda each: each["index"])]

    return write


if __name__ == "__main__":
    measure(load)
