"""Embeddings that are read, averaged and replaced."""

import pytest
import torch

from lushan.backbones.adapters import Method, attach
from lushan.backbones.load import Backbone, load_backbone
from lushan.data.batching import pack
from lushan.errors import ModelError
from lushan.explain.embeddings import (
    baseline_embedding,
    embed,
    only_inputs_learn,
    replaced_embeddings,
)
from lushan.records import Batch, Features
from tests.conftest import MakeTiny


def batch_of(*documents: tuple[int, ...]) -> Batch:
    return pack([Features(each, "", 0) for each in documents])


def load(folder: MakeTiny, model_type: str) -> Backbone:
    return load_backbone(folder(model_type), purpose="embed")


def test_mean_is_that_of_the_rows_as_they_enter_the_model(tiny_folder: MakeTiny) -> None:
    backbone = load(
        tiny_folder, "gemma3_text"
    )  # multiplies its embeddings by the root of the width
    rows_VD = backbone.core.embed_tokens.weight[: backbone.tokenizer.vocabulary_size]
    expected_D = rows_VD.mean(dim=0) * backbone.facts.width**0.5
    torch.testing.assert_close(baseline_embedding(backbone, "mean"), expected_D.detach())


def test_zero_and_padding(tiny_folder: MakeTiny) -> None:
    backbone = load(tiny_folder, "bert")
    assert not baseline_embedding(backbone, "zero").any()
    padding_D = backbone.core.embeddings.word_embeddings.weight[0].detach()
    torch.testing.assert_close(baseline_embedding(backbone, "padding"), padding_D)


def test_padding_of_a_model_without_one_is_refused(tiny_folder: MakeTiny) -> None:
    backbone = load(tiny_folder, "llama")
    backbone.plain_model.config.pad_token_id = None
    with pytest.raises(ModelError, match=r"no padding token\. Use the baseline `mean` or `zero`"):
        baseline_embedding(backbone, "padding")


@pytest.mark.parametrize(
    "model_type", ["llama", "gpt2", "gpt_neo", "gemma3_text", "bert", "modernbert"]
)
def test_embeddings_of_other_tokens_stand_for_them(model_type: str, tiny_folder: MakeTiny) -> None:
    backbone = load(tiny_folder, model_type)
    shown, meant = batch_of((5, 6, 7), (8, 9, 10, 11)), batch_of((50, 60, 70), (80, 90, 100, 110))
    with torch.no_grad():
        with replaced_embeddings(backbone, embed(backbone, meant.token_ids_1T[0])):
            replaced_TD = backbone.hidden_states(shown)
        torch.testing.assert_close(replaced_TD, backbone.hidden_states(meant))
        assert not torch.allclose(replaced_TD, backbone.hidden_states(shown))


def test_only_inputs_learn_and_then_all_is_as_before(tiny_folder: MakeTiny) -> None:
    model = load(tiny_folder, "llama").model.train()
    frozen = next(iter(model.parameters())).requires_grad_(False)
    before = [each.requires_grad for each in model.parameters()]
    with only_inputs_learn(model):
        assert not model.training
        assert not any(each.requires_grad for each in model.parameters())
    assert model.training
    assert [each.requires_grad for each in model.parameters()] == before
    assert not frozen.requires_grad


@pytest.mark.parametrize("method", ["full", "lora"])
def test_in_bf16_all_is_computed_in_float32_and_then_as_before(
    method: Method, tiny_folder: MakeTiny
) -> None:
    exact, coarse = (
        load_backbone(
            tiny_folder("llama"), purpose="classify", labels=("a", "b"), precision=precision
        )
        for precision in ("fp32", "bf16")
    )
    attach(coarse, method=method)
    batch = batch_of((5, 6, 7, 8))
    with torch.no_grad():
        before_TD = coarse.hidden_states(batch)
        with only_inputs_learn(coarse.model):
            within_TD = coarse.hidden_states(batch)
        assert within_TD.dtype == torch.float32
        torch.testing.assert_close(within_TD, exact.hidden_states(batch), rtol=0.05, atol=0.05)
        assert torch.equal(coarse.hidden_states(batch), before_TD)
