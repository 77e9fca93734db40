"""Fused layers and norms: what they give is what `transformers` gives, and what is not known is left as it is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM

from lushan.backbones import native
from lushan.backbones.fused_layers import FusedLayer, fused_norm, has_fused_layers
from lushan.backbones.load import Backbone, WeightForm, load_backbone
from lushan.backbones.many_adapters import Adapter, LowRank, ManyAdapters
from lushan.backbones.packed import describe_weights, pack_weights
from lushan.backbones.packed_linear import PackedEmbedding, PackedLinear
from lushan.backbones.packing import Prefix
from lushan.backbones.slot_cache import SlotCache
from lushan.data.batching import pack
from lushan.inference.prefix_store import part_of
from lushan.records import Features
from tests.conftest import MakeTiny
from tests.tiny import write_tiny
from tests.unit.backbones.fusable import FUSED, SIZES, needs_library, sharp
from tests.unit.backbones.packed_numbers import error_of, matrix

TEXTS = ((5, 9, 200, 31, 7, 8, 90), (17, 4, 4))
GROWS = ((60, 61), (3, 250), (99, 12))


def packed_backbone(folder: Path, form: WeightForm = "bf16") -> Backbone:
    backbone = load_backbone(folder, purpose="language", precision="bf16")
    pack_weights(backbone, form)
    return backbone


def read(backbone: Backbone, record: Prefix | None = None) -> list[Tensor]:
    """Hidden states of each of the texts, read together."""
    batch = pack([Features(text, "", place) for place, text in enumerate(TEXTS)])
    with torch.inference_mode():
        hidden_TD = backbone.hidden_states(batch, record=record)
    parts = hidden_TD.split([len(each.token_ids) for each in batch.features])
    return [parts[[each.example_index for each in batch.features].index(n)] for n in range(2)]


def go_on(backbone: Backbone) -> list[Tensor]:
    """Hidden states of the tokens that follow the texts, token by token."""
    record = Prefix(0)
    read(backbone, record)
    cache, steps = SlotCache(), list[Tensor]()
    ends = {len(TEXTS[1]): (0, 3), len(TEXTS[0]): (3, 10)}  # the shorter is read first
    for text in TEXTS:
        own = part_of(record, *ends[len(text)])
        cache.add({layer: (own.keys[layer], own.values[layer]) for layer in own.keys})
    with torch.inference_mode():
        steps = [backbone.next_states(torch.tensor([tokens]), cache) for tokens in GROWS]
    return [torch.stack([each[n] for each in steps]) for n in range(2)]


def exact(folder: Path) -> list[Tensor]:
    """What `transformers` gives in float32 for the texts and what follows them."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    whole = [(*text, *(tokens[n] for tokens in GROWS)) for n, text in enumerate(TEXTS)]
    with torch.inference_mode():
        return [model(torch.tensor([each])).last_hidden_state[0] for each in whole]


@needs_library
@pytest.mark.parametrize("model_type", FUSED)
def test_texts_and_what_follows_are_those_of_transformers(model_type: str, tmp_path: Path) -> None:
    folder = sharp(model_type, tmp_path)
    backbone = packed_backbone(folder)
    assert has_fused_layers(backbone)
    for text, start, rest, expected in zip(
        TEXTS, read(backbone), go_on(backbone), exact(folder), strict=True
    ):
        assert error_of(start, expected[: len(text)]) < 0.012
        assert error_of(rest, expected[len(text) :]) < 0.012


@needs_library
def test_layers_run_in_the_precision_that_their_sums_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sharp("llama", tmp_path, num_hidden_layers=12)
    expected = exact(folder)[0][: len(TEXTS[0])]
    fused = error_of(read(packed_backbone(folder))[0], expected)
    monkeypatch.setattr("lushan.backbones.packed.fuse_layers", lambda _: None)
    assert fused < 0.8 * error_of(read(packed_backbone(folder))[0], expected)


@needs_library
@pytest.mark.parametrize("form", ["int8", "int4"])
def test_rounded_weights_lose_nothing_more(form: WeightForm, tmp_path: Path) -> None:
    folder = sharp("llama", tmp_path / "model")
    backbone = packed_backbone(folder, form)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for name, layer in backbone.core.named_modules():
            if isinstance(layer, PackedLinear | PackedEmbedding):
                weight: Any = model.base_model.get_submodule(name).weight
                weight.copy_(layer.product.rows(torch.arange(len(weight))))
    model.save_pretrained(tmp_path / "rounded")
    expected = exact(tmp_path / "rounded")
    for text, start, whole in zip(TEXTS, read(backbone), expected, strict=True):
        assert error_of(start, whole[: len(text)]) < 0.012


@needs_library
@pytest.mark.parametrize("num_tokens", [8, 63, 97, 620])
@pytest.mark.parametrize("form", ["bf16", "int8"])
def test_rows_are_shared_out_among_threads_and_stay_as_they_are(
    form: WeightForm, num_tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = packed_backbone(sharp("llama", tmp_path), form)
    text = tuple(3 + place % 250 for place in range(num_tokens))
    found: list[Tensor] = []
    for num_threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=num_threads: count)
        with torch.inference_mode():
            found.append(backbone.hidden_states(pack([Features(text, "", 0)])))
    assert all(torch.equal(each, found[0]) for each in found[1:])


@needs_library
@pytest.mark.parametrize("model_type", ["granite", "gpt2", "gpt_neox", "phi3"])
def test_other_layers_are_left(model_type: str, tmp_path: Path) -> None:
    sizes = {**SIZES, "residual_multiplier": 0.5} if model_type == "granite" else {}
    write_tiny(model_type, tmp_path, **sizes)
    backbone = packed_backbone(tmp_path)
    assert not has_fused_layers(backbone)
    assert "fused" not in describe_weights(backbone)
    assert not any(isinstance(each.forward, FusedLayer) for each in backbone.layers)


@needs_library
def test_norms_over_more_than_a_head_are_left(tmp_path: Path) -> None:
    backbone = load_backbone(sharp("qwen3", tmp_path), purpose="language", precision="bf16")
    for layer in backbone.layers:
        attention: Any = layer.self_attn
        attention.q_norm.weight = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    pack_weights(backbone, "bf16")
    assert not has_fused_layers(backbone)


@needs_library
def test_a_layer_that_gives_something_else_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sharp("llama", tmp_path)
    attend = native.step
    monkeypatch.setattr(native, "step", lambda *given: attend(*given) * 1.1)
    assert not has_fused_layers(packed_backbone(folder))


def merged(folder: Path, adapter: Adapter, into: Path) -> Path:
    """Write the model with an adapter added to its weights."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for name, added in adapter.layers.items():
            weight: Any = model.base_model.get_submodule(name).weight
            weight += (added.down_RI.T.float() @ added.up_RO.float()).T
    model.save_pretrained(into)
    return into


def random_adapter(seed: int, rank: int, *, every_layer: bool) -> Adapter:
    """Give an adapter that adds to some linear layers of a `sharp` llama, or to all."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"self_attn.q_proj": (64, 128), "self_attn.v_proj": (64, 64), "mlp.down_proj": (96, 64)}
    if every_layer:
        sizes |= {"self_attn.k_proj": (64, 64), "self_attn.o_proj": (128, 64)}
        sizes |= {"mlp.gate_proj": (64, 96), "mlp.up_proj": (64, 96)}
    return Adapter({
        f"layers.{layer}.{name}": LowRank(
            *(torch.randn(rank, size, generator=generator).mul_(0.2).bfloat16() for size in pair)
        )
        for layer in range(3)
        for name, pair in sizes.items()
    })


@needs_library
@pytest.mark.parametrize("every_layer", [True, False])
def test_every_text_has_what_its_own_adapter_adds(every_layer: bool, tmp_path: Path) -> None:
    folder = sharp("llama", tmp_path / "model")
    backbone = packed_backbone(folder)
    plain = read(backbone)
    many = ManyAdapters(backbone.core)
    adapters = [random_adapter(n, 4 + n, every_layer=every_layer) for n in range(2)]
    # The shorter text stands first.
    with many.apply([adapters[1], adapters[0]], [len(TEXTS[1]), len(TEXTS[0])]):
        read_texts = read(backbone)
    with many.apply([None, adapters[0]], [len(TEXTS[1]), len(TEXTS[0])]):
        assert torch.equal(read(backbone)[1], plain[1])
    for n, adapter in enumerate(adapters):
        expected = exact(merged(folder, adapter, tmp_path / str(n)))[n]
        assert error_of(read_texts[n], expected[: len(TEXTS[n])]) < 0.015
    assert torch.equal(read(backbone)[0], plain[0])


@needs_library
def test_what_follows_has_what_its_own_adapter_adds(tmp_path: Path) -> None:
    folder = sharp("llama", tmp_path / "model")
    backbone = packed_backbone(folder)
    many = ManyAdapters(backbone.core)
    adapter = random_adapter(3, 8, every_layer=True)
    expected = exact(merged(folder, adapter, tmp_path / "merged"))[0]
    record = Prefix(0)
    with many.apply([adapter], [len(TEXTS[0])]), torch.inference_mode():
        backbone.hidden_states(pack([Features(TEXTS[0], "", 0)]), record=record)
    cache = SlotCache()
    for _ in range(2):
        cache.add({layer: (record.keys[layer], record.values[layer]) for layer in record.keys})
    with torch.inference_mode():
        for number, tokens in enumerate(GROWS):
            with many.apply([None, adapter], [1, 1]):
                found_ND = backbone.next_states(torch.tensor([[tokens[0]] * 2]), cache)
            own = expected[len(TEXTS[0]) + number]
            assert error_of(found_ND[1], own) < 0.015 < error_of(found_ND[0], own)


@needs_library
def test_gradients_go_through_the_layers_themselves(tmp_path: Path) -> None:
    backbone = packed_backbone(sharp("llama", tmp_path))
    hidden_TD = backbone.hidden_states(pack([Features(TEXTS[0], "", 0)]))
    hidden_TD.float().square().sum().backward()
    norm: Any = backbone.layers[0].input_layernorm
    gradient_D = norm.norm.weight.grad
    assert gradient_D is not None
    assert gradient_D.abs().min() > 0


@pytest.mark.skipif(bool(native.why_missing()), reason="norms are those of torch")
@pytest.mark.parametrize(("model_type", "adds_one"), [("llama", False), ("gemma3_text", True)])
def test_norms_are_those_of_transformers(
    tiny_folder: MakeTiny, model_type: str, adds_one: bool
) -> None:
    backbone = load_backbone(tiny_folder(model_type), purpose="language", precision="bf16")
    norm = type(backbone.core.norm)(64, 1e-5).to(torch.bfloat16)
    norm.weight.data = matrix(64, 1)[:, 0] * 20 + 1
    fused = fused_norm(norm)
    assert fused is not None
    assert fused.adds_one is adds_one
    inputs = matrix(5, 64)[None] * torch.tensor([1e-3, 1, 5, 50, 3e4])[:, None]
    with torch.inference_mode():
        found, expected = fused(inputs.bfloat16()), norm(inputs.bfloat16())
    torch.testing.assert_close(found, expected, rtol=0.008, atol=0)


def test_a_norm_that_does_something_else_is_left() -> None:
    class OtherRMSNorm(nn.Module):
        eps = 1e-6

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(32, dtype=torch.bfloat16))

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs / inputs.abs().amax(dim=-1, keepdim=True)

    assert fused_norm(OtherRMSNorm()) is None
    assert fused_norm(nn.LayerNorm(32)) is None
