"""CTranslate2: its generator, on one batch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import ctranslate2
from measure import Write, measure


def load(options: argparse.Namespace) -> Write:
    """Load the folder that `ct2-transformers-converter` wrote."""
    generator = ctranslate2.Generator(
        str(options.model),
        device="cpu",
        compute_type=options.form,
        inter_threads=1,
        intra_threads=options.threads,
    )
    file = options.model / "vocabulary.json"
    tokens: list[str] = json.loads(file.read_text(encoding="utf-8"))

    def write(prompts: Sequence[list[int]], num_new_tokens: int) -> list[list[int]]:
        found = generator.generate_batch(
            [[tokens[number] for number in each] for each in prompts],
            max_length=num_new_tokens,
            min_length=num_new_tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        return [each.sequences_ids[0] for each in found]

    return write


if __name__ == "__main__":
    measure(load)
