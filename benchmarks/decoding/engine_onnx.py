"""ONNX Runtime GenAI: its generator, on one batch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import numpy as np
import onnxruntime_genai
from measure import Write, measure


def load(options: argparse.Namespace) -> Write:
    """Load the folder that its model builder wrote."""
    config = onnxruntime_genai.Config(str(options.model))
    session = {"intra_op_num_threads": options.threads}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    model = onnxruntime_genai.Model(config)

    def write(prompts: Sequence[list[int]], num_new_tokens: int) -> list[list[int]]:
        length = len(prompts[0]) + num_new_tokens
        settings = onnxruntime_genai.GeneratorParams(model)
        settings.set_search_options(
            do_sample=False, batch_size=len(prompts), max_length=length, min_length=length
        )
        generator = onnxruntime_genai.Generator(model, settings)
        generator.append_tokens(np.array(prompts, np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        return [
            generator.get_sequence(index)[len(prompt) :].tolist()
            for index, prompt in enumerate(prompts)
        ]

    return write


if __name__ == "__main__":
    measure(load)
