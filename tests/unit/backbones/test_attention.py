"""Packed documents get the hidden states, and the gradients, that transformers gives each of them alone."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from lushan.backbones import attention
from lushan.backbones.attention import block_mask, packed_attention
from lushan.backbones.load import load_backbone
from lushan.backbones.packing import Packing, Prefix, plan_packing
from lushan.data.batching import pack
from lushan.errors import ModelError
from lushan.records import Batch, Features
from tests.conftest import MakeTiny
from tests.tiny import ENCODER_TYPES, TINY_TYPES

LENGTHS = (30, 1, 60, 2, 13, 33, 9)
"""In two groups of similar length; longer than the window of 8 that some of the models have."""
PREFIX_TOKENS = 11
PACKED_TYPES = tuple(each for each in TINY_TYPES if each != "gpt_neo")
PACKED_DECODERS = tuple(each for each in PACKED_TYPES if each not in ENCODER_TYPES)

Document = tuple[int, ...]


def random_documents(lengths: Sequence[int]) -> list[Document]:
    generator = torch.Generator().manual_seed(1)
    return [
        tuple(torch.randint(3, 300, (length,), generator=generator).tolist()) for length in lengths
    ]


def packed(documents: Sequence[Document], *, first_position: int = 0) -> Batch:
    features = [Features(each, str(number), number) for number, each in enumerate(documents)]
    return pack(features, first_position=first_position)


def run_alone(model: nn.Module, documents: Sequence[Document]) -> Tensor:
    """Run transformers' own model on one document after the other, shortest first."""
    ordered = sorted(documents, key=len)
    return torch.cat([
        model(input_ids=torch.tensor([each])).last_hidden_state[0] for each in ordered
    ])


def eager(folder: Path) -> nn.Module:
    return AutoModel.from_pretrained(folder, attn_implementation="eager").eval()


BRANCHED = (3, 2, 4, 11)
"""Tokens of a start, and of what goes on from there in three ways; longer than the window of 8."""


def branched_documents() -> list[Features]:
    (tokens,) = random_documents([sum(BRANCHED)])
    starts = ((3, 1), (5, 1), (9, 1))
    (other,) = random_documents([17])
    return [Features(tokens, "a", 0, branches=starts), Features(other, "b", 1)]


@pytest.mark.parametrize("model_type", [*PACKED_DECODERS, "gpt2 masked"])
def test_branches_are_as_if_each_stood_alone_behind_the_start(
    model_type: str, tiny_folder: MakeTiny
) -> None:
    name, _, mode = model_type.partition(" ")
    backbone = load_backbone(tiny_folder(name), purpose="embed")
    if mode:
        backbone.packing_mode = "masked"
        backbone.core.config._attn_implementation = "eager"
    branched, other = branched_documents()
    batch = pack([branched, other])
    tokens = branched.token_ids
    paths = [tokens[:5], tokens[:3] + tokens[5:9], tokens[:3] + tokens[9:]]
    with torch.inference_mode():
        found_TD = backbone.hidden_states(batch)
        plain, *alone = (
            run_alone(eager(tiny_folder(name)), [x]) for x in (other.token_ids, *paths)
        )
    expected_TD = torch.cat([plain, alone[0], alone[1][3:], alone[2][3:]])
    torch.testing.assert_close(found_TD, expected_TD, rtol=1e-4, atol=1e-5)


def test_branches_longer_than_a_window_that_counts_tokens_are_refused(
    tiny_folder: MakeTiny,
) -> None:
    backbone = load_backbone(tiny_folder("gpt_neo"), purpose="embed")
    with pytest.raises(ModelError, match=r"gpt_neo.*more than 8 tokens"):
        backbone.hidden_states(pack(branched_documents()))


def with_settings(source: Path, target: Path, **settings: object) -> Path:
    """Copy a model folder and change its configuration."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    (target / "config.json").write_text(json.dumps(config | settings), encoding="utf-8")
    return target


@torch.inference_mode()
def assert_same_as_alone(folder: Path, lengths: Sequence[int] = LENGTHS) -> None:
    documents = random_documents(lengths)
    hidden_TD = load_backbone(folder, purpose="embed").hidden_states(packed(documents))
    torch.testing.assert_close(hidden_TD, run_alone(eager(folder), documents), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", TINY_TYPES)
def test_packed_documents_are_as_alone_in_transformers(
    model_type: str, tiny_folder: MakeTiny
) -> None:
    assert_same_as_alone(tiny_folder(model_type))


@pytest.mark.parametrize("window", [None, 6, 13])
def test_documents_in_blocks_are_as_alone(
    window: int | None, tiny_folder: MakeTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_BLOCK_TOKENS", 4)
    folder = with_settings(tiny_folder("mistral"), tmp_path / "a", sliding_window=window)
    assert_same_as_alone(folder, (*LENGTHS, 12, 17, 40))


@pytest.mark.parametrize("model_type", PACKED_TYPES)
def test_flash_kernel_gives_the_same(
    model_type: str, tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "FLASH_FROM_TOKENS", 1)
    assert_same_as_alone(tiny_folder(model_type))


def test_documents_of_more_than_512_tokens_are_as_alone(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    folder = with_settings(tiny_folder("llama"), tmp_path / "a", max_position_embeddings=1024)
    assert_same_as_alone(folder, (520, 3, 600, 511))


@pytest.mark.parametrize("model_type", PACKED_DECODERS)
@torch.inference_mode()
def test_decoder_that_looks_both_ways_is_as_alone_in_transformers(
    model_type: str, tiny_folder: MakeTiny
) -> None:
    folder, documents = tiny_folder(model_type), random_documents(LENGTHS)
    config = AutoConfig.from_pretrained(folder)
    config.is_causal = False
    model = AutoModel.from_pretrained(folder, config=config, attn_implementation="eager")
    hidden_TD = load_backbone(folder, purpose="embed", both_ways=True).hidden_states(
        packed(documents)
    )
    torch.testing.assert_close(hidden_TD, run_alone(model.eval(), documents), rtol=1e-4, atol=1e-5)


def test_decoder_whose_masks_are_its_own_cannot_look_both_ways(tiny_folder: MakeTiny) -> None:
    with pytest.raises(ModelError, match="`gpt_neo` models cannot look both ways"):
        load_backbone(tiny_folder("gpt_neo"), purpose="embed", both_ways=True)


def test_window_of_mistral_is_kept(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    folder = with_settings(tiny_folder("mistral"), tmp_path / "a", sliding_window=8)
    assert_same_as_alone(folder)
    documents = random_documents(LENGTHS)
    with torch.inference_mode():
        windowed, whole = (
            run_alone(eager(each), documents) for each in (folder, tiny_folder("mistral"))
        )
    assert not torch.allclose(windowed, whole, atol=1e-3)


@pytest.mark.parametrize("flash_from_tokens", [1, 512])
@pytest.mark.parametrize("model_type", PACKED_DECODERS)
@torch.inference_mode()
def test_documents_that_continue_a_shared_prefix_are_as_whole_ones(
    model_type: str,
    flash_from_tokens: int,
    tiny_folder: MakeTiny,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "FLASH_FROM_TOKENS", flash_from_tokens)
    folder = tiny_folder(model_type)
    start, *documents = random_documents((PREFIX_TOKENS, *LENGTHS))
    backbone = load_backbone(folder, purpose="embed")
    prefix = Prefix(PREFIX_TOKENS)
    backbone.hidden_states(packed([start]), record=prefix)
    batch = packed(documents, first_position=PREFIX_TOKENS)
    hidden_TD = backbone.hidden_states(batch, prefix=prefix)
    model = eager(folder)
    expected = [
        run_alone(model, [start + each])[PREFIX_TOKENS:] for each in sorted(documents, key=len)
    ]
    torch.testing.assert_close(hidden_TD, torch.cat(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", PACKED_DECODERS)
@torch.inference_mode()
def test_each_document_can_continue_something_else(model_type: str, tiny_folder: MakeTiny) -> None:
    backbone = load_backbone(tiny_folder(model_type), purpose="embed")
    starts = [(), *random_documents((11, 20, 11))]
    prefixes: list[Prefix | None] = [None, *(Prefix(len(each)) for each in starts[1:])]
    for start, prefix in zip(starts[1:], prefixes[1:], strict=True):
        backbone.hidden_states(packed([start]), record=prefix)
    documents = random_documents(LENGTHS)
    features = [Features(each, "", n % 4) for n, each in enumerate(documents)]
    batch = pack(features, first_position=[len(starts[n % 4]) for n in range(len(features))])
    order = [each.example_index for each in batch.features]
    hidden_TD = backbone.hidden_states(batch, prefix=[prefixes[n] for n in order])
    model = eager(tiny_folder(model_type))
    expected = [
        run_alone(model, [(*starts[n], *each.token_ids)])[len(starts[n]) :]
        for n, each in zip(order, batch.features, strict=True)
    ]
    torch.testing.assert_close(hidden_TD, torch.cat(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [(1, 64), (512, 64), (512, 4)])
@pytest.mark.parametrize("model_type", PACKED_TYPES)
def test_gradients_are_those_of_transformers(
    model_type: str,
    sizes: tuple[int, int],
    tiny_folder: MakeTiny,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "FLASH_FROM_TOKENS", sizes[0])
    monkeypatch.setattr(attention, "_BLOCK_TOKENS", sizes[1])
    documents = random_documents(LENGTHS)
    backbone, model = (
        load_backbone(tiny_folder(model_type), purpose="embed"),
        eager(tiny_folder(model_type)),
    )
    backbone.hidden_states(packed(documents)).pow(2).mean().backward()
    run_alone(model, documents).pow(2).mean().backward()
    ours, theirs = (
        {name: each.grad for name, each in one.named_parameters() if each.grad is not None}
        for one in (backbone.model, model)
    )
    assert ours.keys() == theirs.keys()
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_tables_that_are_made_again_have_the_gradients_of_those_that_are_kept(
    model_type: str, tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_BLOCK_TOKENS", 4)
    backbone = load_backbone(tiny_folder(model_type), purpose="embed", precision="bf16")
    batch, found = packed(random_documents(LENGTHS)), []
    for flash_from_tokens in (512, 1):
        monkeypatch.setattr(attention, "FLASH_FROM_TOKENS", flash_from_tokens)
        total = backbone.hidden_states(batch).float().pow(2).mean()
        weights = [each for each in backbone.core.parameters() if each.requires_grad]
        found.append(torch.autograd.grad(total, weights))
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("sizes", [(512, 64), (512, 4), (1, 4)])
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "modernbert"])
@torch.inference_mode()
def test_packed_documents_in_bf16_are_as_alone_in_bf16(
    model_type: str,
    sizes: tuple[int, int],
    tiny_folder: MakeTiny,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "FLASH_FROM_TOKENS", sizes[0])
    monkeypatch.setattr(attention, "_BLOCK_TOKENS", sizes[1])
    documents = random_documents(LENGTHS)
    folder = tiny_folder(model_type)
    backbone = load_backbone(folder, purpose="embed", precision="bf16")
    expected = run_alone(eager(folder).to(torch.bfloat16), documents)
    hidden_TD = backbone.hidden_states(packed(documents))
    torch.testing.assert_close(hidden_TD, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("flash_from_tokens", [1, 512])
def test_dropout_takes_its_share_of_the_weights_and_scales_the_rest(
    flash_from_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "FLASH_FROM_TOKENS", flash_from_tokens)
    torch.manual_seed(0)
    query = torch.zeros(1, 1, 400, 4)
    options = {"packing": plan_packing([400]), "is_causal": False, "dropout": 0.25}
    attended, _ = packed_attention(nn.Module(), query, query, query + 1, None, **options)
    assert attended.std().item() > 0.01
    assert attended.mean().item() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias"])
def test_attention_that_does_more_is_refused(name: str) -> None:
    states = torch.zeros(1, 1, 2, 4)
    options = {"packing": Packing([]), name: 30.0}
    with pytest.raises(ValueError, match=f"does not know `{name}`"):
        packed_attention(nn.Module(), states, states, states, None, **options)


def test_other_rows_than_those_of_the_documents_are_refused() -> None:
    rows = torch.randn(1, 2, 5, 16).bfloat16()
    with pytest.raises(RuntimeError, match="split"):
        packed_attention(nn.Module(), rows, rows, rows, None, packing=plan_packing([8]))


def test_explicit_mask_keeps_documents_apart() -> None:
    x = torch.finfo(torch.float32).min
    both = [[0.0, x, x], [x, 0.0, 0.0], [x, 0.0, 0.0]]
    causal = [[0.0, x, x], [x, 0.0, x], [x, 0.0, 0.0]]
    assert block_mask([1, 2], dtype=torch.float32, causal=False).tolist() == [[both]]
    assert block_mask([1, 2], dtype=torch.float32, causal=True).tolist() == [[causal]]
