"""The library of products: when it is made, and that it is not used where it cannot be trusted."""

import subprocess
from pathlib import Path

import pytest
import torch

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


def test_a_processor_without_the_instructions_is_named(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(native, "NEEDED_FEATURES", ("avx1024",))
    assert native.why_missing() == "this processor has no `avx1024`"


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
