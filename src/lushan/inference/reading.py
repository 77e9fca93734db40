"""Prompts that are being read: a bounded number of tokens at a time, and nothing that is known already.

A step reads the texts in one pass, each as the continuation of what is known of it. So a long prompt stands between two
tokens of running answers for no longer than a short one.

Shapes: D width, T tokens.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from lushan.backbones.load import Backbone
from lushan.backbones.many_adapters import Adapter, ManyAdapters
from lushan.backbones.packing import Prefix
from lushan.data.batching import pack
from lushan.inference.prefix_store import (
    SHORTEST_PREFIX_TOKENS,
    PrefixStore,
    TokenIds,
    join,
    num_equal,
    part_of,
)
from lushan.records import Features

_PASS_TOKENS = 64
"""What is read while one more pass would fetch the weights; fewer are not worth waiting for another text."""
_APART_TOKENS = 32
"""Fewer are read again, where texts can then continue one and the same start together."""


@dataclass(slots=True, eq=False)
class Reading:
    """A text, and how far it is read."""

    number: int
    """By which the one who asked knows it."""
    token_ids: TokenIds
    adapter: Adapter | None
    num_read: int = 0
    """Tokens of which keys and values are known."""
    num_reused: int = 0
    """Those of them that were known before."""
    is_begun: bool = False

    @property
    def num_left(self) -> int:
        """Tokens that are still to be read."""
        return len(self.token_ids) - self.num_read


class Read(NamedTuple):
    """A text that is read to its end."""

    number: int
    num_reused: int
    """Tokens that were known before."""
    hidden_D: Tensor
    """Of its last token."""


def next_parts(readings: Sequence[Reading], max_tokens: int) -> dict[Reading, int]:
    """Choose what is read next, and how many tokens of it.

    The oldest text gets half of the tokens at least, so that it is finished some day; the others go by what is left of
    them, so that a short one does not wait for a long one.
    """
    if not readings:
        return {}
    oldest, *others = readings
    own = min(oldest.num_left, -(-max_tokens // 2))
    room = max_tokens - own
    parts: dict[Reading, int] = {}
    for each in sorted(others, key=lambda each: each.num_left):
        size = min(each.num_left, room)
        room -= size
        if size:
            parts[each] = size
    return {oldest: own + min(oldest.num_left - own, room), **parts}


class PromptReader:
    """Reads texts by packed attention."""

    def __init__(
        self, backbone: Backbone, *, prefixes: PrefixStore | None, many: ManyAdapters | None
    ) -> None:
        """Make a reader without texts.

        Args:
            backbone: A decoder in `packed` mode.
            prefixes: What is known, and takes up what is read; None reads every text from its start.
            many: What adapts its layers, where texts have adapters.
        """
        self._backbone = backbone
        self._prefixes = prefixes
        self._many = many
        self._readings: dict[Reading, Prefix | None] = {}
        """In the order in which they came, with keys and values of what is read."""

    def add(self, reading: Reading) -> None:
        """Take a text."""
        self._readings[reading] = None

    def drop(self, number: int) -> None:
        """Forget a text."""
        self._readings = {
            each: past for each, past in self._readings.items() if each.number != number
        }

    def read(self, max_tokens: int) -> list[tuple[Reading, Prefix, Tensor]]:
        """Read so many tokens at most.

        Returns:
            The texts that are whole now, with their keys and values and the hidden state of the last token, (D,).
        """
        whole: list[tuple[Reading, Prefix, Tensor]] = []
        while max_tokens > 0 and self._readings:
            self._begin()
            parts = next_parts([each for each in self._readings if each.is_begun], max_tokens)
            max_tokens -= sum(parts.values())
            whole += self._pass(parts)
        return whole

    def adapted(
        self, adapters: Sequence[Adapter | None], num_rows: Sequence[int]
    ) -> AbstractContextManager[None]:
        """While this lasts, each text's rows pass with its adapter."""
        return nullcontext() if self._many is None else self._many.apply(adapters, num_rows)

    def _begin(self) -> None:
        """Look up what new texts start with."""
        new = [each for each in self._readings if not each.is_begun]
        store = self._prefixes
        if store is None or not new:
            for each in new:
                each.is_begun = True
            return
        waiting = self._followers(store)
        known = {each: store.num_known(each.token_ids[:-1], each.adapter) for each in new}
        found: list[tuple[Reading, Prefix]] = []
        for each in sorted(known, key=lambda each: known[each]):
            if each in waiting:
                continue
            past = next((past for like, past in found if _goes_on(each, like, past, known)), None)
            if past is None:
                past = store.find(each.token_ids[:-1], each.adapter)
            self._readings[each] = past
            each.is_begun = True
            if past is not None:
                found.append((each, past))
                each.num_read = each.num_reused = past.num_tokens

    def _followers(self, store: PrefixStore) -> set[Reading]:
        """Texts that wait until one that starts alike is read so far."""
        followers: set[Reading] = set()
        alike: list[Reading] = []
        saved, leader = 0, None
        ordered = sorted(self._readings, key=lambda each: (id(each.adapter), each.token_ids))
        for each in ordered:
            gain = 0
            if leader is not None and each.adapter is leader.adapter and not each.is_begun:
                start = each.token_ids[:-1]
                gain = num_equal(leader.token_ids, start)
                gain -= store.num_known(start, each.adapter)
            if gain < SHORTEST_PREFIX_TOKENS:
                saved, leader, alike = 0, each, []
                continue
            saved += gain
            alike.append(each)
            if saved >= _PASS_TOKENS:
                followers.update(alike)
        return followers

    def _pass(self, parts: dict[Reading, int]) -> list[tuple[Reading, Prefix, Tensor]]:
        readings, record = list(parts), Prefix(0)
        documents = [
            Features(each.token_ids[each.num_read : each.num_read + size], "", place)
            for place, (each, size) in enumerate(parts.items())
        ]
        firsts = [each.num_read for each in readings]
        batch = pack(documents, first_position=firsts, device=self._backbone.device)
        ordered = [readings[each.example_index] for each in batch.features]
        with self.adapted(
            [each.adapter for each in ordered], [len(each.token_ids) for each in batch.features]
        ):
            hidden_TD = self._backbone.hidden_states(
                batch, prefix=[self._readings[each] for each in ordered], record=record
            )
        last: dict[Reading, Tensor] = {}
        ends = (batch.last_N + 1).tolist()
        for each, start, end in zip(ordered, batch.first_N.tolist(), ends, strict=True):
            self._take_up(each, part_of(record, start, end))
            last[each] = hidden_TD[end - 1]
        whole = [each for each in self._readings if each.num_left == 0]
        return [(each, self._readings.pop(each) or Prefix(0), last[each]) for each in whole]

    def _take_up(self, reading: Reading, computed: Prefix) -> None:
        """Note what was computed for the next tokens of a text."""
        past = self._readings[reading]
        past = computed if past is None else join([past, computed])
        self._readings[reading] = past
        reading.num_read = past.num_tokens
        if self._prefixes is not None:
            start = reading.token_ids[: reading.num_read]
            self._prefixes.add(start, past, reading.adapter)


def _goes_on(reading: Reading, like: Reading, past: Prefix, known: Mapping[Reading, int]) -> bool:
    """Whether a text can continue what another does, with few tokens read again."""
    size = past.num_tokens
    return (
        reading.adapter is like.adapter
        and known[reading] - size < _APART_TOKENS
        and reading.token_ids[:size] == like.token_ids[:size]
    )
