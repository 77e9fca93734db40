"""The table of keys and values: compared with plain attention over each text."""

import pytest
import torch
from torch.nn import functional

from lushan.backbones import native
from lushan.backbones.slot_cache import SlotCache, place

HEADS, KEY_HEADS, WIDTH = 4, 2, 8


def part(length: int, seed: int) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    key, value = torch.randn(2, KEY_HEADS, length, WIDTH, generator=generator)
    return {0: (key, value)}


@pytest.mark.parametrize("window", [None, 3])
def test_new_tokens_look_at_their_own_text_alone(window: int | None) -> None:
    cache = SlotCache()
    parts = [part(5, 1), part(9, 2), part(1, 4)]
    assert [cache.add(each) for each in parts] == [0, 1, 2]
    query, key, value = torch.randn(3, 1, HEADS, 3, WIDTH)
    key, value = key[:, :KEY_HEADS], value[:, :KEY_HEADS]
    assert cache.begin_step().tolist() == [[5, 9, 1]]
    found = cache.attend(0, (query, key, value), scaling=0.3, window=window)
    for text in range(3):
        keys, values = (
            torch.cat([parts[text][0][n], new[0, :, text : text + 1]], dim=1)
            for n, new in ((0, key), (1, value))
        )
        seen = keys.shape[1] if window is None else window
        expected = functional.scaled_dot_product_attention(
            query[:, :, text : text + 1],
            keys[None, :, -seen:],
            values[None, :, -seen:],
            scale=0.3,
            enable_gqa=True,
        )
        torch.testing.assert_close(found[0, text], expected[0, :, 0])


def test_tables_grow_without_losing_anything() -> None:
    cache = SlotCache()
    cache.add(part(3, 1))
    before = cache.num_bytes
    cache.add(part(200, 2))
    assert cache.num_bytes > before
    key_GTD, value_GTD = part(3, 1)[0]
    keys_SGCD, values_SGCD = cache._tables[0]
    torch.testing.assert_close(keys_SGCD[0, :, :3], key_GTD)
    torch.testing.assert_close(values_SGCD[0, :, :3], value_GTD)


def test_tables_are_not_as_large_in_both_ways_as_they_once_were_in_each() -> None:
    cache = SlotCache()
    for seed in range(32):
        cache.add(part(3, seed))
    cache.rearrange([0])
    cache.add(part(2_000, 1))
    keys_SGCD = cache._tables[0][0]
    assert keys_SGCD.shape[0] * keys_SGCD.shape[2] < 5 * 2_000
    torch.testing.assert_close(keys_SGCD[0, :, :3], part(3, 0)[0][0])


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([0, 1, 2], [0, 1, 2]),
        ([0, 2], [0, 1]),
        ([3, 1], [0, 1]),
        ([1, 0], [1, 0]),
        ([2, 2, 2], [2, 0, 1]),
        ([], []),
    ],
)
def test_texts_stay_where_they_can(wanted: list[int], expected: list[int]) -> None:
    assert place(wanted) == expected


def test_moved_text_takes_its_keys_and_its_length_along() -> None:
    cache = SlotCache()
    for length in (4, 5, 6):
        cache.add(part(length, length))
    before = cache._tables[0][0].clone()
    assert cache.rearrange([2, 1]) == [0, 1]
    assert cache.lengths == [6, 5]
    after = cache._tables[0][0]
    torch.testing.assert_close(after[0, :, :6], before[2, :, :6])
    torch.testing.assert_close(after[1], before[1])


@pytest.mark.skipif(bool(native.why_missing()), reason="torch attends on this machine")
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("heads", [2, 6, 10])
def test_attention_of_our_own_is_that_of_torch(
    heads: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths, found = (1, 40, 17, 90), []
    generator = torch.Generator().manual_seed(heads)
    texts = [torch.randn(2, 2, size, 64, generator=generator).bfloat16() for size in lengths]
    # As a layer hands them over: heads stand behind each other in a row of features.
    rows = [torch.randn(1, 4, each, 64, generator=generator).bfloat16() for each in (heads, 2, 2)]
    for is_ours in (True, False):
        monkeypatch.setattr(native, "can_attend", lambda _, answer=is_ours: answer)
        cache = SlotCache()
        for key, value in texts:
            cache.add({0: (key, value)})
        cache.begin_step()
        query, key, value = (each.transpose(1, 2) for each in rows)
        attended = cache.attend(0, (query, key, value), scaling=0.2, window=window)
        found.append((attended, *cache._tables[0]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0.02, atol=0.01)
    assert all(torch.equal(*pair) for pair in zip(found[0][1:], found[1][1:], strict=True))
