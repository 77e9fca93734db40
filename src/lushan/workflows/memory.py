"""How much memory training will take, predicted before it takes any: make it fit, or refuse in time.

Only what counts is predicted: weights, their gradients and masters, what the optimizer remembers, and what the forward
pass keeps for the backward pass.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from lushan.backbones.attention import FLASH_FROM_TOKENS
from lushan.backbones.inspect import ModelFacts
from lushan.backbones.lora import lays_out
from lushan.backbones.native import why_missing
from lushan.data.batching import MAX_BATCH_TOKENS
from lushan.data.feature_store import distinct_tokens, example_indices_of, lengths_of
from lushan.errors import SettingError
from lushan.records import Features
from lushan.workflows.recipe import TuneRecipe

GIB = 1 << 30
_MARGIN = 1.15
"""What falls between the blocks that are counted: temporary results, holes."""
_OPTIMIZER_BYTES = {"adamw": 8, "adafactor": 0, "sgd": 4}
"""For each number that is trained, beside its master and gradient."""
_LEAST_BATCH_TOKENS = 256
_ADAPTER_SHARE = 1.3
"""What a layer with adapters keeps, to what it keeps without: outputs that are added up are of their size."""
_HEAD_WIDTH = 64
_HALF_BYTES = 2
"""Of a number in bf16."""
_READING_BYTES = 4
"""Of each weight: it is read, checked and proved in float32 before its precision is set."""


class Load(NamedTuple):
    """What is known of the rows that are trained on."""

    most_tokens_a_step: int
    longest: int
    """Tokens of the longest document."""
    num_read_tokens: int
    """Different tokens in all documents: rows of the embedding that are ever read."""


class Fit(NamedTuple):
    """How training fits into memory."""

    batch_tokens: int
    checkpointing: bool
    needed_bytes: float
    is_squeezed: bool = False
    """Whether more would be taken if more were free."""


def load_of(features: Sequence[Features], *, rows_per_step: int) -> Load:
    """Measure the documents that are trained on, those of a row together; `rows_per_step` as in the recipe."""
    lengths = lengths_of(features)
    of_rows = np.sort(np.bincount(example_indices_of(features), weights=lengths))[::-1]
    most = int(of_rows[:rows_per_step].sum())
    return Load(most, int(lengths.max()), len(distinct_tokens(features)))


def make_fit(
    recipe: TuneRecipe,
    facts: ModelFacts,
    load: Load,
    *,
    free_bytes: float,
    device: str,
    num_processes: int = 1,
    remedy: str = "",
) -> Fit:
    """Choose how many tokens run at once, and whether layers are computed twice, so that training fits.

    Args:
        recipe: Resolved but for these.
        facts: The model.
        load: What is trained on.
        free_bytes: What this process may still take.
        device: Where it trains: `cpu` or another device type of torch.
        num_processes: How many there are, over which layers may be spread.
        remedy: What a user can do where it does not fit, if the recipe cannot be changed any more.

    Raises:
        SettingError: If it fits in no way that the recipe allows; says what is needed and what helps.
    """
    settings = recipe.engine
    least = max(_LEAST_BATCH_TOKENS, load.longest)
    halves = (MAX_BATCH_TOKENS >> times for times in range(MAX_BATCH_TOKENS.bit_length()))
    sizes = [each for each in halves if each >= least] or [least]
    if settings.batch_tokens is not None:
        sizes = [settings.batch_tokens]
    chosen = settings.gradient_checkpointing
    ways = (False, True) if chosen is None else (chosen,)
    tried = [
        Fit(
            size,
            way,
            needed_bytes(
                recipe,
                facts,
                load,
                batch_tokens=size,
                checkpointing=way,
                device=device,
                num_processes=num_processes,
            ),
        )
        for way in ways
        for size in sizes
    ]
    for place, fit in enumerate(tried):
        if fit.needed_bytes <= free_bytes:
            return fit._replace(is_squeezed=place > 0)
    needed = min(fit.needed_bytes for fit in tried)
    raise SettingError(
        f"Training needs about {needed / GIB:.1f} GiB of memory at least, but {free_bytes / GIB:.1f} GiB are free. "
        f"{remedy or _what_helps(recipe)}"
    )


def check_reading(facts: ModelFacts, *, free_bytes: float) -> None:
    """Refuse a model that main memory cannot hold while it is read, whatever is trained of it, and where.

    Raises:
        SettingError: If it is larger than what is free; says both.
    """
    needed = facts.num_parameters * _READING_BYTES
    if needed > free_bytes:
        raise SettingError(
            f"Reading the model takes about {needed / GIB:.1f} GiB of main memory, but {free_bytes / GIB:.1f} GiB are "
            "free. Take a smaller model."
        )


def _what_helps(recipe: TuneRecipe) -> str:
    helps: list[str] = []
    if recipe.adapter.method == "full":
        helps.append("choose `--adapter lora` or `top:N`")
        if recipe.training.optimizer == "adamw":
            helps.append("set `training.optimizer=adafactor`")
    if recipe.engine.gradient_checkpointing is False:
        helps.append("leave out `engine.gradient_checkpointing=false`")
    if recipe.engine.batch_tokens is not None:
        helps.append("leave out `engine.batch_tokens`")
    helps.append("take a smaller model")
    listed = ", or ".join(helps)
    return f"{listed[0].upper()}{listed[1:]}."


def needed_bytes(
    recipe: TuneRecipe,
    facts: ModelFacts,
    load: Load,
    *,
    batch_tokens: int,
    checkpointing: bool,
    device: str,
    num_processes: int = 1,
) -> float:
    """Predict what training adds to the memory of this process, which begins with whole weights."""
    number = _HALF_BYTES if recipe.model.precision == "bf16" else 4
    embedding = facts.num_embedding_weights
    inner = facts.num_parameters - embedding * (1 if facts.tied or not facts.can_write else 2)
    adapter = recipe.adapter
    trained_layers = min(
        facts.num_layers, {"top": adapter.layers, "head": 0}.get(adapter.method, facts.num_layers)
    )
    if adapter.method == "full":
        # A class layer stands on an embedding of which only the rows of known tokens move.
        read = embedding
        if recipe.answer == "head":
            read = embedding // facts.vocabulary_size * load.num_read_tokens
        # Of layers that are spread over processes each has a part of the gradients, masters and moments.
        own = inner / num_processes if recipe.engine.spread_layers else inner
        trained = own + (read if facts.tied or recipe.answer == "head" else read + embedding)
    elif adapter.method == "lora":
        # Seven layers of a block, each with two narrow matrices.
        trained = 7 * 3 * adapter.rank * facts.width * facts.num_layers
    else:
        trained = inner // facts.num_layers * trained_layers
    per_trained = number + _master_bytes(recipe, device)
    per_trained += _OPTIMIZER_BYTES[recipe.training.optimizer]
    # A document is never cut, so one may be longer than a batch.
    tokens = min(max(batch_tokens, load.longest), max(load.most_tokens_a_step, load.longest))
    if tokens < load.most_tokens_a_step:
        per_trained += 4  # gradients of several parts of a step are added up in float32
    layer_weights = inner if facts.shares_layers else inner // facts.num_layers
    per_layer = _activation_bytes(facts, layer_weights, load.longest, number)
    if adapter.method == "lora":
        per_layer *= _ADAPTER_SHARE
    kept = tokens * per_layer * trained_layers
    if checkpointing:
        kept = tokens * (per_layer + trained_layers * facts.width * number)
    laid_out = 0
    if adapter.method == "lora" and number == _HALF_BYTES and lays_out(device, torch.bfloat16):
        # Once more for either direction; experts carry no adapters, and are not.
        laid_out = 2 * (inner - facts.num_expert_weights) * number
    return (facts.num_parameters * number + laid_out + trained * per_trained + kept) * _MARGIN


def _master_bytes(recipe: TuneRecipe, device: str) -> int:
    """What stands beside a trained number so that it is known in float32."""
    if recipe.model.precision != "bf16":
        return 0
    # Where one call moves all weights, a weight in bf16 is a half of its master.
    at_once = recipe.training.optimizer == "adamw" and device == "cpu" and not why_missing()
    return 2 if at_once and not recipe.engine.spread_layers else 4


def _activation_bytes(facts: ModelFacts, layer_weights: int, longest: int, number: int) -> float:
    """What one layer keeps of one token for its backward pass.

    Norms work in float32 and keep three copies of the hidden state each; attention keeps queries, keys, values and
    output, and its weights; the gated inner layer keeps four times its width, which follows from its three matrices.
    """
    width = facts.width
    inner_width = max(0.0, (layer_weights - 3 * width**2) / (3 * width))
    norms = 2 * (4 + number) * width
    scores = width / _HEAD_WIDTH * min(longest, FLASH_FROM_TOKENS) * 3 * number
    return norms + number * (6 * width + 4 * inner_width) + scores
