"""Rows of several adapters in one pass: compared with PEFT's own layers, one document at a time."""

import weakref
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lushan.backbones import many_adapters
from lushan.backbones.load import AnswerLayer, Backbone, Purpose, load_backbone
from lushan.backbones.many_adapters import (
    Adapter,
    ManyAdapters,
    SharingBackbone,
    empty_model,
    share_layers,
)
from lushan.backbones.quiet import quiet_transformers
from lushan.data.batching import pack
from lushan.errors import ModelError
from lushan.records import Batch, Features
from tests.conftest import MakeTiny
from tests.generation import DECODER_TYPES

PACKED_TYPES = [each for each in DECODER_TYPES if each != "gpt_neo"]
DOCUMENTS = ((7,), (5, 9, 9), (8, 8, 8), (5, 9, 9, 31), (9, 8, 7, 6, 5, 5))
OWNERS = (0, 1, None, 1, 0)
"""Which adapter each document has; the second and the fourth, and the outer ones, do not stand together."""


def batch(*documents: tuple[int, ...]) -> Batch:
    return pack([Features(ids, place="", example_index=n) for n, ids in enumerate(documents)])


def with_adapter(folder: Any, number: int, **options: Any) -> Any:  # noqa: ANN401
    """Give a model as PEFT makes it, with weights of its own."""
    from peft import LoraConfig, get_peft_model  # slow to import

    model = load_backbone(folder, purpose="language").model
    settings = {"r": 2 + 3 * number, "lora_alpha": 5 + number, "target_modules": "all-linear"}
    with quiet_transformers():
        adapted = get_peft_model(model, LoraConfig(**{**settings, **options})).eval()
    generator = torch.Generator().manual_seed(number)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3, generator=generator)
    return adapted


@torch.no_grad()
def states_of(model: Any, ids: tuple[int, ...]) -> Tensor:  # noqa: ANN401
    plain: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    plain.config._attn_implementation = "eager"
    return plain.base_model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]


def shared(folder: Any) -> tuple[Backbone, ManyAdapters]:  # noqa: ANN401
    base = load_backbone(folder, purpose="language")
    return base, ManyAdapters(base.core)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spared", [0, 10**9], ids=["one by one", "stacked"])
@pytest.mark.parametrize("model_type", PACKED_TYPES)
def test_each_document_is_adapted_by_its_own_adapter_as_peft_does(
    model_type: str, spared: int, tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many_adapters, "_SPARED", {torch.float32: spared})
    folder = tiny_folder(model_type)
    base, many = shared(folder)
    models = [with_adapter(folder, number) for number in (0, 1)]
    adapters = [many.adapter_of(model) for model in models]
    untouched = load_backbone(folder, purpose="language").model
    own = [None if owner is None else adapters[owner] for owner in OWNERS]
    with torch.inference_mode(), many.apply(own, [len(each) for each in DOCUMENTS]):
        found_TD = base.hidden_states(batch(*DOCUMENTS))
    parts = found_TD.split([len(each) for each in DOCUMENTS])
    for ids, owner, found in zip(DOCUMENTS, OWNERS, parts, strict=True):
        model = untouched if owner is None else models[owner]
        assert_close(found, states_of(model, ids))
    assert (states_of(models[0], (7,)) - states_of(models[1], (7,))).abs().max() > 0.1


@pytest.mark.parametrize("spared", [0, 10**9], ids=["one by one", "stacked"])
def test_layers_that_not_every_adapter_changes_are_left_as_they_are(
    spared: int, tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many_adapters, "_SPARED", {torch.float32: spared})
    folder = tiny_folder("llama")
    base, many = shared(folder)
    parts = (["q_proj", "up_proj"], ["q_proj", "down_proj"])
    models = [with_adapter(folder, n, target_modules=part) for n, part in enumerate(parts)]
    own = [many.adapter_of(model) for model in models]
    with torch.inference_mode(), many.apply(own, [3, 4]):
        found_TD = base.hidden_states(batch(DOCUMENTS[1], DOCUMENTS[3]))
    pairs = zip(models, (DOCUMENTS[1], DOCUMENTS[3]), strict=True)
    assert_close(found_TD, torch.cat([states_of(*each) for each in pairs]))


def test_adapters_are_stacked_once_for_passes_of_the_same_models(tiny_folder: MakeTiny) -> None:
    folder = tiny_folder("llama")
    base, many = shared(folder)
    own = [many.adapter_of(with_adapter(folder, number)) for number in (0, 1)]
    gone = weakref.ref(own[1])
    stacks: list[object] = []
    for order in (own, own, own[::-1]):
        with torch.inference_mode(), many.apply(order, [1, 1]):
            base.hidden_states(batch((7,), (8,)))
        stacks.append(many._stack)
    assert stacks[0] is stacks[1] is not stacks[2]
    stacks.clear()
    del own, order
    assert gone() is not None
    many.forget()
    assert gone() is None


def test_nothing_is_added_outside_of_a_pass_with_adapters(tiny_folder: MakeTiny) -> None:
    folder = tiny_folder("llama")
    base, many = shared(folder)
    adapter = many.adapter_of(with_adapter(folder, 1))
    with pytest.raises(KeyboardInterrupt), many.apply([adapter], [3]):
        raise KeyboardInterrupt
    expected = states_of(load_backbone(folder, purpose="language").model, DOCUMENTS[-1])
    with torch.inference_mode():
        assert_close(base.hidden_states(batch(DOCUMENTS[-1])), expected)


def test_backbone_that_shares_its_layers_passes_with_its_own_adapter(
    tiny_folder: MakeTiny,
) -> None:
    folder = tiny_folder("llama")
    base, many = shared(folder)
    model = with_adapter(folder, 1)
    adapter = many.adapter_of(model)
    make = partial(SharingBackbone, base.model, base.tokenizer, base.facts, "packed", many=many)
    with torch.inference_mode():
        found_TD = make(adapter=adapter).hidden_states(batch(*DOCUMENTS[:2]))
        plain_TD = make(adapter=None).hidden_states(batch(DOCUMENTS[0]))
        assert_close(found_TD, torch.cat([states_of(model, each) for each in DOCUMENTS[:2]]))
        assert_close(plain_TD, base.hidden_states(batch(DOCUMENTS[0])))


def test_gradients_reach_the_tokens_through_adapted_layers(tiny_folder: MakeTiny) -> None:
    folder = tiny_folder("llama")
    base, many = shared(folder)
    model = with_adapter(folder, 1)
    gradients: list[Tensor] = []
    plain = model.get_base_model()
    plain.config._attn_implementation = "eager"
    for core, adapters in ((base.core, [many.adapter_of(model)]), (plain.base_model, [])):
        core.requires_grad_(False)
        base.core.config._attn_implementation = "eager"
        ids_1T = torch.tensor([DOCUMENTS[-1]])
        embedded_1TD = core.get_input_embeddings()(ids_1T).detach().requires_grad_()
        with many.apply(adapters, [len(DOCUMENTS[-1])] * len(adapters)):
            states_1TD = core(inputs_embeds=embedded_1TD, use_cache=False).last_hidden_state
        gradients += torch.autograd.grad((states_1TD * torch.arange(16)).sum(), embedded_1TD)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)
    assert gradients[0].abs().max() > 0.1


def test_memory_of_an_adapter_is_that_of_its_matrices(tiny_folder: MakeTiny) -> None:
    folder = tiny_folder("llama")
    _, many = shared(folder)
    adapter: Adapter = many.adapter_of(with_adapter(folder, 1))
    per_layer = 2 * (16 + 16) + 2 * (16 + 8) + 3 * (16 + 32)
    assert adapter.num_bytes == 2 * 5 * per_layer * 4
    assert many.num_bytes == 0  # fp32 products need no copy


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"lora_bias": True}, {"modules_to_save": ["norm"]}, {"modules_to_save": ["lm_head"]}]
)  # fmt: skip
def test_adapter_of_another_kind_is_refused(options: Any, tiny_folder: MakeTiny) -> None:  # noqa: ANN401
    folder = tiny_folder("llama")
    _, many = shared(folder)
    with pytest.raises(ModelError, match=r"changes `.*` in a way that cannot share"):
        many.adapter_of(with_adapter(folder, 1, **options))


def test_model_whose_head_has_no_weights_is_refused(tiny_folder: MakeTiny) -> None:
    folder = tiny_folder("llama")
    base, _ = shared(folder)
    model: nn.Module = empty_model(folder, AnswerLayer("classify", ("no", "yes")))
    with pytest.raises(ModelError, match=r"lacks weights, such as `score\.weight`"):
        share_layers(model, base)


@pytest.mark.parametrize("purpose", ["classify", "tag"])
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gpt2"])
def test_empty_model_is_that_of_a_loaded_one_without_its_weights(
    purpose: Purpose, model_type: str, tiny_folder: MakeTiny
) -> None:
    empty = empty_model(tiny_folder(model_type), AnswerLayer(purpose, ("bad", "fine", "good")))
    loaded = load_backbone(
        tiny_folder(model_type), purpose=purpose, labels=("bad", "fine", "good")
    ).model
    assert type(empty).__name__ == type(loaded).__name__
    assert {name: each.shape for name, each in empty.named_parameters()} == {
        name: each.shape for name, each in loaded.named_parameters()
    }
    assert all(each.is_meta for each in empty.parameters())
    assert (empty.config.id2label, empty.training) == (loaded.config.id2label, False)
