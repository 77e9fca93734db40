"""Packed matrices: what they give is what the exact weights give, by our own products and by those of torch."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from lushan.backbones import native
from lushan.backbones.load import WeightForm
from lushan.backbones.packed_linear import PackedLinear, pack_matrix
from tests.unit.backbones.packed_numbers import LARGEST_ERROR, error_of, matrix


@pytest.mark.parametrize("num_rows", [1, 4, 6, 8, 9, 33])
@pytest.mark.parametrize("form", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("shape", [(96, 64), (37, 70)])
def test_products_are_near_those_of_the_exact_weights(
    form: WeightForm, shape: tuple[int, int], num_rows: int, maker: str
) -> None:
    if (form, maker) == ("int4", "torch"):
        pytest.skip("refused by `choose_weights`")
    weight_OI, bias_O = matrix(*shape), matrix(shape[0], 1)[:, 0]
    product = pack_matrix(weight_OI, form)
    inputs_MI = torch.randn(num_rows, shape[1], generator=torch.Generator().manual_seed(1))
    inputs_MI = inputs_MI.bfloat16()
    exact_MO = inputs_MI.double() @ weight_OI.double().T + bias_O.double()
    assert error_of(product.forward(inputs_MI, bias_O), exact_MO) < LARGEST_ERROR[form]
    assert error_of(product.logits(inputs_MI, bias_O), exact_MO) < LARGEST_ERROR[form]
    rounded_OI = product.rows(torch.arange(shape[0])).double()
    same_MO = inputs_MI.double() @ rounded_OI.T + bias_O.double()
    assert error_of(product.logits(inputs_MI, bias_O), same_MO) < 0.005
    back_MI = product.backward(exact_MO.bfloat16())
    assert error_of(back_MI, exact_MO @ weight_OI.double()) < 1.5 * LARGEST_ERROR[form]


@pytest.mark.parametrize("form", ["bf16", "int8", "int4"])
def test_no_rows_give_none(form: WeightForm, maker: str) -> None:
    if (maker, form) == ("torch", "int4"):
        pytest.skip("refused by `choose_weights`")
    product = pack_matrix(matrix(96, 64), form)
    assert product.forward(torch.empty(0, 64, dtype=torch.bfloat16), None).shape == (0, 96)


@pytest.mark.parametrize("form", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("place", [3, 20])
def test_an_input_that_is_no_number_gives_none(form: WeightForm, place: int, maker: str) -> None:
    if (maker, form) == ("torch", "int4"):
        pytest.skip("refused by `choose_weights`")
    inputs_MI = matrix(2, 64).bfloat16()
    inputs_MI[1, place] = torch.nan
    found_MO = pack_matrix(matrix(96, 64), form).forward(inputs_MI, None)
    assert found_MO[0].isfinite().all()
    assert found_MO[1].isnan().all()


@pytest.mark.usefixtures("maker")
def test_8_bits_round_to_the_nearest_of_255_numbers() -> None:
    weight_OI = matrix(32, 64)
    rows_OI = pack_matrix(weight_OI, "int8").rows(torch.arange(32)).double()
    step_O = weight_OI.abs().amax(dim=1).double() / 127
    largest_O = (rows_OI - weight_OI.double()).abs().amax(dim=1)
    assert (largest_O <= step_O * (0.5 + 127 / 256)).all()  # the rows are told in bfloat16


def test_a_row_of_zeros_stays_so(maker: str) -> None:
    weight_OI = matrix(16, 32)
    weight_OI[3] = 0
    forms: list[WeightForm] = ["int8"] if maker == "torch" else ["int8", "int4"]
    for form in forms:
        found_MO = pack_matrix(weight_OI, form).forward(matrix(1, 32), None)
        assert found_MO[0, 3] == 0
        assert found_MO.isfinite().all()


@pytest.mark.skipif(bool(native.why_missing()), reason="torch holds bfloat16 twice")
@pytest.mark.parametrize(
    ("form", "num_bytes"),
    [("bf16", 96 * 64 * 2), ("int8", 96 * (64 + 2 * 2)), ("int4", 96 * (32 + 2 * 2))],
)
def test_memory_is_what_the_bits_say(form: WeightForm, num_bytes: int) -> None:
    assert pack_matrix(matrix(96, 64), form).num_bytes == num_bytes


def test_gradients_pass_through_packed_layers() -> None:
    layer = nn.Linear(64, 32).to(torch.bfloat16)
    packed_layer = PackedLinear(pack_matrix(deepcopy(layer.weight), "bf16"), 32, 64)
    packed_layer.bias = layer.bias
    inputs = matrix(3, 64)
    found, expected = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    packed_layer(found).float().square().sum().backward()
    layer(expected).float().square().sum().backward()
    torch.testing.assert_close(found.grad, expected.grad, rtol=0.02, atol=0.002)
