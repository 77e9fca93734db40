"""Runs texts that grow by one token a step, and remembers what was computed for them.

`SlotDecoder` runs all texts in one flat row through the packed attention. `SingleDecoder` is for architectures without
it: one text after another, each with the cache of `transformers`.

Shapes: N texts, D width, T tokens.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from lushan.backbones.attention import Prefix
from lushan.backbones.load import Backbone
from lushan.backbones.many_adapters import Adapter, ManyAdapters
from lushan.backbones.slot_cache import SlotCache, place
from lushan.data.batching import MAX_BATCH_TOKENS, pack, split_by_tokens
from lushan.inference.constrained import read_prefix
from lushan.records import Features

TokenIds = tuple[int, ...]
Adapters = Sequence[Adapter | None]
"""Of each text; None where the base itself writes. Nothing says that of all."""


class Decoder(Protocol):
    """Texts by slot, from 0 on without holes."""

    def add(self, texts: Sequence[TokenIds], adapters: Adapters = ()) -> Tensor:
        """Read whole texts, which take the next slots; the hidden states of their last tokens, (N, D)."""
        ...

    def step(self, token_ids: Sequence[int]) -> Tensor:
        """Read one more token of every text; its hidden states, (N, D)."""
        ...

    def rearrange(self, wanted: Sequence[int]) -> list[int]:
        """Keep the texts of the wanted slots, some perhaps twice; gives each one's new slot."""
        ...


class SlotDecoder:
    """All texts at once, by packed attention."""

    def __init__(
        self, backbone: Backbone, prefix_ids: TokenIds = (), many: ManyAdapters | None = None
    ) -> None:
        """Make an empty decoder.

        Args:
            backbone: A decoder in `packed` mode.
            prefix_ids: What many of the texts start with; computed once, for those that the base itself writes.
            many: What adapts its layers, where texts have adapters.
        """
        self._backbone = backbone
        self._cache = SlotCache(backbone.device)
        self._prefix_ids = prefix_ids
        self._prefix: Prefix | None = None
        self._many = many
        self._adapters: list[Adapter | None] = []

    def add(self, texts: Sequence[TokenIds], adapters: Adapters = ()) -> Tensor:
        """Read whole texts, which take the next slots; the hidden states of their last tokens, (N, D)."""
        own = list(adapters) or [None] * len(texts)
        self._adapters += own
        length = len(self._prefix_ids)
        shares = [
            adapter is None
            and length > 0
            and len(text) > length
            and text[:length] == self._prefix_ids
            for text, adapter in zip(texts, own, strict=True)
        ]
        hidden_D: dict[int, Tensor] = {}
        recorded: dict[int, list[dict[int, tuple[Tensor, Tensor]]]] = {}
        for shared in (True, False):
            start = length if shared else 0
            documents = [
                Features(text[start:], place="", example_index=index)
                for index, text in enumerate(texts)
                if shares[index] is shared
            ]
            documents.sort(key=lambda each: len(each.token_ids))
            for part in split_by_tokens(documents, MAX_BATCH_TOKENS):
                sizes = [len(each.token_ids) for each in part]
                with self._adapted([own[each.example_index] for each in part], sizes):
                    self._read(part, self._shared() if shared else None, hidden_D, recorded)
        for index in range(len(texts)):
            self._cache.add(recorded[index])
        return torch.stack([hidden_D[index] for index in range(len(texts))])

    def _read(
        self,
        documents: list[Features],
        prefix: Prefix | None,
        hidden_D: dict[int, Tensor],
        recorded: dict[int, list[dict[int, tuple[Tensor, Tensor]]]],
    ) -> None:
        record = Prefix(0)
        first_position = prefix.num_tokens if prefix else 0
        batch = pack(documents, first_position=first_position, device=self._backbone.device)
        hidden_TD = self._backbone.hidden_states(batch, prefix=prefix, record=record)
        ends = (batch.last_N + 1).tolist()
        for each, start, end in zip(batch.features, batch.first_N.tolist(), ends, strict=True):
            hidden_D[each.example_index] = hidden_TD[end - 1]
            before = [_layers(prefix, 0, prefix.num_tokens)] if prefix else []
            recorded[each.example_index] = [*before, _layers(record, start, end)]

    def _shared(self) -> Prefix:
        if self._prefix is None:
            self._prefix = read_prefix(self._backbone, self._prefix_ids)
        return self._prefix

    def step(self, token_ids: Sequence[int]) -> Tensor:
        """Read one more token of every text; its hidden states, (N, D)."""
        token_ids_1N = torch.tensor([list(token_ids)], device=self._backbone.device)
        with self._adapted(self._adapters, [1] * len(token_ids)):
            return self._backbone.next_states(token_ids_1N, self._cache)

    def _adapted(self, adapters: Adapters, num_rows: list[int]) -> AbstractContextManager[None]:
        return nullcontext() if self._many is None else self._many.apply(adapters, num_rows)

    def rearrange(self, wanted: Sequence[int]) -> list[int]:
        """Keep the texts of the wanted slots, some perhaps twice; gives each one's new slot."""
        placed = self._cache.rearrange(wanted)
        by_slot = dict(zip(placed, wanted, strict=True))
        self._adapters = [self._adapters[by_slot[slot]] for slot in range(len(wanted))]
        return placed


def _layers(record: Prefix, start: int, end: int) -> dict[int, tuple[Tensor, Tensor]]:
    return {
        layer: (key_GTD[:, start:end], record.values[layer][:, start:end])
        for layer, key_GTD in record.keys.items()
    }


class SingleDecoder:
    """One text after another, by the model's own attention and cache."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._caches: list[DynamicCache] = []

    def add(self, texts: Sequence[TokenIds], adapters: Adapters = ()) -> Tensor:
        """Read whole texts, which take the next slots; the hidden states of their last tokens, (N, D)."""
        self._caches += [DynamicCache(config=self._backbone.core.config) for _ in texts]
        caches = self._caches[len(self._caches) - len(texts) :]
        return torch.stack([self._read(*each) for each in zip(texts, caches, strict=True)])

    def step(self, token_ids: Sequence[int]) -> Tensor:
        """Read one more token of every text; its hidden states, (N, D)."""
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
