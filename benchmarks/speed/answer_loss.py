"""The loss of a `transformers` model on the answers of conversations: the same question to every system's result."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def mean_answer_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: Path
) -> float:
    """Mean negative log-likelihood of the last messages up to the token that ends them, each row alone, in nats.

    What the template writes behind that token is no part of an answer: a server stops before it.
    """
    model.eval()
    total, count = 0.0, 0
    for line in file.read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"]
        prompt = tokenizer.apply_chat_template(
            messages[:-1], add_generation_prompt=True, return_dict=False
        )
        written = tokenizer.apply_chat_template(messages, return_dict=False)
        num_behind = written[::-1].index(tokenizer.eos_token_id)
        ids = torch.tensor(written[: len(written) - num_behind])
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            logits_TV = model(ids[None], use_cache=False).logits[0]
        targets = ids[len(prompt) :]
        total += float(
            cross_entropy(logits_TV[len(prompt) - 1 : -1].float(), targets, reduction="sum")
        )
        count += len(targets)
    return total / count
