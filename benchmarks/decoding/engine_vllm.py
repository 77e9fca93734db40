"""vLLM for CPUs, its engine in this process."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from measure import LONG_PROMPT_TOKENS, MOST_REQUESTS, Write, measure

CACHE_GIGABYTES = "1"


def load(options: argparse.Namespace) -> Write:
    """Load a model folder."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": CACHE_GIGABYTES,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    from vllm import LLM, SamplingParams  # reads them when it is imported

    engine = LLM(
        str(options.model),
        dtype="bfloat16",
        max_model_len=2 * LONG_PROMPT_TOKENS,
        max_num_seqs=MOST_REQUESTS,
        enable_prefix_caching=False,
    )

    def write(prompts: Sequence[list[int]], num_new_tokens: int) -> list[list[int]]:
        settings = SamplingParams(
            temperature=0, max_tokens=num_new_tokens, ignore_eos=True, detokenize=False
        )
        asked = [{"prompt_token_ids": list(each)} for each in prompts]
        found = engine.generate(asked, settings, use_tqdm=False)
        return [list(each.outputs[0].token_ids) for each in found]

    return write


if __name__ == "__main__":
    measure(load)
