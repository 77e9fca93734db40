"""`transformers`: `generate` on one batch (form `bf16`), or its continuous batching (form `bf16-continuous`)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from measure import Write, measure
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

NUM_BLOCKS = 64
"""Of 256 places each; else it takes most of the memory."""


def load(options: argparse.Namespace) -> Write:
    """Load a model folder."""
    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16).eval()
    # Without a stop token, so that no answer ends early.
    model.generation_config = GenerationConfig(pad_token_id=0, do_sample=False)

    def write(prompts: Sequence[list[int]], num_new_tokens: int) -> list[list[int]]:
        ids_BL = torch.tensor(prompts)
        with torch.inference_mode():
            written_BL = model.generate(
                ids_BL,
                attention_mask=torch.ones_like(ids_BL),
                max_new_tokens=num_new_tokens,
            )
        return written_BL[:, ids_BL.shape[1] :].tolist()

    def write_continuously(prompts: Sequence[list[int]], num_new_tokens: int) -> list[list[int]]:
        settings = GenerationConfig(
            pad_token_id=0, eos_token_id=-1, do_sample=False, max_new_tokens=num_new_tokens
        )
        found = model.generate_batch(
            inputs=[list(each) for each in prompts],
            generation_config=settings,
            continuous_batching_config=ContinuousBatchingConfig(num_blocks=NUM_BLOCKS),
            persistent_manager=True,
        )
        # Requests are named in the order in which they were added.
        return [list(each.generated_tokens) for each in found.values()]

    return write_continuously if options.form.endswith("continuous") else write


if __name__ == "__main__":
    measure(load)
