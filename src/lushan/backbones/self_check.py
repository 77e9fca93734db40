"""Runs a model folder once on built-in text: a broken conversion must not reach the user."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from lushan.backbones.quiet import quiet_transformers
from lushan.backbones.tokenizer import Tokenizer
from lushan.errors import ModelError

TEXT = (
    "The sun was setting behind the hills, and the children ran home along the river. Their mother had made soup and "
    "fresh bread for dinner. After they had eaten, she told them a story about a brave little fox who lived in the "
    "forest and helped all the other animals to find food in the winter."
)
"""Plain English, long enough to tell a language model from a broken one."""

SENTENCES = (
    "The weather is lovely today.",
    "It's so sunny outside!",
    "He drove to the stadium.",
)
"""Two alike and one apart: the first example in the documentation of sentence-transformers."""


@torch.no_grad()
def measure_perplexity(folder: Path) -> float:
    """Give the perplexity of `TEXT` under a decoder, in float32.

    Raises:
        ModelError: If a logit is not finite.
    """
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        ).eval()
    ids_1T = torch.tensor([Tokenizer.load(folder).encode([TEXT])[0].ids])
    logits_TV = model(input_ids=ids_1T).logits[0]
    _check_finite(logits_TV, folder)
    return math.exp(float(torch.nn.functional.cross_entropy(logits_TV[:-1], ids_1T[0, 1:])))


@torch.no_grad()
def measure_similarity_gap(folder: Path) -> float:
    """Tell how much nearer an encoder puts the two alike sentences than the two others; cosines of mean-pooled states.

    Raises:
        ModelError: If a hidden state is not finite.
    """
    with quiet_transformers():
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    tokenizer = Tokenizer.load(folder)
    means_D = [
        model(input_ids=torch.tensor([encoded.ids])).last_hidden_state[0].mean(dim=0)
        for encoded in tokenizer.encode(SENTENCES)
    ]
    _check_finite(torch.stack(means_D), folder)
    return _cosine(means_D, 0, 1) - _cosine(means_D, 0, 2)


def _cosine(vectors_D: Sequence[Tensor], first: int, second: int) -> float:
    return float(torch.nn.functional.cosine_similarity(vectors_D[first], vectors_D[second], dim=0))


def _check_finite(values: Tensor, folder: Path) -> None:
    if not bool(torch.isfinite(values).all()):
        raise ModelError(f"The model in `{folder.name}` gives values that are not finite.")
