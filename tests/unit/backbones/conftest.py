"""Language models whose vocabulary layers differ."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.tiny import TINY_VOCABULARY

LANGUAGE_MODELS = {
    "llama": {"tie_word_embeddings": True},
    "gpt_neox": {"tie_word_embeddings": False},
    "gemma3_text": {"head_dim": 8, "final_logit_softcapping": 0.5},
    "granite": {"logits_scaling": 4.0},
    "hyperclovax": {"logits_scaling": 0.5},
    "cohere": {"logit_scale": 0.0625},
    "phi": {},  # a bias in its vocabulary layer
}


@pytest.fixture(params=list(LANGUAGE_MODELS))
def language_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    size = {
        "vocab_size": TINY_VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
    }
    config = AutoConfig.for_model(request.param, **size, **LANGUAGE_MODELS[request.param])
    model = AutoModelForCausalLM.from_config(config).eval()
    bias = model.get_output_embeddings().bias
    if bias is not None:
        torch.nn.init.normal_(bias)
    return model
