"""Attention over causal documents: Lushan's own call and its products beside torch's flash kernel, forward and backward.

In float32 both are taken as training takes them, of documents that are gathered into a table.

Prints a table in Markdown: milliseconds for 2,048 tokens (or one longer document) of one layer with SmolLM2's heads, the
best of some turns that are taken one after another.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from lushan.backbones import attention, short_attention
from lushan.backbones.packing import plan_packing

NUM_HEADS, NUM_KEY_HEADS, WIDTH = 9, 3, 64
NUM_TOKENS = 2_048
LENGTHS = (24, 64, 128, 256, 512, 1_024, 2_048, 4_096)
NUM_TURNS = 5
LONGEST_SHORT = 4_096
"""Up to here the call of our own is timed, whether it is taken or not."""


def heads(num_tokens: int, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys and values as a layer gives them, (1, heads, T, D)."""
    return [
        torch.randn(1, num_heads, num_tokens, WIDTH).to(dtype).requires_grad_()
        for num_heads in (NUM_HEADS, NUM_KEY_HEADS, NUM_KEY_HEADS)
    ]


def flash(parts: list[Tensor], num_documents: int) -> Tensor:
    """Torch's own, every document a row of a batch."""
    query_NHLD, key_NGLD, value_NGLD = (
        each[0].unflatten(1, (num_documents, -1)).transpose(0, 1) for each in parts
    )
    return functional.scaled_dot_product_attention(
        query_NHLD, key_NGLD, value_NGLD, is_causal=True, enable_gqa=True
    )


def ours(
    parts: list[Tensor],
    num_documents: int,
    *,
    short: bool = False,
    flash_from: int = attention.FLASH_FROM_TOKENS,
) -> Tensor:
    """As in training, with or without the call of our own, and with torch's kernel from another length on."""
    short_attention.SHORT_TOKENS = LONGEST_SHORT if short else 0
    attention.FLASH_FROM_TOKENS = flash_from
    length = parts[0].shape[2] // num_documents
    packing = plan_packing([length] * num_documents)
    query, key, value = parts
    return attention.packed_attention(nn.Module(), query, key, value, None, packing=packing)[0]


def milliseconds(run: Callable[[], Tensor]) -> float:
    """One pass, forward and backward."""
    started = time.perf_counter()
    outputs = run()
    outputs.backward(torch.ones_like(outputs))
    return 1000 * (time.perf_counter() - started)


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    print(
        "| tokens of a document | bf16, own call | bf16, products | bf16, flash | fp32, products | fp32, flash |"
    )
    print("|---|---|---|---|---|---|")
    for length in LENGTHS:
        num_documents = max(1, NUM_TOKENS // length)
        columns: list[str] = []
        for dtype in (torch.bfloat16, torch.float32):
            parts = heads(num_documents * length, dtype)
            ways: list[Callable[[], Tensor]]
            if dtype == torch.bfloat16:
                ways = [
                    partial(ours, parts, num_documents, short=True),
                    partial(ours, parts, num_documents),
                    partial(flash, parts, num_documents),
                ]
            else:
                ways = [
                    partial(ours, parts, num_documents, flash_from=each)
                    for each in (sys.maxsize, 0)
                ]
            turns = [[milliseconds(each) for each in ways] for _ in range(NUM_TURNS)]
            columns += [f"{min(each):.0f}" for each in zip(*turns, strict=True)]
        print(f"| {length:,} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
