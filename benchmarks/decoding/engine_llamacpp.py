"""llama.cpp: the server of the `xllamacpp` wheel in this process, with as many slots as requests."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import xllamacpp
from llama_requests import CONTEXT_TOKENS, asks
from measure import MOST_REQUESTS, Write, measure


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
        return asks(server.listening_address)(prompts, num_new_tokens)

    return write


if __name__ == "__main__":
    measure(load)
