"""Keys and values of running texts: one slot a text, all slots of a layer in one table.

The flat row of a decoding step holds one new token of every text. Attention writes the token's key and value into
the text's slot and looks at the filled part of it. Texts fill the slots from 0 on without holes, so that a step
reads a view of the table and copies nothing.

Shapes: N texts, S slots, H query heads, G key heads, R = H / G, L tokens of the longest text, T tokens of one text,
C places of a slot, D width of a head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from lushan.backbones import native

_PLACES_STEP = 64
_GROWTH = 1.5


class SlotCache:
    """The keys and values of all layers, and how far each slot is filled."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.lengths: list[int] = []
        """Tokens in each slot; a step counts its new token as soon as it begins."""
        self._device = device
        self._tables: dict[int, tuple[Tensor, Tensor]] = {}
        self._num_slots = 0
        self._num_places = 0
        self._positions_N = torch.empty(0, dtype=torch.long)
        self._slots_N = torch.empty(0, dtype=torch.long)
        self._masks: dict[int | None, Tensor | None] = {}

    @property
    def num_bytes(self) -> int:
        """Memory that the tables hold."""
        return sum(table.nbytes for pair in self._tables.values() for table in pair)

    @property
    def num_tokens(self) -> int:
        """Tokens that the tables have places for."""
        return self._num_slots * self._num_places

    @property
    def positions(self) -> Tensor:
        """Of the new token of every text in this step; (N,)."""
        return self._positions_N

    def tables(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, (S, G, C, D) each; a step may put them elsewhere."""
        return self._tables[layer]

    def layers_of(self, slot: int) -> dict[int, tuple[Tensor, Tensor]]:
        """Give a view of one text: layer to keys and values, each (G, T, D)."""
        end = self.lengths[slot]
        return {
            layer: (keys_SGCD[slot, :, :end], values_SGCD[slot, :, :end])
            for layer, (keys_SGCD, values_SGCD) in self._tables.items()
        }

    def add(self, layers: dict[int, tuple[Tensor, Tensor]]) -> int:
        """Append one text; gives its slot.

        Args:
            layers: Layer to keys and values, each (G, T, D).
        """
        slot, length = len(self.lengths), next(iter(layers.values()))[0].shape[1]
        self.lengths.append(length)
        self._reserve(layers)
        for layer, pair in layers.items():
            for table_SGCD, new_GTD in zip(self._tables[layer], pair, strict=True):
                table_SGCD[slot, :, :length] = new_GTD
        return slot

    def _reserve(self, like: dict[int, tuple[Tensor, Tensor]] | None = None) -> None:
        """Make the tables as large as `lengths` asks."""
        slots, places = len(self.lengths), max(self.lengths, default=0)
        if slots <= self._num_slots and places <= self._num_places:
            return
        # What is made anew is not as large in both ways as it once was in each.
        num_slots = min(self._num_slots, int(slots * _GROWTH))
        num_places = min(self._num_places, int(places * _GROWTH))
        if slots > self._num_slots:
            num_slots = int(self._num_slots * _GROWTH)
        if places > self._num_places:
            num_places = int(self._num_places * _GROWTH)
        self._num_slots = max(slots, num_slots)
        self._num_places = -(-max(places, num_places) // _PLACES_STEP) * _PLACES_STEP
        for layer, pair in (like or self._tables).items():
            old = self._tables.get(layer)
            key, value = (self._larger(pair[n], old and old[n]) for n in (0, 1))
            self._tables[layer] = key, value

    def _larger(self, like: Tensor, old_SGCD: Tensor | None) -> Tensor:
        heads, width = like.shape[-3], like.shape[-1]
        table_SGCD = like.new_zeros(self._num_slots, heads, self._num_places, width)
        if old_SGCD is not None:
            slots, places = (
                min(pair) for pair in zip(table_SGCD.shape[::2], old_SGCD.shape[::2], strict=True)
            )
            table_SGCD[:slots, :, :places] = old_SGCD[:slots, :, :places]
        return table_SGCD

    def rearrange(self, wanted: Sequence[int]) -> list[int]:
        """Keep the texts of the slots `wanted`, copy those that stand there twice, forget the others.

        Returns:
            Where each of `wanted` is now; texts that can stay do.
        """
        placed = place(wanted)
        moves = [(old, new) for old, new in zip(wanted, placed, strict=True) if old != new]
        by_slot = dict(zip(placed, wanted, strict=True))
        self.lengths = [self.lengths[by_slot[slot]] for slot in range(len(wanted))]
        self._reserve()
        if moves:
            olds, news = (
                torch.tensor(each, device=self._device) for each in zip(*moves, strict=True)
            )
            longest = max(self.lengths)
            for pair in self._tables.values():
                for table_SGCD in pair:
                    table_SGCD[news, :, :longest] = table_SGCD[olds, :, :longest]
        return placed

    def begin_step(self) -> Tensor:
        """Make room for one more token in every slot; gives the new tokens' positions, (1, N)."""
        positions = list(self.lengths)
        self.lengths = [length + 1 for length in self.lengths]
        self._reserve()
        self._positions_N = torch.tensor(positions, device=self._device)
        self._slots_N = torch.arange(len(positions), device=self._device)
        self._masks = {}
        return self._positions_N[None]

    def attend(
        self,
        layer: int,
        rows: tuple[Tensor, Tensor, Tensor],
        *,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        """Let the new token of every text look at its text.

        Args:
            layer: Number of the layer.
            rows: Queries (1, H, N, D), keys and values (1, G, N, D) of the new tokens.
            scaling: Factor of the scores.
            window: How many tokens a query sees, itself included; None for all.

        Returns:
            (1, N, H, D).
        """
        keys_SGCD, values_SGCD = self._tables[layer]
        if native.can_attend(rows[0]):
            own = (rows[0][0], rows[1][0], rows[2][0])
            return native.attend(
                own, (keys_SGCD, values_SGCD), self._positions_N, scaling=scaling, window=window
            )[None]
        query_NHD, key_NGD, value_NGD = (each[0].transpose(0, 1) for each in rows)
        keys_SGCD[self._slots_N, :, self._positions_N] = key_NGD
        values_SGCD[self._slots_N, :, self._positions_N] = value_NGD
        num_texts, heads, width = query_NHD.shape
        longest = max(self.lengths)
        keys_NGLD = keys_SGCD[:num_texts, :, :longest]
        values_NGLD = values_SGCD[:num_texts, :, :longest]
        # Query heads that share a key head stand as queries of one text, so that keys are never copied.
        query_NGRD = query_NHD.reshape(num_texts, keys_NGLD.shape[1], -1, width)
        mask_NL = self._mask(window, longest, query_NHD.dtype)
        attended_NGRD = functional.scaled_dot_product_attention(
            query_NGRD,
            keys_NGLD,
            values_NGLD,
            attn_mask=None if mask_NL is None else mask_NL[:, None, None],
            scale=scaling,
        )
        return attended_NGRD.reshape(1, num_texts, heads, -1)

    def _mask(self, window: int | None, longest: int, dtype: torch.dtype) -> Tensor | None:
        """What is added to the scores: 0 where a text may look, -inf beyond its end and its window; (N, L)."""
        if window not in self._masks:
            distance_NL = self._positions_N[:, None] - torch.arange(longest, device=self._device)
            allowed_NL = distance_NL >= 0
            if window is not None:
                allowed_NL &= distance_NL < window
            none_NL = torch.zeros(allowed_NL.shape, dtype=dtype, device=self._device)
            self._masks[window] = (
                None if bool(allowed_NL.all()) else none_NL.masked_fill_(~allowed_NL, -torch.inf)
            )
        return self._masks[window]


def place(wanted: Sequence[int]) -> list[int]:
    """Give each wanted slot a place below their number, its own wherever that is possible."""
    places = [-1] * len(wanted)
    taken: set[int] = set()
    for index, slot in enumerate(wanted):
        if slot < len(wanted) and slot not in taken:
            places[index] = slot
            taken.add(slot)
    free = iter([slot for slot in range(len(wanted)) if slot not in taken])
    return [next(free) if each < 0 else each for each in places]
