"""Runs texts that grow by one token a step, and remembers what was computed for them.

`SlotDecoder` runs all texts in one flat row through the packed attention. `SingleDecoder` is for architectures without
it: one text after another, each with the cache of `transformers`.

Shapes: N texts, D width, T tokens.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from lushan.backbones.load import Backbone
from lushan.backbones.many_adapters import Adapter, ManyAdapters
from lushan.backbones.packing import Prefix
from lushan.backbones.slot_cache import SlotCache, place
from lushan.inference.prefix_store import PrefixStore, TokenIds
from lushan.inference.reading import PromptReader, Read, Reading, next_parts

_LEAST_SHARE = 8
"""Known starts keep this part of the bound, however many answers are being written."""


class Decoder(Protocol):
    """Texts that are being read, and texts by slot, from 0 on without holes."""

    def add(self, number: int, token_ids: TokenIds, adapter: Adapter | None = None) -> None:
        """Take a text to be read; `number` is that of no other that is open."""
        ...

    def read(self, max_tokens: int) -> list[Read]:
        """Read so many tokens at most; texts that are whole then take the next slots, in the order that is given."""
        ...

    def drop(self, number: int) -> None:
        """Forget a text that is being read."""
        ...

    def step(self, token_ids: Sequence[int]) -> Tensor:
        """Read one more token of the text in every slot; its hidden states, (N, D)."""
        ...

    def keep(self, slots: Sequence[int]) -> None:
        """Remember what was computed for these texts, so that others may begin with them."""
        ...

    def rearrange(self, wanted: Sequence[int]) -> list[int]:
        """Keep the texts of the wanted slots, some perhaps twice; gives each one's new slot."""
        ...


class SlotDecoder:
    """All texts at once, by packed attention."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        prefixes: PrefixStore | None = None,
        many: ManyAdapters | None = None,
        max_tokens: int | None = None,
    ) -> None:
        """Make an empty decoder.

        Args:
            backbone: A decoder in `packed` mode.
            prefixes: What was computed for earlier texts; None reads every text from its start.
            many: What adapts its layers, where texts have adapters.
            max_tokens: Tokens that are remembered at once, in slots and in `prefixes`, which gets what slots leave but
                an eighth at least; None leaves it to `prefixes`.
        """
        self._backbone = backbone
        self._cache = SlotCache(backbone.device)
        self._prefixes = prefixes
        self._max_tokens = max_tokens
        self._reader = PromptReader(backbone, prefixes=prefixes, many=many)
        self._texts: list[list[int]] = []
        self._adapters: list[Adapter | None] = []

    def add(self, number: int, token_ids: TokenIds, adapter: Adapter | None = None) -> None:
        """Take a text to be read; `number` is that of no other that is open."""
        self._reader.add(Reading(number, token_ids, adapter))

    def read(self, max_tokens: int) -> list[Read]:
        """Read so many tokens at most; texts that are whole then take the next slots, in the order that is given."""
        whole = self._reader.read(max_tokens)
        for reading, computed, _ in whole:
            self._cache.add(_layers(computed))
            self._texts.append(list(reading.token_ids))
            self._adapters.append(reading.adapter)
        self._share_room()
        return [Read(each.number, each.num_reused, hidden_D) for each, _, hidden_D in whole]

    def drop(self, number: int) -> None:
        """Forget a text that is being read."""
        self._reader.drop(number)

    def step(self, token_ids: Sequence[int]) -> Tensor:
        """Read one more token of the text in every slot; its hidden states, (N, D)."""
        for text, token_id in zip(self._texts, token_ids, strict=True):
            text.append(token_id)
        token_ids_1N = torch.tensor([list(token_ids)], device=self._backbone.device)
        with self._reader.adapted(self._adapters, [1] * len(token_ids)):
            return self._backbone.next_states(token_ids_1N, self._cache)

    def keep(self, slots: Sequence[int]) -> None:
        """Remember what was computed for these texts, so that others may begin with them."""
        if self._prefixes is None:
            return
        for slot in slots:
            layers = self._cache.layers_of(slot)
            text = tuple(self._texts[slot])
            keys, values = ({layer: pair[n] for layer, pair in layers.items()} for n in (0, 1))
            self._prefixes.add(text, Prefix(len(text), keys, values), self._adapters[slot])

    def rearrange(self, wanted: Sequence[int]) -> list[int]:
        """Keep the texts of the wanted slots, some perhaps twice; gives each one's new slot."""
        placed = self._cache.rearrange(wanted)
        by_slot = dict(zip(placed, wanted, strict=True))
        olds = [by_slot[slot] for slot in range(len(wanted))]
        if olds != list(range(len(self._texts))):
            self._texts = [list(self._texts[old]) for old in olds]
            self._adapters = [self._adapters[old] for old in olds]
        if not wanted:
            self._cache = SlotCache(self._backbone.device)  # the room is for known starts then
        self._share_room()
        return placed

    def _share_room(self) -> None:
        """Leave to known starts what the slots do not take."""
        if self._prefixes is not None and self._max_tokens is not None:
            room = self._max_tokens - self._cache.num_tokens
            self._prefixes.bound(max(room, self._max_tokens // _LEAST_SHARE))


def _layers(computed: Prefix) -> dict[int, tuple[Tensor, Tensor]]:
    return {layer: (key_GTD, computed.values[layer]) for layer, key_GTD in computed.keys.items()}


class SingleDecoder:
    """One text after another, by the model's own attention and cache; every text is read from its start."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._readings: dict[Reading, DynamicCache] = {}
        self._caches: list[DynamicCache] = []

    def add(self, number: int, token_ids: TokenIds, adapter: Adapter | None = None) -> None:
        """Take a text to be read; `number` is that of no other that is open."""
        reading = Reading(number, token_ids, adapter)
        self._readings[reading] = DynamicCache(config=self._backbone.core.config)

    def read(self, max_tokens: int) -> list[Read]:
        """Read so many tokens at most; texts that are whole then take the next slots, in the order that is given."""
        last: dict[Reading, Tensor] = {}
        for each, size in next_parts(list(self._readings), max_tokens).items():
            end = each.num_read + size
            last[each] = self._read(each.token_ids[each.num_read : end], self._readings[each])
            each.num_read = end
        whole = [each for each in self._readings if each.num_left == 0]
        self._caches += [self._readings.pop(each) for each in whole]
        return [Read(each.number, 0, last[each]) for each in whole]

    def drop(self, number: int) -> None:
        """Forget a text that is being read."""
        self._readings = {
            each: cache for each, cache in self._readings.items() if each.number != number
        }

    def keep(self, slots: Sequence[int]) -> None:
        """Remember nothing: a cache of `transformers` cannot be shared."""

    def step(self, token_ids: Sequence[int]) -> Tensor:
        """Read one more token of the text in every slot; its hidden states, (N, D)."""
        pairs = zip(token_ids, self._caches, strict=True)
        return torch.stack([self._read((token_id,), cache) for token_id, cache in pairs])

    def _read(self, token_ids: TokenIds, cache: DynamicCache) -> Tensor:
        start = cache.get_seq_length()
        device = self._backbone.device
        outputs = self._backbone.core(
            input_ids=torch.tensor([token_ids], device=device),
            position_ids=torch.arange(start, start + len(token_ids), device=device)[None],
            past_key_values=cache,
            use_cache=True,
        )
        return outputs.last_hidden_state[0, -1]

    def rearrange(self, wanted: Sequence[int]) -> list[int]:
        """Keep the texts of the wanted slots, some perhaps twice; gives each one's new slot."""
        placed = place(wanted)
        by_slot = dict(zip(placed, wanted, strict=True))
        used: set[int] = set()
        caches: list[DynamicCache] = []
        for slot in range(len(wanted)):
            old = by_slot[slot]
            caches.append(deepcopy(self._caches[old]) if old in used else self._caches[old])
            used.add(old)
        self._caches = caches
        return placed
