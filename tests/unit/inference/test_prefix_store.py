"""Starts of texts that are kept: compared with a list of all texts, keys and values made from what stands before them."""

import gc
import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch

from lushan.backbones.load import load_backbone
from lushan.backbones.many_adapters import Adapter
from lushan.backbones.packing import Prefix
from lushan.inference.prefix_store import (
    PrefixStore,
    TokenIds,
    bytes_of_token,
    join,
    num_equal,
    part_of,
)
from tests.conftest import MakeTiny
from tests.generation import plain_model

SHAPES = {0: (2, 4), 3: (1, 6)}
"""Heads and width by layer: they may differ."""


def computed(text: TokenIds, shift: int = 0) -> Prefix:
    """Make keys and values that depend on the whole start of a text, as a model's do."""
    totals_P = torch.tensor([
        hash((shift, text[:end])) % 100_003 for end in range(1, len(text) + 1)
    ])
    keys = {
        layer: (totals_P + layer)[None, :, None].expand(heads, -1, width).double()
        for layer, (heads, width) in SHAPES.items()
    }
    return Prefix(len(text), keys, {layer: -key for layer, key in keys.items()})


def store_of(texts: Sequence[TokenIds], max_tokens: int = 10_000) -> PrefixStore:
    store = PrefixStore(max_tokens)
    for text in texts:
        store.add(text, computed(text), None)
    return store


def assert_equal(found: Prefix | None, expected: Prefix) -> None:
    assert found is not None
    assert found.num_tokens == expected.num_tokens
    torch.testing.assert_close(found.keys, expected.keys, rtol=0, atol=0)
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=0)


def text_of(start: int, length: int) -> TokenIds:
    return tuple(range(start, start + length))


def test_what_is_found_is_what_was_computed_for_those_very_tokens() -> None:
    draw = random.Random(0)
    texts = [tuple(draw.choice((1, 2)) for _ in range(draw.randint(1, 40))) for _ in range(150)]
    store = PrefixStore(100_000)
    for number, text in enumerate(texts):
        longest = max((num_equal(text, each) for each in texts[:number]), default=0)
        assert longest - 7 <= store.num_known(text, None) <= longest
        found = store.find(text, None)
        assert (found is None) is (store.num_known(text, None) < 8)
        if found is not None:
            assert found.num_tokens == store.num_known(text, None)
            assert_equal(found, computed(text[: found.num_tokens]))
        store.add(text, computed(text), None)
    starts = {text[:end] for text in texts for end in range(1, len(text) + 1)}
    assert store.num_tokens <= len(starts)  # each token once


def test_a_few_tokens_are_not_kept() -> None:
    store = store_of([text_of(0, 20), (*text_of(0, 20), *text_of(90, 7)), text_of(50, 7)])
    assert store.num_tokens == 20
    assert store.find((*text_of(0, 7), 99), None) is None


def test_adapters_share_with_none_and_are_forgotten_with_their_model() -> None:
    text, first, second = text_of(0, 20), Adapter({}), Adapter({})
    store = store_of([text])
    assert store.num_known(text, first) == 0
    store.add(text, computed(text, shift=1), first)
    assert store.find(text, second) is None
    assert_equal(store.find(text, first), computed(text, shift=1))
    assert_equal(store.find(text, None), computed(text))
    assert store.num_tokens == 40
    del first
    gc.collect()
    assert store.num_tokens == 20


def test_ends_that_were_not_used_for_longest_leave_first() -> None:
    start = text_of(0, 20)
    ends = [text_of(100 * number, 10) for number in range(1, 5)]
    store = store_of([start + each for each in ends[:3]], max_tokens=55)
    assert store.num_tokens == 50
    assert store.find(start + ends[0], None) is not None
    store.add(start + ends[3], computed(start + ends[3]), None)
    known = [store.num_known(start + each, None) for each in ends]
    assert known == [30, 20, 30, 30]
    store.bound(45)
    assert [store.num_known(start + each, None) for each in ends] == [30, 20, 20, 30]
    store.bound(10)
    assert store.num_tokens == 0


def test_of_a_text_beyond_the_bound_the_start_is_kept() -> None:
    store = store_of([text_of(0, 30), text_of(100, 90)], max_tokens=50)
    assert store.num_tokens == store.num_known(text_of(100, 90), None) == 50


def test_nothing_is_kept_without_room() -> None:
    store = store_of([text_of(0, 30)], max_tokens=0)
    assert (store.num_tokens, store.find(text_of(0, 30), None)) == (0, None)


def test_list_of_texts_gets_room_by_its_longest() -> None:
    assert PrefixStore.for_texts([text_of(0, 3), text_of(0, 30)])._max_tokens == 120
    assert PrefixStore.for_texts([])._max_tokens == 0


def test_memory_is_that_of_the_tokens_that_are_kept() -> None:
    store = store_of([text_of(0, 60), (*text_of(0, 20), *text_of(200, 60))])
    store.bound(100)  # the first text's end has left
    assert store.num_tokens == 80
    held = {
        each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
        for _, node in store._edges()
        for side in (node.computed.keys, node.computed.values)
        for each in side.values()
    }
    per_token = 2 * 8 * sum(heads * width for heads, width in SHAPES.values())
    assert sum(held.values()) == 80 * per_token


@pytest.mark.parametrize("cuts", [[0, 5], [0, 2, 5], [0, 1, 2, 5]])
def test_parts_are_joined_to_the_whole(cuts: list[int]) -> None:
    whole = computed(text_of(0, 5))
    parts = [part_of(whole, *ends) for ends in pairwise(cuts)]
    assert_equal(join(parts), whole)


def test_tokens_that_two_texts_start_with() -> None:
    assert num_equal((1, 2, 3), (1, 2, 4)) == 2
    assert num_equal((1, 2), (1, 2, 4)) == 2
    assert num_equal((), (1,)) == 0


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text"])
def test_memory_of_a_token_is_that_of_its_keys_and_values(
    model_type: str, tiny_folder: MakeTiny
) -> None:
    folder = tiny_folder(model_type)
    with torch.inference_mode():
        cache = plain_model(folder)(torch.tensor([[5, 6, 7]]), use_cache=True).past_key_values
    held = sum(each.keys.nbytes + each.values.nbytes for each in cache.layers)
    backbone = load_backbone(folder, purpose="language", precision="fp32")
    assert bytes_of_token(backbone, "float32") == held / 3
    assert bytes_of_token(backbone, "bfloat16") == held / 6
