"""OpenVINO GenAI: its pipeline with continuous batching; the form `int8-exact` rounds weights alone, as Lushan does."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import openvino
import openvino_genai
from measure import LONG_PROMPT_TOKENS, MOST_REQUESTS, PROMPT_TOKENS, Write, measure

CACHE_GIGABYTES = 1
EXACT = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "KV_CACHE_PRECISION": "bf16"}
"""Else what goes into products, keys and values are rounded to 8 bits too."""


def load(options: argparse.Namespace) -> Write:
    """Load the folder that `optimum-cli export openvino` wrote."""
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = CACHE_GIGABYTES
    scheduler.max_num_seqs = MOST_REQUESTS
    scheduler.max_num_batched_tokens = max(LONG_PROMPT_TOKENS, MOST_REQUESTS * PROMPT_TOKENS)
    scheduler.enable_prefix_caching = False
    properties = {"INFERENCE_NUM_THREADS": options.threads}
    if options.form.endswith("exact"):
        properties |= EXACT
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        options.model, scheduler, "CPU", properties
    )

    def write(prompts: Sequence[list[int]], num_new_tokens: int) -> list[list[int]]:
        settings = openvino_genai.GenerationConfig()
        settings.max_new_tokens = num_new_tokens
        settings.ignore_eos = True
        inputs = [openvino.Tensor(np.array([each], np.int64)) for each in prompts]
        found = pipeline.generate(inputs, [settings] * len(inputs))
        return [list(each.m_generation_ids[0]) for each in found]

    return write


if __name__ == "__main__":
    measure(load)
