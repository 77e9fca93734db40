"""Hidden states of texts that grow: compared with reading each text at once, without a cache."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lushan.backbones.load import load_backbone
from lushan.inference.decoder import Decoder, SingleDecoder, SlotDecoder
from tests.generation import DECODER_TYPES, plain_model
from tests.unit.inference.conftest import MakeSharp

PACKED_TYPES = [each for each in DECODER_TYPES if each != "gpt_neo"]
TEXTS = [(5, 9, 30, 31), tuple(range(50, 75)), (5, 9, 30, 31, 32, 33, 34), (300,)]
NEXT = [(11, 12, 13, 14), (21, 22, 23, 24), (31, 32, 33, 34)]


def states(folder: Path, texts: Sequence[tuple[int, ...]]) -> Tensor:
    core = plain_model(folder).base_model
    return torch.stack([
        core(input_ids=torch.tensor([each]), use_cache=False).last_hidden_state[0, -1]
        for each in texts
    ])


def make(folder: Path, *, packed: bool, prefix_ids: tuple[int, ...] = ()) -> Decoder:
    backbone = load_backbone(folder, purpose="language")
    return SlotDecoder(backbone, prefix_ids) if packed else SingleDecoder(backbone)


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("prefix_ids", [(), (5, 9, 30)], ids=["alone", "prefix"])
@pytest.mark.parametrize("model_type", PACKED_TYPES)
def test_texts_in_slots_are_read_as_alone(
    model_type: str, prefix_ids: tuple[int, ...], sharp_folder: MakeSharp
) -> None:
    folder = sharp_folder(model_type)
    decoder = make(folder, packed=True, prefix_ids=prefix_ids)
    texts = list(TEXTS)
    torch.testing.assert_close(decoder.add(texts), states(folder, texts), atol=1e-4, rtol=1e-4)
    for token_ids in NEXT:
        texts = [(*text, token_id) for text, token_id in zip(texts, token_ids, strict=True)]
        found_ND = decoder.step(token_ids)
        torch.testing.assert_close(found_ND, states(folder, texts), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("model_type", "packed"), [("gemma3_text", True), ("gpt_neo", False)])
def test_texts_are_copied_moved_and_forgotten(
    model_type: str, packed: bool, sharp_folder: MakeSharp
) -> None:
    folder = sharp_folder(model_type)
    decoder = make(folder, packed=packed)
    decoder.add(TEXTS)
    wanted = [3, 1, 1, 0, 1]
    placed = decoder.rearrange(wanted)
    assert sorted(placed) == [0, 1, 2, 3, 4]
    texts = {slot: TEXTS[old] for slot, old in zip(placed, wanted, strict=True)}
    decoder.add([(8, 7, 6)])
    texts[5] = (8, 7, 6)
    for step in range(3):
        token_ids = [100 + 10 * step + slot for slot in range(6)]
        texts = {slot: (*texts[slot], token_ids[slot]) for slot in range(6)}
        expected_ND = states(folder, [texts[slot] for slot in range(6)])
        torch.testing.assert_close(decoder.step(token_ids), expected_ND, atol=1e-4, rtol=1e-4)
