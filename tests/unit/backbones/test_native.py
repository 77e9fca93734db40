"""The library of products: when it is made, and that it is not used where it cannot be trusted."""

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lushan.backbones import native
from lushan.backbones.hardware import machine

needs_library = pytest.mark.skipif(
    bool(native.why_missing()), reason="no products of our own on this machine"
)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing is loaded yet, and what a test loads is forgotten."""
    monkeypatch.setattr(native, "_load", native._load.__wrapped__)
    return monkeypatch


@needs_library
@pytest.mark.parametrize("num_rows", [1, 3, 8, 9, 20])
def test_products_are_those_of_torch(num_rows: int) -> None:
    generator = torch.Generator().manual_seed(num_rows)
    inputs_MI = torch.randn(num_rows, 64, generator=generator).bfloat16()
    weight_OI = torch.randn(48, 64, generator=generator).bfloat16()
    bias_O = torch.randn(48, generator=generator)
    packed = weight_OI.view(3, 16, 32, 2).transpose(1, 2).contiguous()
    described = native.matrix(packed, None, num_inputs=64, num_outputs=48, form="bf16")
    found_MO = native.multiply(inputs_MI, described, bias_O, dtype=torch.float32)
    expected_MO = inputs_MI.double() @ weight_OI.double().T + bias_O
    torch.testing.assert_close(found_MO.double(), expected_MO, rtol=1e-5, atol=1e-4)


def attended_by_torch(rows: Sequence[Tensor], prefix: Sequence[Tensor], seen_LK: Tensor) -> Tensor:
    """Attend in float64, (L, H, D); `seen_LK` says which keys a query sees."""
    query_HLD, key_GLD, value_GLD = (each.double().transpose(0, 1) for each in rows)
    shared = len(query_HLD) // len(key_GLD)
    key_HKD, value_HKD = (
        torch.cat([before.double(), own], dim=1).repeat_interleave(shared, dim=0)
        for before, own in zip(prefix, (key_GLD, value_GLD), strict=True)
    )
    scores_HLK = query_HLD @ key_HKD.mT * query_HLD.shape[2] ** -0.5
    weights_HLK = scores_HLK.masked_fill(~seen_LK, -torch.inf).softmax(dim=-1)
    return (weights_HLK @ value_HKD).transpose(0, 1)


def random_rows(num_tokens: int, *heads: int, width: int) -> Any:  # noqa: ANN401 - as many as heads
    """Queries, keys and values of tokens, or of longer texts."""
    generator = torch.Generator().manual_seed(num_tokens)
    return tuple(
        torch.randn(num_tokens, each, width, generator=generator).bfloat16() for each in heads
    )


def assert_near(found_LHD: Tensor, expected_LHD: Tensor) -> None:
    """Check every head of every token."""
    difference_LH = (found_LHD.double() - expected_LHD).norm(dim=-1)
    assert (difference_LH <= 0.006 * expected_LHD.norm(dim=-1)).all()


@needs_library
@pytest.mark.parametrize("num_prefix", [0, 1, 50])
@pytest.mark.parametrize(
    ("causal", "window"), [(True, None), (True, 17), (False, None), (False, 9)]
)
@pytest.mark.parametrize(("heads", "key_heads", "width"), [(9, 3, 64), (4, 1, 256), (2, 2, 32)])
def test_documents_attend_as_torch_does(  # noqa: PLR0917 - a grid
    heads: int, key_heads: int, width: int, causal: bool, window: int | None, num_prefix: int
) -> None:
    lengths = (1, 5, 33, 130)
    rows = random_rows(sum(lengths), heads, key_heads, key_heads, width=width)
    before = random_rows(60, key_heads, key_heads, width=width)
    # A view, as the part of a longer text is.
    prefix: Any = tuple(each.transpose(0, 1).contiguous()[:, :num_prefix] for each in before)
    found_THD = native.attend_documents(
        rows,
        torch.tensor(lengths),
        prefix if num_prefix else None,
        causal=causal,
        scaling=width**-0.5,
        window=window,
    )
    parts = zip(found_THD.split(lengths), *(each.split(lengths) for each in rows), strict=True)
    for found_LHD, *own in parts:
        ends_L1 = torch.arange(len(found_LHD))[:, None] + num_prefix
        distance_LK = ends_L1 - torch.arange(num_prefix + len(found_LHD))
        seen_LK = (distance_LK >= 0) | torch.tensor(not causal)
        seen_LK &= distance_LK.abs() < (window or 1000)
        assert_near(found_LHD, attended_by_torch(own, prefix, seen_LK))


@needs_library
@pytest.mark.parametrize("num_tokens", [1, 15, 16, 17, 100])
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(("shared", "width"), [(1, 32), (3, 64), (5, 96), (4, 256)])
def test_a_step_attends_as_torch_does(
    shared: int, width: int, window: int | None, num_tokens: int
) -> None:
    lengths = torch.tensor([num_tokens, 40])
    rows = random_rows(2, 2 * shared, 2, 2, width=width)
    tables: Any = tuple(
        each.view(3, 128, 2, width).transpose(1, 2).contiguous()
        for each in random_rows(3 * 128, 2, 2, width=width)
    )
    heads: Any = tuple(each.transpose(0, 1) for each in rows)
    found_NHD = native.attend(heads, tables, lengths - 1, scaling=width**-0.5, window=window)
    for text, length in enumerate(lengths.tolist()):
        for table, own in zip(tables, rows[1:], strict=True):
            assert torch.equal(table[text, :, length - 1], own[text])
        before = [each[text, :, : length - 1] for each in tables]
        seen_LK = (length - 1 - torch.arange(length) < (window or 1000))[None]
        expected_LHD = attended_by_torch([each[text][None] for each in rows], before, seen_LK)
        assert_near(found_NHD[text][None], expected_LHD)


def test_a_processor_without_the_instructions_is_named(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(native, "NEEDED_FEATURES", ("avx1024",))
    assert native.why_missing() == "this processor has no `avx1024`"
    assert native.choose_functions().value == "of torch"


@pytest.mark.skipif(
    not set(native.NEEDED_FEATURES) <= set(machine().features), reason="other processors"
)
def test_a_machine_without_a_compiler_is_told(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("CXX", "no-such-compiler")
    assert "no C++ compiler" in native.why_missing()


@pytest.mark.skipif(
    not set(native.NEEDED_FEATURES) <= set(machine().features), reason="other processors"
)
def test_a_compiler_that_fails_is_told_and_leaves_no_file(
    fresh: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fresh.setenv("CXX", "false")
    assert "could not be compiled with `false`" in native.why_missing()
    assert list((tmp_path / "cache" / "native").iterdir()) == []


def test_another_process_is_told_of_the_compiler_that_made_the_library_or_to_do_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = native.Opened(ctypes.CDLL(None), "clang++ -O1")
    monkeypatch.setattr(native, "_load", lambda: opened)
    assert native.environment() == {"CXX": "clang++ -O1"}
    monkeypatch.setattr(native, "_load", lambda: "no compiler could make it")
    assert native.environment() == {"CXX": "none"}


@needs_library
def test_the_library_is_compiled_once(fresh: pytest.MonkeyPatch) -> None:
    assert native.why_missing() == ""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("compiled again")

    fresh.setattr(subprocess, "run", never)
    assert native.why_missing() == ""


@needs_library
def test_wrong_products_are_not_used(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(native, "_LARGEST_ERROR", -1.0)
    assert native.why_missing() == "the compiled products are wrong on this processor"
