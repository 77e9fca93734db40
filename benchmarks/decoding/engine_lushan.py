"""Lushan's engine, as `lushan serve --weights FORM` runs it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from measure import MOST_REQUESTS, Write, measure

from lushan.backbones.load import load_backbone
from lushan.backbones.packed import pack_weights
from lushan.inference import generate
from lushan.inference.generation_settings import GenerationSettings


def load(options: argparse.Namespace) -> Write:
    """Load a model folder, and have its weights held in a form."""
    torch.set_num_threads(options.threads)
    backbone = load_backbone(options.model, purpose="language", precision="bf16")
    pack_weights(backbone, options.form)
    generate.stop_ids = lambda _: frozenset()  # no answer ends early

    def write(prompts: Sequence[list[int]], num_new_tokens: int) -> list[list[int]]:
        settings = GenerationSettings(max_new_tokens=num_new_tokens)
        answers = generate.generate(backbone, prompts, settings, max_rows=MOST_REQUESTS)
        return [each.token_ids for each in answers]

    return write


if __name__ == "__main__":
    measure(load)
