"""Short documents go through a call of the library, and give what products give."""

import pytest
import torch

from lushan.backbones import short_attention
from lushan.backbones.attention import packed_attention
from lushan.backbones.packing import plan_packing
from tests.unit.backbones.fusable import needs_library
from tests.unit.backbones.packed_numbers import error_of

LENGTHS = [3, 30, 31, 200, short_attention.SHORT_TOKENS]


def attended(monkeypatch: pytest.MonkeyPatch, *, short: bool) -> list[torch.Tensor]:
    """What is made of random rows, and their gradients."""
    if not short:
        monkeypatch.setattr(short_attention, "SHORT_TOKENS", 0)
    generator = torch.Generator().manual_seed(0)
    rows = [
        torch.randn(1, heads, sum(LENGTHS), 32, generator=generator).bfloat16().requires_grad_()
        for heads in (4, 2, 2)
    ]
    found, _ = packed_attention(
        torch.nn.Module(), *rows, attention_mask=None, packing=plan_packing(LENGTHS), scaling=0.2
    )
    return [found.detach(), *torch.autograd.grad(found.float().square().sum(), rows)]


@needs_library
def test_short_documents_give_what_products_give(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    own = short_attention.native_training.attend
    monkeypatch.setattr(
        short_attention.native_training, "attend", lambda *given: calls.append(1) or own(*given)
    )
    pairs = zip(attended(monkeypatch, short=True), attended(monkeypatch, short=False), strict=True)
    assert all(error_of(*pair) < 0.01 for pair in pairs)
    assert calls


@needs_library
@pytest.mark.parametrize(
    ("dtype", "width", "longest"),
    [(torch.float32, 32, 9), (torch.bfloat16, 24, 9), (torch.bfloat16, 32, 1_025)],
)
def test_others_are_not_taken(dtype: torch.dtype, width: int, longest: int) -> None:
    assert not short_attention.can_attend(torch.zeros(1, dtype=dtype), width, longest)
