"""Layers that are trained: hidden states and gradients are those of `transformers`, and what is not known stays as it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lushan.backbones import layer_pass, native_training
from lushan.backbones.adapters import Method, attach
from lushan.backbones.load import Backbone, load_backbone
from lushan.backbones.short_attention import SHORT_TOKENS
from lushan.backbones.trained_layers import (
    TrainedLayer,
    compute_layers_twice,
    fuse_trained_layers,
    has_trained_layers,
    leave_trained_layers,
)
from lushan.data.batching import pack
from lushan.records import Features
from tests.tiny import write_tiny
from tests.unit.backbones.fusable import FUSED, SIZES, needs_library, sharp
from tests.unit.backbones.packed_numbers import error_of

NOISE = 1.25
"""Errors of either are roundings that add up by chance: their ratio was between 0.75 and 1.17 with other texts, 0.97 on the mean."""
ROUNDING = 0.03
"""Of a gradient, as a share of its norm, between two ways to compute the same in bfloat16."""
TEXTS = ((5, 9, 200, 31, 7, 8, 90), (17, 4, 4), tuple(range(40, 60)))
LONGER_TEXTS = (*TEXTS, tuple(range(60, 260)))
LONG_TEXTS = (*TEXTS, tuple(60 + place % 200 for place in range(SHORT_TOKENS + 1)))


Texts = tuple[tuple[int, ...], ...]


def trained_backbone(
    folder: Path,
    *,
    method: Method = "full",
    fuses: bool = True,
    precision: Literal["bf16", "fp32"] = "bf16",
) -> Backbone:
    backbone = load_backbone(folder, purpose="language", precision=precision)
    attach(backbone, method=method, layers=1, rank=4)
    if fuses:
        fuse_trained_layers(backbone)
    assert has_trained_layers(backbone) == fuses
    return backbone


def weighed(hidden_TD: Tensor) -> Tensor:
    """Something whose gradient is another for every number."""
    factors = torch.arange(hidden_TD.numel()).cos().view_as(hidden_TD)
    return (hidden_TD * factors.to(hidden_TD.dtype)).sum()


def dropping_backbone(folder: Path) -> Backbone:
    """With adapters half of whose inputs are dropped."""
    backbone = load_backbone(folder, purpose="language", precision="bf16")
    attach(backbone, method="lora", rank=4, dropout=0.5)
    generator = torch.Generator().manual_seed(0)
    for name, each in backbone.model.named_parameters():
        if "lora_B" in name:
            each.data = 0.1 * torch.randn(each.shape, generator=generator).bfloat16()
    backbone.model.train()
    fuse_trained_layers(backbone)
    assert has_trained_layers(backbone)
    assert all(each.training for each in backbone.model.modules())
    return backbone


def pass_through(backbone: Backbone, texts: Texts = TEXTS) -> tuple[Tensor, dict[str, Tensor]]:
    """Hidden states of the texts in their order, and the gradients of what is trained."""
    backbone.model.train()
    batch = pack([Features(text, "", place) for place, text in enumerate(texts)])
    parts = backbone.hidden_states(batch).split([len(each.token_ids) for each in batch.features])
    order = [each.example_index for each in batch.features]
    hidden_TD = torch.cat([parts[order.index(place)] for place in range(len(texts))])
    backbone.model.zero_grad()
    weighed(hidden_TD).backward()
    named = backbone.model.named_parameters()
    gradients = {name: each.grad.clone() for name, each in named if each.grad is not None}
    return hidden_TD.detach(), gradients


def exact(folder: Path, texts: Texts = TEXTS) -> tuple[Tensor, dict[str, Tensor]]:
    """The same by `transformers`, in float32, text by text."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    core = model.base_model
    hidden_TD = torch.cat([core(torch.tensor([each])).last_hidden_state[0] for each in texts])
    weighed(hidden_TD).backward()
    named = model.named_parameters()
    return hidden_TD.detach(), {name: each.grad for name, each in named if each.grad is not None}


def errors_of(
    found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]
) -> dict[str, float]:
    pairs = {"hidden": (found[0], expected[0])}
    pairs |= {name: (each, expected[1][name]) for name, each in found[1].items()}
    return {name: error_of(*pair) for name, pair in pairs.items()}


@needs_library
@pytest.mark.parametrize(
    "texts", [TEXTS, LONGER_TEXTS, LONG_TEXTS], ids=["short", "longer", "long"]
)
@pytest.mark.parametrize("model_type", FUSED)
def test_states_and_gradients_are_as_near_as_before(
    model_type: str, texts: Texts, tmp_path: Path
) -> None:
    folder = sharp(model_type, tmp_path)
    expected = exact(folder, texts)
    mine = errors_of(pass_through(trained_backbone(folder), texts), expected)
    own = errors_of(pass_through(trained_backbone(folder, fuses=False), texts), expected)
    assert set(mine) == set(own) == {"hidden", *expected[1]}
    assert sum(mine.values()) <= NOISE * sum(own.values())


@needs_library
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_adapters_are_trained_inside(model_type: str, tmp_path: Path) -> None:
    folder = sharp(model_type, tmp_path)
    found: list[tuple[Tensor, dict[str, Tensor]]] = []
    for backbone in (
        trained_backbone(folder, method="lora", fuses=False, precision="fp32"),
        trained_backbone(folder, method="lora"),
        trained_backbone(folder, method="lora", fuses=False),
    ):
        generator = torch.Generator().manual_seed(0)
        for name, each in backbone.model.named_parameters():
            if "lora_" in name:
                drawn = 0.1 * torch.randn(each.shape, generator=generator).bfloat16()
                each.data = drawn.to(each.dtype)
        found.append(pass_through(backbone))
    mine, own = (errors_of(each, found[0]) for each in found[1:])
    assert len(mine) == 1 + 3 * 7 * 2
    assert sum(mine.values()) <= NOISE * sum(own.values())


@needs_library
def test_layers_that_are_computed_twice_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sharp("llama", tmp_path)
    once, twice = (trained_backbone(folder) for _ in range(2))
    compute_layers_twice(twice)
    norms: list[int] = []
    norm = native_training.add_and_norm
    monkeypatch.setattr(
        native_training,
        "add_and_norm",
        lambda *given, **how: norms.append(1) or norm(*given, **how),
    )
    hidden, gradients = pass_through(once)
    num_once = len(norms)
    again, others = pass_through(twice)
    assert len(norms) == 3 * num_once
    assert torch.equal(hidden, again)
    assert all(torch.equal(each, others[name]) for name, each in gradients.items())


@pytest.fixture(name="whole")
def fixture_whole(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for every layer that runs as one function."""
    calls: list[int] = []
    run = layer_pass.run
    monkeypatch.setattr(layer_pass, "run", lambda *given: calls.append(1) or run(*given))
    return calls


@needs_library
@pytest.mark.parametrize(("texts", "num_whole"), [(TEXTS, 3), (LONGER_TEXTS, 3), (LONG_TEXTS, 0)])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_short_texts_go_through_layers_as_one_function(
    method: Method, texts: Texts, num_whole: int, *, whole: list[int], tmp_path: Path
) -> None:
    backbone = trained_backbone(sharp("llama", tmp_path), method=method)
    whole.clear()
    pass_through(backbone, texts)
    assert len(whole) == num_whole


@needs_library
def test_a_layer_with_a_hook_runs_by_its_parts(whole: list[int], tmp_path: Path) -> None:
    backbone = trained_backbone(sharp("llama", tmp_path))
    backbone.layers[1].get_submodule("mlp.up_proj").register_forward_hook(lambda *_: None)
    whole.clear()
    pass_through(backbone)
    assert len(whole) == 2


@needs_library
def test_layers_whose_adapters_drop_inputs_run_as_one_function_and_drop_what_their_parts_drop(
    whole: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sharp("llama", tmp_path)
    backbone, twice = (dropping_backbone(folder) for _ in range(2))
    compute_layers_twice(twice)
    found: list[tuple[Tensor, dict[str, Tensor]]] = []
    for each, num_whole in ((backbone, 3), (twice, 6)):
        whole.clear()
        torch.manual_seed(0)
        found.append(pass_through(each))
        assert len(whole) == num_whole
    with monkeypatch.context() as patch:
        patch.setattr(TrainedLayer, "_run_whole", lambda *_: None)
        torch.manual_seed(0)
        found.append(pass_through(backbone))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(each, found[1][1][name]) for name, each in found[0][1].items())
    assert max(errors_of(found[0], found[2]).values()) < ROUNDING
    torch.manual_seed(1)
    assert error_of(pass_through(backbone)[0], found[0][0]) > 2 * ROUNDING


@needs_library
def test_in_float32_layers_run_as_they_are(tmp_path: Path) -> None:
    backbone = trained_backbone(sharp("llama", tmp_path))
    backbone.model.float()
    hidden, gradients = pass_through(backbone)
    expected, others = exact(tmp_path)
    assert error_of(hidden, expected) < 1e-5
    assert all(error_of(each, others[name]) < 1e-4 for name, each in gradients.items())


@needs_library
def test_layers_that_are_left_run_as_they_did(tmp_path: Path) -> None:
    folder = sharp("llama", tmp_path)
    backbone, other = trained_backbone(folder), trained_backbone(folder, fuses=False)
    leave_trained_layers(backbone)
    assert not has_trained_layers(backbone)
    assert torch.equal(pass_through(backbone)[0], pass_through(other)[0])


@needs_library
@pytest.mark.parametrize(
    "spoil",
    [
        lambda layer: setattr(layer.mlp, "act_fn", torch.nn.Tanh()),
        lambda layer: layer.add_module("extra", torch.nn.Identity()),
        lambda layer: layer.mlp.register_forward_hook(lambda *found: 2 * found[2]),
    ],
)
def test_layers_that_do_something_else_stay(
    spoil: Callable[[torch.nn.Module], object], tmp_path: Path
) -> None:
    backbone = load_backbone(sharp("llama", tmp_path), purpose="language", precision="bf16")
    for layer in backbone.layers:
        spoil(layer)
    fuse_trained_layers(backbone)
    assert not has_trained_layers(backbone)


@needs_library
def test_layers_that_do_not_turn_are_found_behind_the_others(tmp_path: Path) -> None:
    write_tiny("smollm3", tmp_path, **SIZES, no_rope_layers=[0, 1, 1])
    backbone = load_backbone(tmp_path, purpose="language", precision="bf16")
    fuse_trained_layers(backbone)
    assert not has_trained_layers(backbone)


@needs_library
@pytest.mark.parametrize("model_type", ["granite", "gpt2", "gpt_neox", "phi3", "seed_oss"])
def test_other_architectures_stay(model_type: str, tmp_path: Path) -> None:
    own = {
        "granite": {**SIZES, "residual_multiplier": 0.5},
        "seed_oss": {**SIZES, "num_key_value_heads": 1, "residual_dropout": 0.1},
    }
    write_tiny(model_type, tmp_path, **own.get(model_type, {}))
    backbone = load_backbone(tmp_path, purpose="language", precision="bf16")
    fuse_trained_layers(backbone)
    assert not has_trained_layers(backbone)
