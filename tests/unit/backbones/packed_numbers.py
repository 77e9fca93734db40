"""Matrices to be packed, and how far what they give is off."""

import torch
from torch import Tensor

from lushan.backbones.load import WeightForm

LARGEST_ERROR: dict[WeightForm, float] = {"bf16": 0.004, "int8": 0.01, "int4": 0.12}
"""Of a product with normal numbers, as a share of its norm."""


def matrix(num_outputs: int, num_inputs: int) -> Tensor:
    """Give a random matrix."""
    generator = torch.Generator().manual_seed(num_outputs + num_inputs)
    return torch.randn(num_outputs, num_inputs, generator=generator).mul_(0.05).bfloat16()


def error_of(found: Tensor, exact: Tensor) -> float:
    """Give the difference as a share of the norm."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())
