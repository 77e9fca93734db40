"""Low-rank adapters without needless copies: PEFT's layers, each computed forward and backward in one piece.

PEFT adds a layer's output, what the adapter makes and its scale in three passes over all tokens, and as many on the
way back; here they are added inside of the products. The frozen weights are laid out once as oneDNN reads them, for
either direction, instead of at every call. Names, files and what is computed stay PEFT's.

Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685. Shapes: T tokens, I inputs, O outputs, R rank.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from lushan.backbones.native_training import Dropout, adapt, adapt_backward, can_adapt, drop

_USUAL_TOKENS = 384
"""For how many rows at once oneDNN lays out a weight; others are right too."""


def lays_out(device: str, dtype: torch.dtype) -> bool:
    """Whether frozen weights are laid out as oneDNN reads them, beside the weights: in bf16, on a CPU that multiplies in it."""
    return (
        (device, dtype) == ("cpu", torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class FrozenProduct:
    """Multiplies by a weight that never changes, and by its transpose."""

    def __init__(self, weight_OI: Tensor) -> None:
        """Lay the weight out where that is of use: in bf16 on a CPU."""
        packs = lays_out(weight_OI.device.type, weight_OI.dtype)
        self.num_bytes = weight_OI.nbytes if packs else 0
        """Memory beside the weight of what passes forward."""
        self._product_by = _packed if packs else _plain
        self._weight_OI = weight_OI
        self._forward = self._product_by(weight_OI)
        self._backward: _Product | None = None

    def forward(self, inputs_TI: Tensor, bias_O: Tensor | None) -> Tensor:
        """Give (T, O)."""
        return self._forward(inputs_TI, bias_O)

    def backward(self, gradient_TO: Tensor) -> Tensor:
        """Give (T, I)."""
        if self._backward is None:  # a model that only answers never gets here
            self._backward = self._product_by(self._weight_OI.T)
        return self._backward(gradient_TO, None)


_Product = Callable[[Tensor, Tensor | None], Tensor]


def _plain(weight_OI: Tensor) -> _Product:
    return lambda inputs_TI, bias_O: functional.linear(inputs_TI, weight_OI, bias_O)


def _packed(weight_OI: Tensor) -> _Product:
    multiply = torch.ops.mkldnn._linear_pointwise
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weight_OI, _USUAL_TOKENS)
    return lambda inputs_TI, bias_O: multiply(
        inputs_TI.contiguous(), laid_out, bias_O, "none", [], ""
    )


class _Adapted(torch.autograd.Function):
    """inputs @ weight.T + bias + scaling * entering @ down.T @ up.T, where nothing but `down` and `up` is trained."""

    @staticmethod
    def forward(  # noqa: PLR0917 - the signature is that of torch
        ctx: Any,  # noqa: ANN401
        inputs_TI: Tensor,
        entering_TI: Tensor | None,
        down_RI: Tensor,
        up_OR: Tensor,
        product: FrozenProduct,
        bias_O: Tensor | None,
        scaling: float,
    ) -> Tensor:
        kept_TI = (inputs_TI if entering_TI is None else entering_TI).contiguous()
        ctx.is_native = can_adapt(kept_TI, down_RI, up_OR)
        outputs_TO = product.forward(inputs_TI, bias_O)
        if ctx.is_native:
            narrow_TR = adapt(kept_TI, (down_RI, up_OR), outputs_TO, scaling=scaling)
        else:
            narrow_TR = kept_TI @ down_RI.T
            outputs_TO.addmm_(narrow_TR, up_OR.T, alpha=scaling)
        ctx.save_for_backward(kept_TI, down_RI, up_OR, narrow_TR)
        ctx.product, ctx.scaling, ctx.drops = product, scaling, entering_TI is not None
        return outputs_TO

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        kept_TI, down_RI, up_OR, narrow_TR = ctx.saved_tensors
        gradient_TO = gradients[0].contiguous()
        inputs_TI = entering_TI = None
        if ctx.needs_input_grad[0]:
            inputs_TI = ctx.product.backward(gradient_TO)
        if ctx.drops and ctx.needs_input_grad[1]:
            entering_TI = torch.zeros_like(kept_TI)
        into_TI = entering_TI if ctx.drops else inputs_TI
        if ctx.is_native:
            down, up = adapt_backward(
                (kept_TI, down_RI, up_OR, narrow_TR), gradient_TO, into_TI, scaling=ctx.scaling
            )
        else:
            back_TR = (gradient_TO @ up_OR) * ctx.scaling
            down = back_TR.T @ kept_TI
            up = (gradient_TO.T @ narrow_TR) * ctx.scaling
            if into_TI is not None:
                into_TI.addmm_(back_TR, down_RI)
        return inputs_TI, entering_TI, down, up, None, None, None


class _Dropped(torch.autograd.Function):
    """Rows without what is dropped."""

    @staticmethod
    def forward(ctx: Any, rows_TI: Tensor, dropout: Dropout) -> Tensor:  # noqa: ANN401
        ctx.dropout = dropout
        return drop(rows_TI.contiguous(), dropout)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        return drop(gradients[0].contiguous(), ctx.dropout), None


def compute_in_one_piece(model: nn.Module) -> None:
    """Have the layers of a PEFT model that carry a plain adapter compute it in one piece; others stay PEFT's.

    Args:
        model: Changed in place. Its base weights must not change any more.
    """
    from peft.tuners.lora import Linear  # slow to import, rarely needed

    for layer in model.modules():
        if isinstance(layer, Linear) and not layer.lora_variant and len(layer.active_adapters) == 1:
            setattr(layer, "forward", MethodType(_Forward(layer), layer))  # noqa: B010 - not typed to be replaced


def forget_products(model: nn.Module) -> None:
    """Have weights laid out anew at the next call, after their precision was changed."""
    for layer in model.modules():
        forward = getattr(vars(layer).get("forward"), "__func__", None)
        if isinstance(forward, _Forward):
            forward.forget_product()


class InOnePiece(NamedTuple):
    """What a layer with a plain adapter is computed from."""

    product: FrozenProduct
    bias_O: Tensor | None
    down_RI: Tensor
    up_OR: Tensor
    scaling: float
    dropout: float
    """The share of the inputs that does not enter the adapter now."""


def in_one_piece(layer: nn.Module) -> InOnePiece | None:
    """Say what a layer of `compute_in_one_piece` is computed from; None where it is another, or drops its adapter."""
    forward = getattr(vars(layer).get("forward"), "__func__", None)
    return forward.parts_of(layer) if isinstance(forward, _Forward) else None


def frozen_product(layer: nn.Linear | Conv1D) -> FrozenProduct:
    """Lay out the weight of a layer."""
    weight = layer.weight.detach()
    return FrozenProduct(weight.T if isinstance(layer, Conv1D) else weight)


class _Forward:
    """What takes the place of a layer's `forward`."""

    def __init__(self, layer: Any) -> None:  # noqa: ANN401 - PEFT's layers are not typed
        self._name: str = layer.active_adapters[0]
        self._peft = layer.forward
        self._product: FrozenProduct | None = None
        self._device: torch.device | None = None

    def forget_product(self) -> None:
        """Lay the weight out anew at the next call."""
        self._product = None

    def parts_of(self, layer: Any) -> InOnePiece | None:  # noqa: ANN401
        """See `in_one_piece`."""
        if layer.disable_adapters or layer.merged:
            return None
        return self._parts(layer)

    def __call__(self, layer: Any, inputs: Tensor) -> Tensor:  # noqa: ANN401
        # A compiler joins what PEFT does step by step, and cannot look into a product that is laid out.
        if layer.disable_adapters or layer.merged or torch.compiler.is_compiling():
            return self._peft(inputs)
        product, bias_O, down_RI, up_OR, scaling, share = self._parts(layer)
        flat_TI = inputs.reshape(-1, inputs.shape[-1])
        entering_TI = None
        if share and can_adapt(flat_TI, down_RI, up_OR):
            # Torch draws on one core, for longer than the products take.
            entering_TI = _Dropped.apply(flat_TI, Dropout.drawn(share))
        elif share:
            entering_TI = functional.dropout(flat_TI, share)
        outputs_TO = _Adapted.apply(flat_TI, entering_TI, down_RI, up_OR, product, bias_O, scaling)
        return outputs_TO.view(*inputs.shape[:-1], -1)

    def _parts(self, layer: Any) -> InOnePiece:  # noqa: ANN401
        base, down, up = layer.base_layer, layer.lora_A[self._name], layer.lora_B[self._name]
        if self._device != down.weight.device:  # the model was moved, and what is laid out was not
            self._product, self._device = None, down.weight.device
        # A packed layer (`packed.py`) brings its own product.
        product = self._product or getattr(base, "product", None) or frozen_product(base)
        self._product, scaling = product, layer.scaling[self._name]
        dropout = layer.lora_dropout[self._name]
        share = dropout.p if layer.training and isinstance(dropout, nn.Dropout) else 0.0
        return InOnePiece(product, base.bias, down.weight, up.weight, scaling, share)
