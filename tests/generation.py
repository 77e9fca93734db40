"""Answers of plain transformers, one prompt at a time, to compare with."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

PROMPTS = (
    "the fox",
    "a great film, never again",
    "soup",
    "The children ran home along the river and ate soup with fresh",
)
STOP_IDS = [2, *range(40, 320, 7)]
"""Many tokens end an answer, so that answers of random models end early, and not together."""
DECODER_TYPES = (
    *("llama", "mistral", "qwen2", "qwen3"),
    *("gemma3_text", "gpt2", "gpt_neo", "gpt_neox"),
)


@cache
def plain_model(folder: Path) -> Any:  # noqa: ANN401
    with torch.inference_mode(mode=False):  # others may want its gradients
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def plain_answers(
    folder: Path,
    prompt_ids: Sequence[int],
    *,
    stop_ids: Sequence[int] = (2,),
    **options: Any,  # noqa: ANN401
) -> list[list[int]]:
    """Give the tokens of each answer of `transformers.generate`, without the padding behind it."""
    ids_1T = torch.tensor([list(prompt_ids)])
    options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": list(stop_ids), **options}
    found = plain_model(folder).generate(ids_1T, attention_mask=torch.ones_like(ids_1T), **options)
    return [_until_stop(each[ids_1T.shape[1] :].tolist(), stop_ids) for each in found]


def _until_stop(token_ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    ends = [place for place, token_id in enumerate(token_ids, start=1) if token_id in stop_ids]
    return token_ids[: ends[0]] if ends else token_ids
