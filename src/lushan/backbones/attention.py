"""Attention for packed documents: many documents on one token axis, none of which sees another.

A batch is a flat row of tokens, documents one behind the other, sorted by length. Everything but attention works on
that flat row, so no padding is ever computed there. Attention takes the documents in groups of similar length, gathers
each group into a table as long as its longest document, multiplies, and puts the rows back.

The function enters `transformers` through its attention interface, so every architecture that uses the interface gets
it without model code of ours. Window and causality are taken from the module and its arguments, never from the
architecture's name.

Shapes: T tokens of all documents, N documents of a group, L longest of them, P tokens of a shared
prefix, K = P + L keys, H query heads, G key heads, R = H / G, D width of a head, F = heads * D.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from lushan.backbones import flash_documents, short_attention
from lushan.backbones.attention_products import (
    Block,
    Plan,
    attend,
    gather,
    scatter,
)
from lushan.backbones.native_training import Looks
from lushan.backbones.packing import Group, Packing, Prefix
from lushan.backbones.slot_cache import SlotCache

ATTENTION_NAME = "lushan_packed"

FLASH_FROM_TOKENS = 512
"""Shorter documents are attended to by plain products, which keep a table of scores. On CPUs the flash kernel is hardly ever
faster there; in bf16 it is at any length where the keys that a query does not see can be left out, so that longer causal
documents make their tables again in the backward pass."""
_BLOCK_TOKENS, _LONG_BLOCK_TOKENS = 64, 128
"""Queries that are taken together; the second from `_LONG_FROM_TOKENS` on."""
_LONG_FROM_TOKENS = 1024
_FEW_BLOCKS = 3
"""Documents of fewer blocks are attended to in one."""
_UNKNOWN_OPTIONS = ("softcap", "s_aux", "position_bias")
"""What some architectures add to their attention and this one does not."""


def packed_attention(  # noqa: PLR0917 - the signature is that of transformers' interface
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - the mask follows from the packing
    **options: Any,  # noqa: ANN401
) -> tuple[Tensor, None]:
    """Attend inside each document.

    Args:
        module: The calling attention layer; tells its number and whether it is causal.
        query: (1, H, T, D).
        key: (1, G, T, D).
        value: (1, G, T, D).
        attention_mask: Not used.
        options: `packing` (required: where documents are, or the cache of texts that go on), `scaling`, `dropout`,
            `sliding_window`, `is_causal`.

    Returns:
        (1, T, H, D), and no weights.

    Raises:
        ValueError: If the architecture's attention does more than this one knows.
    """
    if extra := [name for name in _UNKNOWN_OPTIONS if options.get(name) is not None]:
        raise ValueError(f"Packed attention does not know `{extra[0]}`.")
    packing: Packing | SlotCache = options["packing"]
    is_causal = options.get("is_causal")
    causal = is_causal_layer(module) if is_causal is None else bool(is_causal)
    layer = getattr(module, "layer_idx", None)
    heads, tokens, width = query.shape[1:]
    scaling = options.get("scaling") or width**-0.5
    window = options.get("sliding_window")
    if isinstance(packing, SlotCache):
        rows = query, key, value
        return packing.attend(layer, rows, scaling=scaling, window=window), None  # pyright: ignore[reportArgumentType]
    if packing.record is not None:
        packing.record.keys[layer] = key[0].detach()  # pyright: ignore[reportArgumentType]
        packing.record.values[layer] = value[0].detach()  # pyright: ignore[reportArgumentType]

    flat = [each.squeeze(0).transpose(0, 1).reshape(tokens, -1) for each in (query, key, value)]
    dropout = options.get("dropout") or 0.0
    joins = not dropout and (
        short_attention.can_attend(flat[0], width, longest=0)
        or flash_documents.can_attend(flat[0], width)
    )
    groups = packing.joined if joins else packing.groups
    sizes = [group.end - group.start for group in groups]
    outputs = [
        _attend_in(
            group,
            _Heads(query_TF, key_TF, value_TF, width),
            prefix=None if group.prefix is None else _of_layer(group.prefix, layer),
            causal=causal,
            window=window,
            scaling=scaling,
            dropout=dropout,
        )
        for group, query_TF, key_TF, value_TF in zip(
            groups, *(_split(each, sizes) for each in flat), strict=True
        )
    ]
    attended_TF = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return attended_TF.reshape(1, tokens, heads, width), None


def _split(flat_TF: Tensor, sizes: list[int]) -> Sequence[Tensor]:
    """Cut rows; those of one piece are not copied on the way back."""
    return [flat_TF] if sizes == [len(flat_TF)] else flat_TF.split(sizes)


def is_causal_layer(module: nn.Module) -> bool:
    """Whether an attention layer lets a token see those before it alone."""
    return bool(getattr(module, "is_causal", True))


class _Heads(NamedTuple):
    """What attends in a group."""

    query_TF: Tensor
    key_TF: Tensor
    value_TF: Tensor
    width: int


def _of_layer(prefix: Prefix, layer: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    return prefix.keys[layer], prefix.values[layer]


def _attend_by_kernel(heads: _Heads, looks: Looks, longest: int) -> Tensor | None:
    """Attend by one call for documents of all lengths, where there is one; (T, F)."""
    if short_attention.can_attend(heads.query_TF, heads.width, longest):
        return short_attention.attend(heads[:3], looks)
    if flash_documents.can_attend(heads.query_TF, heads.width):
        return flash_documents.attend(heads[:3], looks)
    return None


def _attend_in(
    group: Group,
    heads: _Heads,
    *,
    prefix: tuple[Tensor, Tensor] | None,
    causal: bool,
    window: int | None,
    scaling: float,
    dropout: float,
) -> Tensor:
    """Attend inside the documents of one group; (T, F)."""
    width, num_documents = heads.width, len(group.lengths)
    num_tokens, num_query_features = heads.query_TF.shape
    device = heads.query_TF.device
    num_heads, num_key_heads = num_query_features // width, heads.key_TF.shape[1] // width
    takes_blocks = causal and not group.branches
    is_simple = prefix is None and not group.branches and not dropout
    looks = Looks(group.lengths_N, width, causal, window, scaling)
    if is_simple and (attended_TF := _attend_by_kernel(heads, looks, group.longest)) is not None:
        return attended_TF
    keys = group.rows_of(num_key_heads, device)
    if prefix is None and (
        group.longest < FLASH_FROM_TOKENS
        or (takes_blocks and not dropout and device.type == "cpu" and _is_half(heads.query_TF))
    ):
        plan = Plan(
            group.rows_of(num_heads, device, num_together=num_heads // num_key_heads),
            keys,
            num_documents,
            num_documents * num_key_heads,
            width,
            blocks=_blocks(group, causal=causal, window=window, like=heads.query_TF),
            keeps=group.longest < FLASH_FROM_TOKENS,
        )
        return attend(heads[:3], plan, scaling=scaling, dropout=dropout)
    queries = group.rows_of(num_heads, device)
    query_NHLD, key_NGKD, value_NGKD = (
        gather(flat_TF, rows, width).view(num_documents, -1, group.longest, width)
        for flat_TF, rows in zip(heads[:3], (queries, keys, keys), strict=True)
    )
    if prefix is not None:
        key_NGKD, value_NGKD = (
            _with_prefix(before, own)
            for before, own in zip(prefix, (key_NGKD, value_NGKD), strict=True)
        )
    # Padding stands behind its document, where no causal query looks.
    is_plain = takes_blocks and prefix is None and window is None
    mask_NLK = None
    if not is_plain:
        mask_NLK = _mask(group, causal=causal, window=window, like=query_NHLD)
    if prefix is not None:
        attended_NHLD = _attend_by_products(
            (query_NHLD, key_NGKD, value_NGKD), mask_NLK, scaling=scaling
        )
        return scatter(attended_NHLD, queries, num_tokens)
    attended_NHLD = functional.scaled_dot_product_attention(
        query_NHLD,
        key_NGKD,
        value_NGKD,
        attn_mask=None if mask_NLK is None else mask_NLK[:, None],
        dropout_p=dropout,
        is_causal=is_plain,
        scale=scaling,
        enable_gqa=num_heads > num_key_heads,
    )
    return scatter(attended_NHLD, queries, num_tokens)


def _attend_by_products(
    tables: tuple[Tensor, Tensor, Tensor], mask_NLK: Tensor | None, *, scaling: float
) -> Tensor:
    """Attend with plain products, some queries at a time: on CPUs faster than the flash kernel; (N, H, L, D)."""
    query_NHLD, key_NGKD, value_NGKD = tables
    num_documents, num_heads, longest, width = query_NHLD.shape
    query_NGRLD = query_NHLD.view(num_documents, key_NGKD.shape[1], -1, longest, width) * scaling
    key_NGDK = key_NGKD.transpose(2, 3)
    parts: list[Tensor] = []
    for query_NGRSD in query_NGRLD.split(_LONG_BLOCK_TOKENS, dim=3):
        rows_NGSD = query_NGRSD.flatten(2, 3)
        scores_NGRSK = (rows_NGSD @ key_NGDK).view(*query_NGRSD.shape[:4], -1)
        if mask_NLK is not None:
            start = sum(each.shape[3] for each in parts)
            end = start + query_NGRSD.shape[3]
            scores_NGRSK += mask_NLK[:, None, None, start:end]
        weights_NGSK = scores_NGRSK.softmax(dim=-1).flatten(2, 3)
        parts.append((weights_NGSK @ value_NGKD).view_as(query_NGRSD))
    return torch.cat(parts, dim=3).view(num_documents, num_heads, longest, width)


def _is_half(tensor: Tensor) -> bool:
    return tensor.element_size() == torch.bfloat16.itemsize


def _blocks(group: Group, *, causal: bool, window: int | None, like: Tensor) -> tuple[Block, ...]:
    """How the queries of a group are taken: in blocks where that leaves out keys, else all at once."""
    place = (causal, window)
    if place not in group.blocks:
        group.blocks[place] = _build_blocks(group, causal=causal, window=window, like=like)
    return group.blocks[place]


def _build_blocks(
    group: Group, *, causal: bool, window: int | None, like: Tensor
) -> tuple[Block, ...]:
    longest = group.longest
    size = _BLOCK_TOKENS if longest < _LONG_FROM_TOKENS else _LONG_BLOCK_TOKENS
    if not causal or group.branches or longest < _FEW_BLOCKS * size:
        mask_NLK = _mask(group, causal=causal, window=window, like=like)
        return (Block(0, longest, 0, longest, mask_NLK),)
    triangle_1SS = _added_where_allowed(torch.ones(1, size, size, dtype=torch.bool).tril(), like)
    blocks: list[Block] = []
    for start in range(0, longest, size):
        end = min(start + size, longest)
        first_key, mask_1SK = 0, triangle_1SS[:, : end - start, : end - start]
        if window is not None:
            first_key = max(0, start - window + 1)
            keys_K = torch.arange(first_key, end)
            distance_SK = torch.arange(start, end)[:, None] - keys_K
            allowed_SK = (distance_SK >= 0) & (distance_SK < window)
            mask_1SK = _added_where_allowed(allowed_SK[None], like)
        blocks.append(Block(start, end, first_key, end, mask_1SK))
    return tuple(blocks)


def _added_where_allowed(allowed_NLK: Tensor, like: Tensor) -> Tensor:
    """What is added to the scores: 0 where a query may look, else the lowest finite number.

    A padding query may be left without any key, and its softmax must stay finite.
    """
    added_NLK = torch.zeros_like(allowed_NLK, dtype=like.dtype, device=like.device)
    return added_NLK.masked_fill_(~allowed_NLK.to(like.device), torch.finfo(like.dtype).min)


def _with_prefix(prefix_GPD: Tensor, own_NGLD: Tensor) -> Tensor:
    return torch.cat([prefix_GPD.expand(own_NGLD.shape[0], -1, -1, -1), own_NGLD], dim=2)


def _mask(group: Group, *, causal: bool, window: int | None, like: Tensor) -> Tensor | None:
    """What is added to the scores, (1 or N, L, K); None where every query sees every key."""
    place = (causal, window)
    if place not in group.masks:
        group.masks[place] = _build_mask(group, causal=causal, window=window, like=like)
    return group.masks[place]


def _build_mask(group: Group, *, causal: bool, window: int | None, like: Tensor) -> Tensor | None:
    longest, num_prefix_tokens = group.longest, group.num_prefix_tokens
    keys_K = torch.arange(num_prefix_tokens + longest, device=like.device)
    distance_LK = keys_K[num_prefix_tokens:, None] - keys_K
    allowed_NLK = (distance_LK >= 0 if causal else torch.ones_like(distance_LK, dtype=torch.bool))[
        None
    ]
    distance_NLK = distance_LK[None]
    if group.branches:
        seen_NLK, distance_NLK = _inside_branches(group, device=like.device)
        allowed_NLK = allowed_NLK & seen_NLK
    if window is not None:
        allowed_NLK = allowed_NLK & (distance_NLK.abs() < window)
    if not causal and group.lengths[0] < group.longest:
        # A causal query never reaches the padding, which stands behind its document.
        ends_N = torch.tensor(group.lengths, device=like.device) + num_prefix_tokens
        allowed_NLK = allowed_NLK & (keys_K < ends_N[:, None])[:, None, :]
    if bool(allowed_NLK.all()):
        return None
    return _added_where_allowed(allowed_NLK, like)


def _inside_branches(group: Group, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which keys a query's branch sees, and how many tokens before it they are; (N, L, K) each."""
    num_prefix_tokens = group.num_prefix_tokens
    branch_NK, position_NK = (
        torch.stack(each).to(device)
        for each in zip(
            *(
                branches_and_positions(num_prefix_tokens + group.longest, starts, num_prefix_tokens)
                for starts in group.branches
            ),
            strict=True,
        )
    )
    own_NL1 = branch_NK[:, num_prefix_tokens:, None]
    seen_NLK = (branch_NK[:, None] == 0) | (branch_NK[:, None] == own_NL1)
    return seen_NLK, position_NK[:, num_prefix_tokens:, None] - position_NK[:, None]


def branches_and_positions(
    num_tokens: int, starts: Sequence[int], num_before: int = 0
) -> tuple[Tensor, Tensor]:
    """Number of each token's branch (0 for the start that all continue), and its place in what it continues; (T,) each.

    Args:
        num_tokens: T.
        starts: First token of each branch.
        num_before: Tokens of the T that stand before the one that is counted as 0 in `starts`.
    """
    branch_T, position_T = torch.zeros(num_tokens, dtype=torch.long), torch.arange(num_tokens)
    for number, start in enumerate(starts, start=1):
        first = num_before + start
        branch_T[first:] = number
        position_T[first:] = torch.arange(num_tokens - first) + num_before + starts[0]
    return branch_T, position_T


def block_mask(
    lengths: Sequence[int],
    *,
    branches: Sequence[tuple[int, ...]] = (),
    dtype: torch.dtype,
    causal: bool,
) -> Tensor:
    """The same as an explicit mask, for models that only take one; (1, 1, T, T), additive."""
    documents_T = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    allowed_TT = documents_T[:, None] == documents_T
    if any(branches):
        parts = zip(lengths, branches, strict=True)
        branch_T = torch.cat([branches_and_positions(*part)[0] for part in parts])
        allowed_TT &= (branch_T == 0) | (branch_T[:, None] == branch_T)
    if causal:
        allowed_TT = allowed_TT.tril()
    lowest = torch.finfo(dtype).min
    return torch.zeros(allowed_TT.shape, dtype=dtype).masked_fill_(~allowed_TT, lowest)[None, None]


def _no_mask(*_: object, **__: object) -> None:
    """Stand in for the masks that `transformers` would build."""


def register() -> None:
    """Make the attention known to `transformers` under `ATTENTION_NAME`."""
    attention: Callable[..., tuple[Tensor, None]] = packed_attention
    AttentionInterface.register(ATTENTION_NAME, attention)
    AttentionMaskInterface.register(ATTENTION_NAME, _no_mask)


def keep_out_of_compilation() -> None:
    """Have compiled layers call the attention as it is, until the next `register`."""
    AttentionInterface.register(ATTENTION_NAME, _uncompiled())


@cache
def _uncompiled() -> Any:  # noqa: ANN401 - of a library without types
    """One function for the whole process: code is made for the very function that it calls."""
    return torch.compiler.disable(packed_attention)
