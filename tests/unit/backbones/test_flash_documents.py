"""What goes into FlashAttention's kernel: a stand-in, which does what its documentation says, gives what transformers does."""

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import varlen

from lushan.backbones import flash_documents
from lushan.backbones.load import load_backbone
from lushan.data.batching import pack
from lushan.records import Features
from tests.conftest import MakeTiny
from tests.tiny import ENCODER_TYPES
from tests.unit.backbones.test_attention import (
    LENGTHS,
    PACKED_TYPES,
    eager,
    random_documents,
    run_alone,
)


def kernel(  # noqa: PLR0917 - the signature is that of torch
    query_THD: Tensor,
    key_TGD: Tensor,
    value_TGD: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    **options: Any,  # noqa: ANN401
) -> Tensor:
    """Attend as `torch.nn.attention.varlen.varlen_attn` says that it does, one document after the other."""
    lengths = cu_seq_q.diff().tolist()
    assert cu_seq_q.dtype == torch.int32
    assert torch.equal(cu_seq_q, cu_seq_k)
    assert max_q == max_k == max(lengths)
    left, right = options["window_size"]
    attended: list[Tensor] = []
    for query, key, value in zip(
        *(each.transpose(0, 1).split(lengths, dim=1) for each in (query_THD, key_TGD, value_TGD)),
        strict=True,
    ):
        places = torch.arange(query.shape[1])
        behind = places[:, None] - places
        seen = (behind <= left) | (left < 0)
        seen &= (-behind <= right) | (right < 0)
        attended.append(
            functional.scaled_dot_product_attention(
                query, key, value, seen, scale=options["scale"], enable_gqa=options["enable_gqa"]
            )
        )
    return torch.cat(attended, dim=1).transpose(0, 1)


@pytest.mark.parametrize("model_type", PACKED_TYPES)
def test_documents_come_out_as_each_alone(
    model_type: str, tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = random_documents(LENGTHS)
    features = [Features(each, str(row), row) for row, each in enumerate(documents)]
    backbone = load_backbone(tiny_folder(model_type), purpose="embed")
    calls: list[int] = []

    def counted(*rows: Any, **options: Any) -> Tensor:  # noqa: ANN401
        calls.append(len(rows[0]))
        return kernel(*rows, **options)

    monkeypatch.setattr(flash_documents, "can_attend", lambda *_: True)
    monkeypatch.setattr(varlen, "varlen_attn", counted)
    with torch.no_grad():
        hidden_TD = backbone.hidden_states(pack(features))
        expected_TD = run_alone(eager(tiny_folder(model_type)), documents)
    assert calls == [sum(LENGTHS)] * len(calls)
    assert calls or model_type in ENCODER_TYPES
    torch.testing.assert_close(hidden_TD, expected_TD, rtol=1e-4, atol=1e-5)


def test_no_kernel_is_taken_on_the_processor() -> None:
    assert not flash_documents.can_attend(torch.zeros(4, 64, dtype=torch.bfloat16), 64)


def test_versions_of_torch_without_such_a_kernel_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert flash_documents._is_in_torch.__wrapped__()

    def older(query: Tensor, *, is_causal: bool = False, scale: float | None = None) -> None:
        """Have no window, nor groups of heads."""

    monkeypatch.setattr(varlen, "varlen_attn", older)
    assert not flash_documents._is_in_torch.__wrapped__()
    monkeypatch.setitem(sys.modules, "torch.nn.attention", types.ModuleType("attention"))
    assert not flash_documents._is_in_torch.__wrapped__()
