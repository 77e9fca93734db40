"""Attention of a group of documents by batched products: from the flat row, and back to it.

Every head's rows are gathered once, straight into the layout that batched products want, and put back once; the
backward pass is written out, so that nothing is kept or copied but what it reads. Queries are taken in blocks, each with
the keys that it may see, so that of a long causal document about half is left out.

Shapes: T tokens of the group, N documents, L longest of them, H heads (queries' or keys'), G key heads, R = H / G, D width
of a head, F = H * D, B = N * G tables of heads that share a key head, S queries of one in a block, K keys of a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class HeadRows:
    """Where the rows of one head and token stand, in the flat row and in the table of a group."""

    to_table: Tensor
    """Flat row (T, H) of each row of the table (N, H, L); what is padded repeats its document's last token."""
    to_flat: Tensor
    """Row of the table of each flat row."""
    padding: Tensor | None
    """Rows of the table that stand for no token; None if all lengths are equal."""

    def gather(self, flat_TF: Tensor, width: int) -> Tensor:
        """(T, H * D) to (N * H * L, D)."""
        return flat_TF.reshape(-1, width).index_select(0, self.to_table)

    def gather_gradient(self, flat_TF: Tensor, width: int) -> Tensor:
        """The same, and zero where there is no token: nobody asked for what stands there."""
        table = self.gather(flat_TF, width)
        return table if self.padding is None else table.index_fill_(0, self.padding, 0)

    def scatter(self, table: Tensor, num_tokens: int) -> Tensor:
        """(..., D) of a table back to (T, H * D)."""
        rows = table.reshape(-1, table.shape[-1])
        return rows.index_select(0, self.to_flat).view(num_tokens, -1)


def head_rows(
    lengths: Sequence[int], num_heads: int, device: torch.device, *, num_together: int = 1
) -> HeadRows:
    """Plan how heads are gathered.

    Args:
        lengths: Tokens of each document of the group, ascending.
        num_heads: H, or G for keys and values.
        device: Where the index tensors go.
        num_together: R, heads whose rows stand side by side at each token: the table is (N, H / R, L, R).
    """
    longest = lengths[-1]
    lengths_N1 = torch.tensor(lengths)[:, None]
    starts_N1 = lengths_N1.cumsum(0) - lengths_N1
    places_L = torch.arange(longest)
    tokens_NL = starts_N1 + torch.minimum(places_L, lengths_N1 - 1)
    heads_GR = torch.arange(num_heads).view(-1, num_together)
    flat_NGLR = tokens_NL[:, None, :, None] * num_heads + heads_GR[:, None]
    is_real_NGLR = (places_L < lengths_N1)[:, None, :, None].expand_as(flat_NGLR)
    real = is_real_NGLR.flatten().nonzero()[:, 0]
    to_flat = torch.empty_like(real)
    to_flat[flat_NGLR.flatten()[real]] = real
    padding = (~is_real_NGLR).flatten().nonzero()[:, 0] if lengths[0] < longest else None
    return HeadRows(
        flat_NGLR.flatten().to(device),
        to_flat.to(device),
        None if padding is None else padding.to(device),
    )


class Block(NamedTuple):
    """Queries [start, end) of every document, and the keys [first_key, last_key) that they may see."""

    start: int
    end: int
    first_key: int
    last_key: int
    mask_NSK: Tensor | None
    """What is added to the scores of the last K of these keys, (1 or N, end - start, K); None adds nothing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How the heads of a group are gathered."""

    queries: HeadRows
    """The queries that share a key head stand side by side."""
    keys: HeadRows
    num_documents: int
    num_tables: int
    """N * G: each holds the queries that share a key head."""
    width: int
    """D."""
    blocks: tuple[Block, ...]
    """All queries, in order."""
    keeps: bool
    """Whether the weights of attention are kept for the backward pass, not made again there."""


class _Gather(torch.autograd.Function):
    """A table of heads from the flat row, whose gradient is no sum: what is padded has none."""

    @staticmethod
    def forward(ctx: Any, flat_TF: Tensor, rows: HeadRows, width: int) -> Tensor:  # noqa: ANN401
        ctx.rows, ctx.num_tokens = rows, flat_TF.shape[0]
        return rows.gather(flat_TF, width)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        return ctx.rows.scatter(gradients[0], ctx.num_tokens), None, None


class _Scatter(torch.autograd.Function):
    """The flat row from a table of heads."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: HeadRows, num_tokens: int) -> Tensor:  # noqa: ANN401
        ctx.rows, ctx.shape = rows, table.shape
        return rows.scatter(table, num_tokens)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        table = ctx.rows.gather_gradient(gradients[0], ctx.shape[-1])
        return table.view(ctx.shape), None, None


def gather(flat_TF: Tensor, rows: HeadRows, width: int) -> Tensor:
    """Take the heads of a group out of the flat row: (T, H * D) to (N * H * L, D)."""
    return _Gather.apply(flat_TF, rows, width)


def scatter(table: Tensor, rows: HeadRows, num_tokens: int) -> Tensor:
    """Put the heads of a group back: (N, H, L, D) to (T, H * D)."""
    return _Scatter.apply(table, rows, num_tokens)


class _Attention(torch.autograd.Function):
    """softmax(queries @ keys.T * scaling + mask) @ values, for every document and head, block by block of the queries."""

    @staticmethod
    def forward(  # noqa: PLR0917 - the signature is that of torch
        ctx: Any,  # noqa: ANN401
        query_TF: Tensor,
        key_TF: Tensor,
        value_TF: Tensor,
        plan: Plan,
        scaling: float,
        dropout: float,
    ) -> Tensor:
        tables, width = plan.num_tables, plan.width
        query_BSD = plan.queries.gather(query_TF, width).mul_(scaling).view(tables, -1, width)
        key_BLD, value_BLD = (
            plan.keys.gather(each, width).view(tables, -1, width) for each in (key_TF, value_TF)
        )
        keeps = any(ctx.needs_input_grad[:3]) and (plan.keeps or dropout > 0)
        kept: list[Tensor] = []
        outputs: list[Tensor] = []
        for block in plan.blocks:
            weights_BSK = used_BSK = _weights(query_BSD, key_BLD, plan, block)
            if keeps:
                kept.append(weights_BSK)
            if dropout:
                left_BSK = torch.empty_like(weights_BSK).bernoulli_(1 - dropout).div_(1 - dropout)
                used_BSK = weights_BSK * left_BSK
                kept.append(left_BSK)
            outputs.append(torch.bmm(used_BSK, value_BLD[:, block.first_key : block.last_key]))
        ctx.save_for_backward(query_BSD, key_BLD, value_BLD, *kept)
        ctx.plan, ctx.scaling, ctx.has_dropout, ctx.keeps = plan, scaling, dropout > 0, keeps
        return plan.queries.scatter(_joined(outputs), query_TF.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        plan: Plan = ctx.plan
        query_BSD, key_BLD, value_BLD, *kept = ctx.saved_tensors
        num_tokens, rest = gradients[0].shape[0], iter(kept)
        gradient_BSD = plan.queries.gather_gradient(gradients[0], plan.width).view_as(query_BSD)
        of_query: list[Tensor] = []
        of_key, of_value = _Sum(key_BLD), _Sum(value_BLD)
        for block in plan.blocks:
            rows, keys = _rows(query_BSD, key_BLD, block), slice(block.first_key, block.last_key)
            weights_BSK = used_BSK = (
                next(rest) if ctx.keeps else _weights(query_BSD, key_BLD, plan, block)
            )
            back_BSK = torch.bmm(gradient_BSD[:, rows], value_BLD[:, keys].transpose(1, 2))
            if ctx.has_dropout:
                left_BSK = next(rest)
                used_BSK = weights_BSK * left_BSK
                back_BSK.mul_(left_BSK)
            back_BSK = torch.ops.aten._softmax_backward_data(
                back_BSK, weights_BSK, -1, weights_BSK.dtype
            )
            of_query.append(torch.bmm(back_BSK, key_BLD[:, keys]).mul_(ctx.scaling))
            of_key.add(torch.bmm(back_BSK.transpose(1, 2), query_BSD[:, rows]), keys)
            of_value.add(torch.bmm(used_BSK.transpose(1, 2), gradient_BSD[:, rows]), keys)
        return (
            plan.queries.scatter(_joined(of_query), num_tokens),
            plan.keys.scatter(of_key.total(), num_tokens),
            plan.keys.scatter(of_value.total(), num_tokens),
            *(None,) * 3,
        )


def _rows(query_BSD: Tensor, key_BLD: Tensor, block: Block) -> slice:
    """Where the queries of a block stand in their tables."""
    num_together = query_BSD.shape[1] // key_BLD.shape[1]
    return slice(block.start * num_together, block.end * num_together)


def _weights(query_BSD: Tensor, key_BLD: Tensor, plan: Plan, block: Block) -> Tensor:
    """How much each query of a block takes of each key; (B, S, K)."""
    key_BKD = key_BLD[:, block.first_key : block.last_key]
    rows = _rows(query_BSD, key_BLD, block)
    scores_BSK = torch.bmm(query_BSD[:, rows], key_BKD.transpose(1, 2))
    if block.mask_NSK is not None:
        split = plan.num_documents, -1, block.end - block.start, scores_BSK.shape[1]
        num_together = scores_BSK.shape[1] // split[2]
        seen = scores_BSK.view(*split[:3], num_together, scores_BSK.shape[2])
        seen[..., -block.mask_NSK.shape[-1] :].add_(block.mask_NSK[:, None, :, None])
    return scores_BSK.softmax(dim=-1)


class _Sum:
    """Gradients of keys or values, added up over the blocks that see them."""

    def __init__(self, like_BLD: Tensor) -> None:
        self._like_BLD = like_BLD
        self._parts: list[Tensor] = []
        """What there is so far: nothing, or one."""

    def add(self, part_BKD: Tensor, keys: slice) -> None:
        """Take what a block gives to the keys that it sees."""
        if not self._parts and part_BKD.shape == self._like_BLD.shape:
            self._parts = [part_BKD]
            return
        if not self._parts:
            # In bf16 a sum over blocks would lose what it adds.
            dtype = torch.promote_types(part_BKD.dtype, torch.float32)
            self._parts = [torch.zeros_like(self._like_BLD, dtype=dtype)]
        self._parts[0][:, keys] += part_BKD

    def total(self) -> Tensor:
        """The sum, as the layer computes."""
        return self._parts[0].to(self._like_BLD.dtype)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def attend(
    flat: tuple[Tensor, Tensor, Tensor], plan: Plan, *, scaling: float, dropout: float
) -> Tensor:
    """Attend inside each document of a group.

    Args:
        flat: Queries (T, H * D), keys and values (T, G * D).
        plan: How they are gathered, and what they may see.
        scaling: Factor of the scores.
        dropout: Share of the weights that is left out.

    Returns:
        (T, H * D).
    """
    return _Attention.apply(*flat, plan, scaling, dropout)
