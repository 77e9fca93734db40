"""Hidden states of texts that grow: compared with reading each text at once, without a cache."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lushan.backbones.load import load_backbone
from lushan.inference.decoder import Decoder, SingleDecoder, SlotDecoder
from lushan.inference.prefix_store import PrefixStore
from lushan.inference.reading import Read
from tests.generation import DECODER_TYPES, plain_model
from tests.unit.inference.conftest import MakeSharp

PACKED_TYPES = [each for each in DECODER_TYPES if each != "gpt_neo"]
TEXTS = [(5, 9, 30, 31), tuple(range(50, 75)), (5, 9, 30, 31, 32, 33, 34), (300,)]
START = tuple(range(200, 220))
NEXT = [(11, 12, 13, 14), (21, 22, 23, 24), (31, 32, 33, 34)]


def states(folder: Path, texts: Sequence[tuple[int, ...]]) -> Tensor:
    core = plain_model(folder).base_model
    return torch.stack([
        core(input_ids=torch.tensor([each]), use_cache=False).last_hidden_state[0, -1]
        for each in texts
    ])


def make(folder: Path, *, packed: bool, prefixes: PrefixStore | None = None) -> Decoder:
    backbone = load_backbone(folder, purpose="language")
    return SlotDecoder(backbone, prefixes=prefixes) if packed else SingleDecoder(backbone)


def read(
    decoder: Decoder, texts: Sequence[tuple[int, ...]], *, max_tokens: int = 1000
) -> list[Read]:
    """Read texts to their ends; each is asked for by its number."""
    for number, text in enumerate(texts):
        decoder.add(number, text)
    found: list[Read] = []
    while len(found) < len(texts):
        found += decoder.read(max_tokens)
    return found


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("is_known", [False, True], ids=["alone", "prefix"])
@pytest.mark.parametrize("max_tokens", [6, 1000])
@pytest.mark.parametrize("model_type", PACKED_TYPES)
def test_texts_in_slots_are_read_as_alone(
    model_type: str, max_tokens: int, *, is_known: bool, sharp_folder: MakeSharp
) -> None:
    folder = sharp_folder(model_type)
    decoder = make(folder, packed=True, prefixes=PrefixStore(200) if is_known else None)
    texts = list(TEXTS)
    if is_known:
        texts = [START + text for text in TEXTS]
        read(decoder, [(*START, 77)])
        decoder.rearrange([])
    found = read(decoder, texts, max_tokens=max_tokens)
    assert {each.num_reused for each in found} == {len(START) if is_known else 0}
    texts = [texts[each.number] for each in found]
    hidden_ND = torch.stack([each.hidden_D for each in found])
    torch.testing.assert_close(hidden_ND, states(folder, texts), atol=1e-4, rtol=1e-4)
    for token_ids in NEXT:
        texts = [(*text, token_id) for text, token_id in zip(texts, token_ids, strict=True)]
        found_ND = decoder.step(token_ids)
        torch.testing.assert_close(found_ND, states(folder, texts), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_type", PACKED_TYPES)
def test_text_that_goes_on_where_another_ended_is_read_from_there(
    model_type: str, sharp_folder: MakeSharp
) -> None:
    folder = sharp_folder(model_type)
    decoder = make(folder, packed=True, prefixes=PrefixStore(200))
    read(decoder, TEXTS)
    for token_ids in zip(*[range(100, 110)] * len(TEXTS), strict=True):
        decoder.step(token_ids)
    decoder.keep([1])
    decoder.rearrange([])
    text = (*TEXTS[1], *range(100, 110), 7, 8)
    (found,) = read(decoder, [text])
    assert found.num_reused == len(text) - 2
    torch.testing.assert_close(found.hidden_D[None], states(folder, [text]), atol=1e-4, rtol=1e-4)


def test_single_decoder_reads_in_parts(sharp_folder: MakeSharp) -> None:
    folder = sharp_folder("gpt_neo")
    decoder = make(folder, packed=False)
    found = read(decoder, TEXTS, max_tokens=6)
    texts = [TEXTS[each.number] for each in found]
    hidden_ND = torch.stack([each.hidden_D for each in found])
    torch.testing.assert_close(hidden_ND, states(folder, texts), atol=1e-4, rtol=1e-4)
    expected_ND = states(folder, [(*text, 9) for text in texts])
    torch.testing.assert_close(decoder.step([9] * 4), expected_ND, atol=1e-4, rtol=1e-4)


def test_text_that_was_dropped_takes_no_slot(sharp_folder: MakeSharp) -> None:
    for packed, model_type in ((True, "llama"), (False, "gpt_neo")):
        decoder = make(sharp_folder(model_type), packed=packed)
        decoder.add(0, TEXTS[1])
        decoder.add(1, TEXTS[0])
        assert decoder.read(4) == []
        decoder.drop(0)
        assert [each.number for each in decoder.read(100)] == [1]
        assert decoder.step([3]).shape[0] == 1


def test_known_starts_get_what_slots_leave_but_an_eighth_at_least(
    sharp_folder: MakeSharp,
) -> None:
    store = PrefixStore(320)
    backbone = load_backbone(sharp_folder("llama"), purpose="language")
    decoder = SlotDecoder(backbone, prefixes=store, max_tokens=320)
    for start in range(5):
        read(decoder, [tuple(range(start, start + 60))])  # in one slot of 64 places
        decoder.rearrange([])
    assert store.num_tokens == 4 * 60
    read(decoder, [(9,) * 60, (8,) * 60])
    assert store.num_tokens == 3 * 60
    read(decoder, [(7,) * 120] * 3)  # five slots of 128 places
    decoder.rearrange([4])
    read(decoder, [(6,) * 50])
    assert store.num_tokens == 40


@pytest.mark.parametrize(("model_type", "packed"), [("gemma3_text", True), ("gpt_neo", False)])
def test_texts_are_copied_moved_and_forgotten(
    model_type: str, packed: bool, sharp_folder: MakeSharp
) -> None:
    folder = sharp_folder(model_type)
    decoder = make(folder, packed=packed)
    assert [each.number for each in read(decoder, TEXTS)] == [0, 1, 2, 3]
    wanted = [3, 1, 1, 0, 1]
    placed = decoder.rearrange(wanted)
    assert sorted(placed) == [0, 1, 2, 3, 4]
    texts = {slot: TEXTS[old] for slot, old in zip(placed, wanted, strict=True)}
    read(decoder, [(8, 7, 6)])
    texts[5] = (8, 7, 6)
    for step in range(3):
        token_ids = [100 + 10 * step + slot for slot in range(6)]
        texts = {slot: (*texts[slot], token_ids[slot]) for slot in range(6)}
        expected_ND = states(folder, [texts[slot] for slot in range(6)])
        torch.testing.assert_close(decoder.step(token_ids), expected_ND, atol=1e-4, rtol=1e-4)
