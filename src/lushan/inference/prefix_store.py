"""Keys and values of texts that were read, by their tokens: what a new text begins with is not read again.

One radix tree for the base, one for each adapter: what adapters compute is never mixed. Where there is too much, the
ends of texts leave first that nobody has begun with for longest.

Source: Zheng et al. 2023 (SGLang), https://arxiv.org/abs/2312.07104, section 3; the idea, not the code.

Shapes: G key heads, P tokens, D width of a head.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lushan.backbones.load import Backbone
from lushan.backbones.many_adapters import Adapter
from lushan.backbones.packing import Prefix

TokenIds = tuple[int, ...]

SHORTEST_PREFIX_TOKENS = 8
"""A shorter start that texts share is not worth a pass, or tensors, of its own."""
_LONGEST_TEXTS = 4
"""Of a list whose texts are read one after another; the start that they share is always among what was used last."""


@dataclass(slots=True, eq=False)
class _Node:
    """Tokens that follow those of its parent, with their own keys and values."""

    token_ids: TokenIds
    computed: Prefix
    children: dict[int, "_Node"] = field(default_factory=dict)
    """By first token."""
    last_use: int = 0


class PrefixStore:
    """What was computed for the starts of texts, at most so many tokens of it."""

    def __init__(self, max_tokens: int) -> None:
        """Hold nothing yet.

        Args:
            max_tokens: Tokens whose keys and values are kept.
        """
        self._max_tokens = max_tokens
        self._base = _root()
        self._adapted: WeakKeyDictionary[Adapter, _Node] = WeakKeyDictionary()
        self._uses = itertools.count(1)

    @classmethod
    def for_texts(cls, texts: Sequence[Sequence[int]]) -> "PrefixStore":
        """Make one for a list of texts, which has room for what they share."""
        return cls(_LONGEST_TEXTS * max(map(len, texts), default=0))

    @property
    def num_tokens(self) -> int:
        """Tokens that are kept."""
        return sum(len(child.token_ids) for _, child in self._edges())

    def num_known(self, token_ids: TokenIds, adapter: Adapter | None) -> int:
        """How many tokens at the start of a text are known."""
        return sum(size for _, size in self._path(token_ids, adapter))

    def find(self, token_ids: TokenIds, adapter: Adapter | None) -> Prefix | None:
        """Give the longest known start of a text.

        Args:
            token_ids: The text, or as much of its start as is wanted.
            adapter: Which model reads it; None for the base itself.

        Returns:
            Keys and values, which must not be changed; None where too little is known to be of use.
        """
        path = self._path(token_ids, adapter)
        if sum(size for _, size in path) < SHORTEST_PREFIX_TOKENS:
            return None
        self._touch([node for node, _ in path])
        return join([part_of(node.computed, 0, size) for node, size in path])

    def add(self, token_ids: TokenIds, computed: Prefix, adapter: Adapter | None) -> None:
        """Keep a copy of what was computed for a text, as far as it is new and there is room.

        Args:
            token_ids: The text.
            computed: Its keys and values.
            adapter: Which model read it; None for the base itself.
        """
        token_ids = token_ids[: self._max_tokens]
        path = self._path(token_ids, adapter)
        known = sum(size for _, size in path)
        # A few tokens would cost more in small tensors than they save.
        if len(token_ids) - known >= SHORTEST_PREFIX_TOKENS:
            parent = self._end_of(path, adapter)
            new = _Node(token_ids[known:], _copied(computed, known, len(token_ids)))
            parent.children[token_ids[known]] = new
            path = [*path, (new, len(new.token_ids))]
        self._touch([node for node, _ in path])
        self._evict()

    def bound(self, max_tokens: int) -> None:
        """Keep so many tokens at most from now on."""
        if max_tokens != self._max_tokens:
            self._max_tokens = max_tokens
            self._evict()

    def _path(self, token_ids: TokenIds, adapter: Adapter | None) -> list[tuple[_Node, int]]:
        """Give the nodes that a text leads through, and how many tokens of each it has; all but of the last one."""
        node = self._base if adapter is None else self._adapted.get(adapter)
        path: list[tuple[_Node, int]] = []
        known = 0
        while node is not None and known < len(token_ids):
            node = node.children.get(token_ids[known])
            if node is not None:
                size = num_equal(node.token_ids, token_ids[known:])
                known += size
                path.append((node, size))
                if size < len(node.token_ids):
                    break
        return path

    def _end_of(self, path: list[tuple[_Node, int]], adapter: Adapter | None) -> _Node:
        """Give the node that ends where a path does, cutting its last one if it goes on."""
        if not path:
            return self._base if adapter is None else self._adapted.setdefault(adapter, _root())
        node, size = path[-1]
        if size < len(node.token_ids):
            rest = _Node(
                node.token_ids[size:],
                _copied(node.computed, size, len(node.token_ids)),
                node.children,
                node.last_use,
            )
            node.computed = _copied(node.computed, 0, size)
            node.token_ids, node.children = node.token_ids[:size], {rest.token_ids[0]: rest}
        return node

    def _touch(self, nodes: Sequence[_Node]) -> None:
        use = next(self._uses)
        for each in nodes:
            each.last_use = use

    def _edges(self) -> Iterator[tuple[_Node, _Node]]:
        """Give every node with its parent."""
        open_ones = [self._base, *self._adapted.values()]
        while open_ones:
            node = open_ones.pop()
            for child in node.children.values():
                yield node, child
                open_ones.append(child)

    def _evict(self) -> None:
        excess = self.num_tokens - self._max_tokens
        if excess <= 0:
            return
        parents = {child: parent for parent, child in self._edges()}
        leaves = [(each.last_use, id(each), each) for each in parents if not each.children]
        heapify(leaves)
        while excess > 0:
            leaf = heappop(leaves)[-1]
            parent = parents[leaf]
            del parent.children[leaf.token_ids[0]]
            excess -= len(leaf.token_ids)
            if not parent.children and parent in parents:
                heappush(leaves, (parent.last_use, id(parent), parent))


def bytes_of_token(backbone: Backbone, precision: str) -> int:
    """Memory of a token's keys and values in all layers; 0 where the configuration does not tell its heads.

    Args:
        backbone: Whose they are.
        precision: In which type of torch they are kept, such as `bfloat16`.
    """
    config = backbone.plain_model.config.get_text_config()
    num_heads = getattr(config, "num_attention_heads", 0)
    width = getattr(config, "head_dim", None) or config.hidden_size // max(num_heads, 1)
    num_pairs = getattr(config, "num_key_value_heads", None) or num_heads
    size = getattr(torch, precision).itemsize
    return 2 * config.num_hidden_layers * num_pairs * width * size


def _root() -> _Node:
    return _Node((), Prefix(0))


def num_equal(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens that two texts start with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))


def join(parts: Sequence[Prefix]) -> Prefix:
    """Put keys and values of consecutive parts of a text together; one alone is not copied."""
    if len(parts) == 1:
        return parts[0]
    keys, values = (
        {layer: torch.cat([each[layer] for each in sides], dim=1) for layer in sides[0]}
        for sides in ([each.keys for each in parts], [each.values for each in parts])
    )
    return Prefix(sum(each.num_tokens for each in parts), keys, values)


def part_of(computed: Prefix, start: int, end: int) -> Prefix:
    """Give a view of the tokens [start, end)."""
    if (start, end) == (0, computed.num_tokens):
        return computed
    keys, values = (
        {layer: each_GPD[:, start:end] for layer, each_GPD in side.items()}
        for side in (computed.keys, computed.values)
    )
    return Prefix(end - start, keys, values)


def _copied(computed: Prefix, start: int, end: int) -> Prefix:
    """Copy of the tokens [start, end), which holds no memory of the others."""
    part = part_of(computed, start, end)

    def copied(side: dict[int, Tensor]) -> dict[int, Tensor]:
        return {
            layer: each_GPD.clone(memory_format=torch.contiguous_format)
            for layer, each_GPD in side.items()
        }

    return Prefix(part.num_tokens, copied(part.keys), copied(part.values))
