"""Token embeddings as something to move and to derive by: read, replaced for a pass, and what stands for "no word".

Shapes: T tokens of all documents, D width, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lushan.backbones.load import Backbone
from lushan.backbones.lora import forget_products
from lushan.errors import ModelError
from lushan.explain.settings import BaselineName

_ROWS_AT_ONCE = 1 << 14


@torch.no_grad()
def embed(backbone: Backbone, token_ids: Tensor) -> Tensor:
    """Give what enters the model for tokens, with the scale that some architectures put on it; (T, D), float32."""
    return backbone.plain_model.get_input_embeddings()(token_ids).float()


def baseline_embedding(backbone: Backbone, name: BaselineName) -> Tensor:
    """Give the embedding that stands for "no word"; (D,), float32.

    Raises:
        ModelError: If the padding token's is asked for and the model has none.
    """
    if name == "padding":
        padding_id = backbone.plain_model.config.pad_token_id
        if padding_id is None:
            raise ModelError(
                f"`{backbone.facts.model_type}`: this model has no padding token. Use the baseline `mean` or `zero`."
            )
        return embed(backbone, torch.tensor([padding_id], device=backbone.device))[0]
    if name == "zero":
        return torch.zeros(backbone.facts.width, device=backbone.device)
    # Rows behind the last token of the tokenizer are padding that nothing ever trained.
    num_rows = min(backbone.facts.vocabulary_size, backbone.tokenizer.vocabulary_size)
    parts = torch.arange(num_rows, device=backbone.device).split(_ROWS_AT_ONCE)
    total_D = torch.stack([embed(backbone, part).double().sum(dim=0) for part in parts]).sum(dim=0)
    return (total_D / num_rows).float()


@contextmanager
def replaced_embeddings(backbone: Backbone, embedded_TD: Tensor) -> Iterator[None]:
    """While this lasts, tokens enter the model as these rows, whatever their ids are.

    A batch that runs in several calls, one after another, takes the rows in their order.
    """
    start = 0

    def replace(_: nn.Module, __: object, output: Tensor) -> Tensor:
        nonlocal start
        size = output.shape[-2]
        part_TD = embedded_TD[start : start + size]
        start += size
        return part_TD.to(output.dtype).view(output.shape)

    handle = backbone.plain_model.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def only_inputs_learn(model: nn.Module) -> Iterator[None]:
    """While this lasts, no weight asks for a gradient, nothing is dropped, and all is computed in float32.

    In bf16 the places on a line between two embeddings cannot be told apart where scores jump, so that no number of steps
    would make their gradients add up.
    """
    was_training = model.training
    weights = list(model.parameters())
    kept = [(each.data, each.requires_grad) for each in weights]
    model.eval()
    for weight in weights:
        weight.requires_grad_(False)
        weight.data = weight.data.float()
    forget_products(model)
    try:
        with torch.inference_mode(mode=False):
            yield
    finally:
        for weight, (data, learns) in zip(weights, kept, strict=True):
            weight.data = data
            weight.requires_grad_(learns)
        forget_products(model)
        model.train(was_training)
