"""Texts as vectors: the mean of a model's last hidden states, of length 1.

Shapes: N documents of a batch, D width, E texts.
"""

from collections.abc import Sequence

import numpy as np
import torch

from lushan.backbones.heads import mean_over_tokens
from lushan.backbones.load import Backbone
from lushan.data.batching import MAX_BATCH_TOKENS, pack, split_by_tokens
from lushan.records import Features


def embed(backbone: Backbone, texts: Sequence[Sequence[int]]) -> np.ndarray:
    """Give the unit vectors of texts.

    Args:
        backbone: Any model; the layer that answers is not used.
        texts: Token ids of each, at least one.

    Returns:
        (E, D), float32, in the order of the texts.
    """
    documents = [
        Features(tuple(token_ids), place="", example_index=index)
        for index, token_ids in enumerate(texts)
    ]
    documents.sort(key=lambda each: len(each.token_ids))
    vectors_ED = np.empty((len(texts), backbone.facts.width), dtype=np.float32)
    with torch.inference_mode():
        for part in split_by_tokens(documents, MAX_BATCH_TOKENS):
            batch = pack(part, device=backbone.device)
            mean_ND = mean_over_tokens(backbone.hidden_states(batch).float(), batch)
            unit_ND = torch.nn.functional.normalize(mean_ND, dim=1)
            vectors_ED[[each.example_index for each in batch.features]] = unit_ND.cpu().numpy()
    return vectors_ED
