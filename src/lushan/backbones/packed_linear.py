"""Weight matrices that never change, laid out as products read them, and the layers that hold them.

Shapes: M rows, I inputs, O outputs, K chosen outputs, G groups of inputs, D width.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from lushan.backbones import native, native_structures
from lushan.backbones.load import WeightForm
from lushan.backbones.lora import FrozenProduct

_BLOCK_OUTPUTS = 16
_GROUP_INPUTS = 32
_ROUNDED_AT_ONCE = 1 << 17
_SMALLEST_SCALE = 1e-30
_FEW_ROWS = 4
"""For which torch's own product with 8 bits is faster than widening the weights first."""


class Packed(Protocol):
    """A weight matrix that never changes."""

    num_bytes: int
    """Memory that it takes."""

    def forward(self, inputs_MI: Tensor, bias_O: Tensor | None) -> Tensor:
        """Give (M, O)."""
        ...

    def logits(self, inputs_MI: Tensor, bias_O: Tensor | None) -> Tensor:
        """Give (M, O) in float32."""
        ...

    def backward(self, gradient_MO: Tensor) -> Tensor:
        """Give (M, I)."""
        ...

    def rows(self, outputs_K: Tensor) -> Tensor:
        """Give some rows of the matrix; (K, I), bfloat16."""
        ...


class NativePacked:
    """In blocks, multiplied by `products.cpp`."""

    def __init__(self, weight_OI: Tensor, form: WeightForm) -> None:
        self._num_outputs, self._num_inputs = weight_OI.shape
        self._form = form
        padding = (0, -self._num_inputs % _GROUP_INPUTS, 0, -self._num_outputs % _BLOCK_OUTPUTS)
        padded = functional.pad(weight_OI.detach(), padding) if any(padding) else weight_OI.detach()
        numbers, self._scales = _rounded(padded, form)
        self._padding = padding[1]
        # [block][pair of inputs][output][which of the pair]; a pair is moved as one number, which is faster
        pairs = numbers.contiguous().view(torch.int32 if form == "bf16" else torch.int16)
        blocks = pairs.unflatten(0, (-1, _BLOCK_OUTPUTS)).transpose(1, 2).contiguous()
        self._blocks = blocks.view(numbers.dtype).unflatten(2, (_BLOCK_OUTPUTS, 2))
        if form == "int4":
            first, second = self._blocks.unflatten(1, (-1, 2)).unbind(2)
            self._blocks = first | second << 4
        if self._scales is not None:
            self._scales = self._scales.unflatten(0, (-1, _BLOCK_OUTPUTS)).mT.contiguous()
        self.num_bytes = self._blocks.nbytes + (0 if self._scales is None else self._scales.nbytes)

    def forward(self, inputs_MI: Tensor, bias_O: Tensor | None) -> Tensor:
        """Give (M, O)."""
        return self._multiply(inputs_MI, bias_O, torch.bfloat16)

    def logits(self, inputs_MI: Tensor, bias_O: Tensor | None) -> Tensor:
        """Give (M, O) in float32."""
        return self._multiply(inputs_MI, bias_O, torch.float32)

    def _multiply(self, inputs_MI: Tensor, bias_O: Tensor | None, dtype: torch.dtype) -> Tensor:
        if inputs_MI.dtype != torch.bfloat16:  # an explanation computes in float32
            return _multiplied(inputs_MI, self.rows(torch.arange(self._num_outputs)), bias_O)
        if self._padding:
            inputs_MI = functional.pad(inputs_MI, (0, self._padding))
        bias_O = None if bias_O is None else bias_O.float()
        return native.multiply(inputs_MI.contiguous(), self.matrix(None), bias_O, dtype=dtype)

    def matrix(self, bias_O: Tensor | None) -> native_structures.Matrix:
        """Describe the matrix to the library; `bias_O` in float32."""
        return native.matrix(
            self._blocks,
            self._scales,
            bias_O,
            num_inputs=self._num_inputs + self._padding,
            num_outputs=self._num_outputs,
            form=self._form,
        )

    def backward(self, gradient_MO: Tensor) -> Tensor:
        """Give (M, I)."""
        return gradient_MO @ self.rows(torch.arange(self._num_outputs)).to(gradient_MO.dtype)

    def rows(self, outputs_K: Tensor) -> Tensor:
        """Give some rows of the matrix; (K, I), bfloat16."""
        block_K, place_K = outputs_K // _BLOCK_OUTPUTS, outputs_K % _BLOCK_OUTPUTS
        if self._form == "int4":
            both = self._blocks[block_K, :, place_K]
            numbers = torch.stack([both & 15, both >> 4], dim=2).flatten(1).float() - 8
        else:
            numbers = self._blocks[block_K, :, place_K].flatten(1)
        if self._scales is not None:
            scales_KG = self._scales[block_K, :, place_K].float()
            numbers = numbers.float() * scales_KG.repeat_interleave(_GROUP_INPUTS, dim=1)
        return numbers[:, : self._num_inputs].to(torch.bfloat16)


class TorchPacked:
    """Where there are no products of our own: oneDNN in bfloat16, torch's in 8 bits."""

    def __init__(self, weight_OI: Tensor, form: WeightForm) -> None:
        numbers, scales_O1 = _rounded(weight_OI.detach(), form, group_inputs=weight_OI.shape[1])
        self._scales_O = None if scales_O1 is None else scales_O1[:, 0]
        self._numbers_OI = numbers.contiguous()
        # torch reads beyond the end of a matrix with other sizes.
        self._has_few = not any(size % _GROUP_INPUTS for size in numbers.shape)
        self._product = None if self._scales_O is not None else FrozenProduct(self._numbers_OI)
        beside = self._product.num_bytes if self._product else len(numbers) * 2
        self.num_bytes = self._numbers_OI.nbytes + beside

    def forward(self, inputs_MI: Tensor, bias_O: Tensor | None) -> Tensor:
        """Give (M, O)."""
        if inputs_MI.dtype != torch.bfloat16:
            return _multiplied(inputs_MI, self.rows(torch.arange(len(self._numbers_OI))), bias_O)
        if self._product is not None:
            return self._product.forward(inputs_MI, bias_O)
        scales_O = self._scales_O.to(inputs_MI.dtype)  # pyright: ignore[reportOptionalMemberAccess]
        if len(inputs_MI) <= _FEW_ROWS and self._has_few:
            outputs_MO = torch.ops.aten._weight_int8pack_mm(
                inputs_MI.contiguous(), self._numbers_OI, scales_O
            )
        else:
            outputs_MO = functional.linear(inputs_MI, self._numbers_OI.to(inputs_MI.dtype))
            outputs_MO = outputs_MO.mul_(scales_O)
        return outputs_MO if bias_O is None else outputs_MO.add_(bias_O)

    def logits(self, inputs_MI: Tensor, bias_O: Tensor | None) -> Tensor:
        """Give (M, O) in float32."""
        return self.forward(inputs_MI, bias_O).float()

    def backward(self, gradient_MO: Tensor) -> Tensor:
        """Give (M, I)."""
        return gradient_MO @ self.rows(torch.arange(len(self._numbers_OI))).to(gradient_MO.dtype)

    def rows(self, outputs_K: Tensor) -> Tensor:
        """Give some rows of the matrix; (K, I), bfloat16."""
        rows_KI = self._numbers_OI[outputs_K]
        if self._scales_O is not None:
            rows_KI = rows_KI.float() * self._scales_O[outputs_K, None]
        return rows_KI.to(torch.bfloat16)


def _multiplied(inputs_MI: Tensor, rows_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """Multiply by an unpacked matrix, in the precision of the inputs."""
    bias_O = None if bias_O is None else bias_O.to(inputs_MI.dtype)
    return functional.linear(inputs_MI, rows_OI.to(inputs_MI.dtype), bias_O)


def _rounded(
    weight_OI: Tensor, form: WeightForm, *, group_inputs: int = _GROUP_INPUTS
) -> tuple[Tensor, Tensor | None]:
    """Round a matrix: whole numbers, and what they are multiplied by.

    Returns:
        The numbers, (O, I): bfloat16, int8, or for 4 bits uint8 from 0 to 15, of which 8 stands for 0. The scales of
        8 and 4 bits: (O, groups) in bfloat16.
    """
    if form == "bf16":
        return weight_OI.to(torch.bfloat16), None
    # Part by part: what is made on the way then stays in the cache.
    parts = weight_OI.split(max(1, _ROUNDED_AT_ONCE // weight_OI.shape[1]))
    round_part = _rounded_to_8_bits if form == "int8" else _rounded_to_4_bits
    numbers, scales = zip(
        *(round_part(each.float().unflatten(1, (-1, group_inputs))) for each in parts), strict=True
    )
    return torch.cat(numbers), torch.cat(scales)


def _rounded_to_8_bits(groups_OGI: Tensor) -> tuple[Tensor, Tensor]:
    largest_OG = torch.stack(groups_OGI.aminmax(dim=2)).abs_().amax(dim=0)
    scales_OG = (largest_OG.clamp_(min=_SMALLEST_SCALE) / 127).bfloat16()
    numbers_OGI = (groups_OGI / scales_OG[..., None].float()).round_().clamp_(-127, 127)
    return numbers_OGI.flatten(1).to(torch.int8), scales_OG


def _rounded_to_4_bits(groups_OGI: Tensor) -> tuple[Tensor, Tensor]:
    scales_OG = _scales_of_groups(groups_OGI)
    numbers_OGI = (groups_OGI / scales_OG[..., None].float()).round().clamp(-8, 7) + 8
    return numbers_OGI.flatten(1).to(torch.uint8), scales_OG


def _scales_of_groups(groups_OGI: Tensor) -> Tensor:
    """Give the scale, of some that use the range from -8 to 7, with which a group is changed least; (O, G), bfloat16."""
    place_OG1 = groups_OGI.abs().argmax(dim=2, keepdim=True)
    largest_OG = groups_OGI.gather(2, place_OG1)[..., 0]
    best_OG = torch.ones_like(largest_OG)
    least_OG = torch.full_like(largest_OG, torch.inf)
    for top in (-8.0, -7.0, -9.0):
        scales_OG = (largest_OG / top).bfloat16().float()
        scales_OG = torch.where(scales_OG == 0, 1.0, scales_OG)
        numbers_OGI = (groups_OGI / scales_OG[..., None]).round().clamp(-8, 7)
        error_OG = (numbers_OGI * scales_OG[..., None] - groups_OGI).square().sum(dim=2)
        better_OG = error_OG < least_OG
        best_OG = torch.where(better_OG, scales_OG, best_OG)
        least_OG = torch.where(better_OG, error_OG, least_OG)
    return best_OG.bfloat16()


def pack_matrix(weight_OI: Tensor, form: WeightForm) -> Packed:
    """Pack a matrix as products on this machine read it."""
    return TorchPacked(weight_OI, form) if native.why_missing() else NativePacked(weight_OI, form)


class PackedLinear(nn.Module):
    """What takes the place of a linear layer."""

    def __init__(self, product: Packed, out_features: int, in_features: int) -> None:
        super().__init__()
        self.product = product
        self.out_features, self.in_features = out_features, in_features
        self.bias: nn.Parameter | None = None

    @property
    def weight(self) -> Tensor:
        """The matrix as it is multiplied, (O, I), bfloat16; made anew at every call."""
        return self.product.rows(torch.arange(self.out_features))

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply the last axis."""
        flat_MI = inputs.reshape(-1, self.in_features)
        if torch.is_grad_enabled() and inputs.requires_grad:  # an explanation looks back
            outputs_MO = _multiplied(flat_MI, self.weight, self.bias)
        else:
            outputs_MO = self.product.forward(flat_MI, self.bias)
        return outputs_MO.view(*inputs.shape[:-1], self.out_features)


class PackedEmbedding(nn.Module):
    """What takes the place of a token embedding: rows of a packed matrix, then whatever the embedding does with them."""

    def __init__(self, product: Packed, embedding: nn.Embedding) -> None:
        """Take over an embedding, whose weight is freed."""
        super().__init__()
        self.product = product
        self.num_embeddings = embedding.num_embeddings
        embedding.padding_idx = (
            None  # matters to gradients alone, and could name a row beyond those that are given
        )
        embedding.weight = nn.Parameter(torch.empty(0), requires_grad=False)
        self.like = nn.Parameter(torch.empty(0, dtype=torch.bfloat16), requires_grad=False)
        """Empty; has the precision of the model's other weights, which an explanation changes."""
        self._embedding = [
            embedding
        ]  # in a list, so that its parameters are not those of the model

    def forward(self, token_ids: Tensor) -> Tensor:
        """Give the embeddings of tokens."""
        rows_KD = self.product.rows(token_ids.flatten()).to(self.like.dtype)
        places = torch.arange(len(rows_KD)).view_as(token_ids)
        return functional_call(self._embedding[0], {"weight": rows_KD}, (places,))
