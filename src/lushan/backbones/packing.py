"""Where the documents of a packed batch are: groups of similar length, which attend together.

Shapes: N documents, P tokens of a shared prefix, G key heads, D width of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lushan.backbones.attention_products import Block, HeadRows, head_rows
from lushan.backbones.short_attention import SHORT_TOKENS

_GROUP_GROWTH = 1.5
_GROUP_SLACK_TOKENS = 16


@dataclass(slots=True)
class Prefix:
    """Keys and values of what documents continue, computed once; by layer."""

    num_tokens: int
    keys: dict[int, Tensor] = field(default_factory=dict)
    """Layer to (G, P, D)."""
    values: dict[int, Tensor] = field(default_factory=dict)
    """Layer to (G, P, D)."""


@dataclass(slots=True)
class Group:
    """Documents of similar length that continue the same: tokens [start, end) of the flat row."""

    start: int
    end: int
    lengths: list[int]
    branches: list[tuple[int, ...]] = field(default_factory=list)
    """First token of each branch of each document; empty where no document has any."""
    prefix: Prefix | None = None
    """What all of them continue."""
    masks: dict[tuple[bool, int | None], Tensor | None] = field(default_factory=dict)
    """Masks by causality and window, made once and used by every layer."""
    blocks: dict[tuple[bool, int | None], tuple[Block, ...]] = field(default_factory=dict)
    """How queries are taken, likewise."""
    rows: dict[tuple[int, int], HeadRows] = field(default_factory=dict)
    """How heads are gathered, by their number and how many stand together; made once and used by every layer."""
    lengths_N: Tensor = field(init=False)
    """The same as `lengths`."""
    longest: int = field(init=False)
    """Tokens of the longest document."""

    def __post_init__(self) -> None:
        self.lengths_N = torch.tensor(self.lengths)
        self.longest = max(self.lengths)

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens of what they continue."""
        return self.prefix.num_tokens if self.prefix else 0

    def rows_of(self, num_heads: int, device: torch.device, *, num_together: int = 1) -> HeadRows:
        """How so many heads are gathered."""
        place = num_heads, num_together
        if place not in self.rows:
            self.rows[place] = head_rows(self.lengths, num_heads, device, num_together=num_together)
        return self.rows[place]


@dataclass(slots=True)
class Packing:
    """Where the documents of a batch are, and what they continue."""

    groups: list[Group]
    record: Prefix | None = None
    """Filled with the keys and values of this pass, to be the prefix of later ones."""
    joined: list[Group] = field(init=False)
    """The same, with neighbours in one that attend alike whatever their lengths: short ones that continue nothing."""

    def __post_init__(self) -> None:
        self.joined = []
        for group in self.groups:
            if not (self.joined and _is_short(group) and _is_short(self.joined[-1])):
                self.joined.append(group)
                continue
            before = self.joined[-1]
            self.joined[-1] = Group(before.start, group.end, before.lengths + group.lengths)

    @property
    def all_short(self) -> Group | None:
        """All documents in one group, if they are short, continue nothing, and nothing is noted of them."""
        is_one = len(self.joined) == 1 and _is_short(self.joined[0]) and self.record is None
        return self.joined[0] if is_one else None


def _is_short(group: Group) -> bool:
    return group.longest <= SHORT_TOKENS and group.prefix is None and not group.branches


def plan_packing(
    lengths: Sequence[int],
    *,
    branches: Sequence[tuple[int, ...]] = (),
    prefixes: Sequence[Prefix | None] = (),
    num_spare: int = 0,
) -> Packing:
    """Group documents of similar length that continue the same.

    Args:
        lengths: Tokens of each document, in the order of the flat row; ascending where neighbours continue the same.
        branches: First token of each branch of each document: branches see the document's start and themselves.
        prefixes: What each document continues; nothing says that none continues anything.
        num_spare: Tokens behind the last document that belong to none.
    """
    continued = prefixes or [None] * len(lengths)
    groups: list[Group] = []
    start = 0
    position = 0
    while position < len(lengths):
        limit = lengths[position] * _GROUP_GROWTH + _GROUP_SLACK_TOKENS
        stop = position
        while (
            stop < len(lengths)
            and lengths[stop] <= limit
            and continued[stop] is continued[position]
        ):
            stop += 1
        members = list(lengths[position:stop])
        end = start + sum(members)
        parts = list(branches[position:stop])
        if not any(parts):
            parts = []
        groups.append(Group(start, end, members, parts, continued[position]))
        start, position = end, stop
    if num_spare:
        groups.append(Group(start, start + num_spare, [num_spare]))
    return Packing(groups)
