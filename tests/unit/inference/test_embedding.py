"""Vectors of texts, compared with the means of plain transformers."""

import numpy as np
import pytest
import torch

from lushan.backbones.load import load_backbone
from lushan.inference.embedding import embed
from tests.generation import plain_model
from tests.unit.inference.conftest import MakeSharp

TEXTS = [(5, 60, 100, 17), (9,), tuple(range(3, 90)), (60, 5)]


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_vectors_are_means_of_the_last_hidden_states(
    model_type: str, sharp_folder: MakeSharp
) -> None:
    folder = sharp_folder(model_type)
    found_ED = embed(load_backbone(folder, purpose="language"), TEXTS)
    with torch.inference_mode():
        states = [plain_model(folder).base_model(torch.tensor([ids])) for ids in TEXTS]
    means_ED = np.stack([each.last_hidden_state[0].mean(dim=0).numpy() for each in states])
    expected_ED = means_ED / np.linalg.norm(means_ED, axis=1, keepdims=True)
    assert found_ED.dtype == np.float32
    assert found_ED == pytest.approx(expected_ED, abs=1e-5)
