"""Attention of a group of short documents in one piece: from the flat row, and back to it.

Every head's rows are gathered once, straight into the layout that batched products want, and put back once; the
backward pass is written out, so that nothing is kept or copied but what it reads.

Shapes: T tokens of the group, N documents, L longest of them, H heads (queries' or keys'), D width of a head, F = H * D,
B tables of heads that share a key head, S queries of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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


def head_rows(lengths: Sequence[int], num_heads: int, device: torch.device) -> HeadRows:
    """Plan how heads are gathered.

    Args:
        lengths: Tokens of each document of the group, ascending.
        num_heads: H, or G for keys and values.
        device: Where the index tensors go.
    """
    longest = lengths[-1]
    lengths_N1 = torch.tensor(lengths)[:, None]
    starts_N1 = lengths_N1.cumsum(0) - lengths_N1
    places_L = torch.arange(longest)
    tokens_NL = starts_N1 + torch.minimum(places_L, lengths_N1 - 1)
    flat_NHL = tokens_NL[:, None] * num_heads + torch.arange(num_heads)[:, None]
    is_real_NHL = (places_L < lengths_N1)[:, None].expand_as(flat_NHL)
    real = is_real_NHL.flatten().nonzero()[:, 0]
    to_flat = torch.empty_like(real)
    to_flat[flat_NHL.flatten()[real]] = real
    padding = (~is_real_NHL).flatten().nonzero()[:, 0] if lengths[0] < longest else None
    return HeadRows(
        flat_NHL.flatten().to(device),
        to_flat.to(device),
        None if padding is None else padding.to(device),
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """How the heads of a group are gathered."""

    queries: HeadRows
    keys: HeadRows
    num_documents: int
    num_tables: int
    """N * G: each holds the queries that share a key head."""
    width: int
    """D."""


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
    """softmax(queries @ keys.T * scaling + mask) @ values, for every document and head."""

    @staticmethod
    def forward(  # noqa: PLR0917 - the signature is that of torch
        ctx: Any,  # noqa: ANN401
        query_TF: Tensor,
        key_TF: Tensor,
        value_TF: Tensor,
        plan: Plan,
        mask_NLK: Tensor | None,
        scaling: float,
        dropout: float,
    ) -> Tensor:
        queries, keys, tables, width = plan.queries, plan.keys, plan.num_tables, plan.width
        query_BSD = queries.gather(query_TF, width).mul_(scaling).view(tables, -1, width)
        key_BLD, value_BLD = (
            keys.gather(each, width).view(tables, -1, width) for each in (key_TF, value_TF)
        )
        scores_BSL = torch.bmm(query_BSD, key_BLD.transpose(1, 2))
        if mask_NLK is not None:
            longest = mask_NLK.shape[-1]
            split = plan.num_documents, tables // plan.num_documents, -1, longest, longest
            scores_BSL.view(split).add_(mask_NLK[:, None, None])
        weights_BSL = scores_BSL.softmax(dim=-1)
        kept_BSL = None
        if dropout:
            kept_BSL = torch.empty_like(weights_BSL).bernoulli_(1 - dropout).div_(1 - dropout)
        used_BSL = weights_BSL if kept_BSL is None else weights_BSL * kept_BSL
        ctx.save_for_backward(query_BSD, key_BLD, value_BLD, weights_BSL, kept_BSL)
        ctx.plan, ctx.scaling = plan, scaling
        return queries.scatter(torch.bmm(used_BSL, value_BLD), query_TF.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        query_BSD, key_BLD, value_BLD, weights_BSL, kept_BSL = ctx.saved_tensors
        queries, keys = ctx.plan.queries, ctx.plan.keys
        num_tokens = gradients[0].shape[0]
        gradient_BSD = queries.gather_gradient(gradients[0], ctx.plan.width).view_as(query_BSD)
        used_BSL = weights_BSL if kept_BSL is None else weights_BSL * kept_BSL
        back_BSL = torch.bmm(gradient_BSD, value_BLD.transpose(1, 2))
        if kept_BSL is not None:
            back_BSL.mul_(kept_BSL)
        back_BSL = torch.ops.aten._softmax_backward_data(
            back_BSL, weights_BSL, -1, weights_BSL.dtype
        )
        of_query, of_key, of_value = (
            torch.bmm(back_BSL, key_BLD).mul_(ctx.scaling),
            torch.bmm(back_BSL.transpose(1, 2), query_BSD),
            torch.bmm(used_BSL.transpose(1, 2), gradient_BSD),
        )
        return (
            queries.scatter(of_query, num_tokens),
            keys.scatter(of_key, num_tokens),
            keys.scatter(of_value, num_tokens),
            *(None,) * 4,
        )


def attend(
    flat: tuple[Tensor, Tensor, Tensor],
    plan: Plan,
    *,
    mask_NLK: Tensor | None,
    scaling: float,
    dropout: float,
) -> Tensor:
    """Attend inside each document of a group.

    Args:
        flat: Queries (T, H * D), keys and values (T, G * D).
        plan: How they are gathered.
        mask_NLK: What is added to the scores, (1 or N, L, L), or None.
        scaling: Factor of the scores.
        dropout: Share of the weights that is left out.

    Returns:
        (T, H * D).
    """
    return _Attention.apply(*flat, plan, mask_NLK, scaling, dropout)
