"""Heads are gathered into tables and put back, and attend there as torch's own attention does."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lushan.backbones.attention_products import (
    Block,
    HeadRows,
    Plan,
    attend,
    gather,
    head_rows,
    scatter,
)

CPU = torch.device("cpu")
LENGTHS = (1, 4, 6)


def rows_of(num_heads: int) -> HeadRows:
    return head_rows(LENGTHS, num_heads, CPU)


def test_documents_of_one_length_are_not_padded() -> None:
    assert head_rows([5, 5], 3, CPU).padding is None


def test_heads_stand_one_behind_the_other_and_padding_repeats_the_last_token() -> None:
    flat_TF = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    table = gather(flat_TF, head_rows([1, 2], 2, CPU), 1).view(2, 2, 2)
    assert table.tolist() == [[[1, 1], [10, 10]], [[2, 3], [20, 30]]]


def test_what_was_gathered_is_put_back() -> None:
    flat_TF = torch.randn(sum(LENGTHS), 2 * 3)
    table = gather(flat_TF, rows_of(2), 3)
    assert torch.equal(scatter(table, rows_of(2), len(flat_TF)), flat_TF)


def test_gradients_pass_through_and_padding_has_none() -> None:
    flat_TF = torch.randn(sum(LENGTHS), 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: gather(x, rows_of(2), 3)[rows_of(2).to_flat], flat_TF)
    table = torch.randn(3 * 2 * 6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: scatter(x, rows_of(2), sum(LENGTHS)), table)


def reference(flat: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """One document after the other, by torch's own attention."""
    outputs: list[Tensor] = []
    for query, key, value in zip(*(each.split(LENGTHS) for each in flat), strict=True):
        heads = (each.unflatten(1, (-1, 3)).transpose(0, 1)[None] for each in (query, key, value))
        attended = functional.scaled_dot_product_attention(
            *heads, is_causal=True, scale=0.7, enable_gqa=True
        )
        outputs.append(attended[0].transpose(0, 1).flatten(1))
    return torch.cat(outputs)


def masked(num_queries: int, num_keys: int) -> Tensor:
    lowest = torch.finfo(torch.float64).min
    return torch.full((1, num_queries, num_keys), lowest, dtype=torch.float64).triu(1)


WHOLE = (Block(0, 6, 0, 6, masked(6, 6)),)
IN_PARTS = (Block(0, 4, 0, 4, masked(4, 4)), Block(4, 6, 0, 6, masked(2, 2)))
IN_PARTS_OF_THREE = (Block(0, 2, 0, 2, masked(2, 2)), Block(2, 3, 0, 3, None))


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("blocks", [WHOLE, IN_PARTS])
def test_attention_and_its_gradients_are_those_of_torch(
    blocks: tuple[Block, ...], keeps: bool
) -> None:
    tokens = sum(LENGTHS)
    flat = query_TF, key_TF, value_TF = [
        torch.randn(tokens, heads * 3, dtype=torch.float64, requires_grad=True)
        for heads in (4, 2, 2)
    ]
    queries = head_rows(LENGTHS, 4, CPU, num_together=2)
    plan = Plan(queries, rows_of(2), 3, num_tables=6, width=3, blocks=blocks, keeps=keeps)
    ours = attend((query_TF, key_TF, value_TF), plan, scaling=0.7, dropout=0.0)
    theirs = reference((query_TF, key_TF, value_TF))
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(theirs)
    torch.testing.assert_close(
        torch.autograd.grad((ours * weights).sum(), flat),
        torch.autograd.grad((theirs * weights).sum(), flat),
    )


@pytest.mark.parametrize("blocks", [(Block(0, 3, 0, 3, None),), IN_PARTS_OF_THREE])
def test_gradient_with_dropout_is_that_of_the_same_draw(blocks: tuple[Block, ...]) -> None:
    query, key, value = (
        torch.randn(6, 6, dtype=torch.float64, requires_grad=True) for _ in range(3)
    )
    rows = head_rows([3, 3], 2, CPU)
    plan = Plan(rows, rows, 2, num_tables=4, width=3, blocks=blocks, keeps=False)

    def drawn(query_TF: Tensor, key_TF: Tensor, value_TF: Tensor) -> Tensor:
        torch.manual_seed(0)
        return attend((query_TF, key_TF, value_TF), plan, scaling=0.7, dropout=0.5)

    assert torch.autograd.gradcheck(drawn, (query, key, value))
