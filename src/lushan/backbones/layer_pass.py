"""A decoder layer in training as one function of autograd, its way back written by hand.

It computes what the parts of `trained_layers.py` do one after the other, without what lies in between: modules, nodes of
the graph, views. Those take as long for few tokens as for many, on one core, while the others wait.

Shapes: T tokens, D width, F = heads * width of a head, W that width, I inputs of a linear layer, O outputs, R rank.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lushan.backbones import native_training
from lushan.backbones.lora import FrozenProduct
from lushan.backbones.native_training import Dropout, Looks

_Rows = Tensor | None
LINEARS, NORMS = range(7), range(6)
QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN = LINEARS
"""Linear layers, in the order of `fused_layers.LINEAR_NAMES`."""
BEFORE_ATTENTION, BEFORE_NETWORK, AFTER_ATTENTION, AFTER_NETWORK, OF_QUERY, OF_KEY = NORMS
"""Norms, in the order of `fused_layers.KnownParts`."""


class Linear(NamedTuple):
    """The tensors of a linear layer, in bfloat16."""

    weight: Tensor | None
    """(O, I); None where there is an adapter, whose product has it."""
    bias: Tensor | None
    down: Tensor | None = None
    """Of an adapter, (R, I)."""
    up: Tensor | None = None
    """Of an adapter, (O, R)."""


class Weights(NamedTuple):
    """All that a layer is made of."""

    linears: Sequence[Linear]
    """By `QUERY` to `DOWN`."""
    norms: Sequence[Tensor | None]
    """By `BEFORE_ATTENTION` to `OF_KEY`; None where there is none."""


class Adapter(NamedTuple):
    """What an adapter needs beside its tensors."""

    product: FrozenProduct
    scaling: float
    dropout: Dropout | None = None
    """Of what enters it."""

    def entering(self, inputs_TI: Tensor) -> Tensor:
        """Give what enters."""
        return inputs_TI if self.dropout is None else native_training.drop(inputs_TI, self.dropout)


class How(NamedTuple):
    """What a pass depends on beside its rows and weights."""

    looks: Looks
    epsilon: float
    """Of all norms."""
    adds_one: bool
    """Whether the factors of norms are 1 + their weights."""
    is_gelu: bool
    adapters: tuple[Adapter | None, ...]
    """Of each linear layer."""


class _Kept(NamedTuple):
    """What the way back reads beside the weights."""

    hidden_TD: Tensor
    normed_TD: Tensor
    query_TF: Tensor
    key_TF: Tensor
    value_TF: Tensor
    attended_TF: Tensor
    between_TD: Tensor
    between_normed_TD: Tensor
    gate: Tensor
    up: Tensor
    gated: Tensor
    cosine_TW: Tensor
    sine_TW: Tensor


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        how: How,
        rotary: tuple[Tensor, Tensor],
        hidden_TD: Tensor,
        *weights: Tensor | None,
    ) -> Tensor:
        way = _Way(how, weights)
        made_TD, kept = way.forward(hidden_TD.contiguous(), rotary)
        ctx.save_for_backward(*weights, *kept, *way.normed_rows, *way.factors, *way.narrow)
        ctx.how, ctx.num_weights = how, len(weights)
        return made_TD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        saved = iter(ctx.saved_tensors)
        weights = tuple(islice(saved, ctx.num_weights))
        kept = _Kept(*islice(saved, len(_Kept._fields)))
        way = _WayBack(ctx.how, weights, ctx.needs_input_grad[2:])
        way.normed_rows, way.factors = (list(islice(saved, len(NORMS))) for _ in range(2))
        way.narrow = list(saved)
        hidden_TD = way.backward(gradients[0].contiguous(), kept)
        return None, None, hidden_TD, *way.gradients


def run(how: How, rotary: tuple[Tensor, Tensor], hidden_TD: Tensor, weights: Weights) -> Tensor:
    """Run a layer; (T, D).

    Args:
        how: How.
        rotary: Cosines and sines of the tokens' places, (T, W) in bfloat16.
        hidden_TD: What enters, in bfloat16.
        weights: Of the layer.
    """
    flat = [each for linear in weights.linears for each in linear]
    return _Layer.apply(how, rotary, hidden_TD, *flat, *weights.norms)


class _Way:
    """The way through a layer."""

    def __init__(self, how: How, weights: Sequence[Tensor | None]) -> None:
        self.normed_rows: list[_Rows] = [None] * len(NORMS)
        self.factors: list[_Rows] = [None] * len(NORMS)
        self.narrow: list[_Rows] = [None] * len(LINEARS)
        self._how = how
        flat = iter(weights)
        self._linears = [Linear(*islice(flat, len(Linear._fields))) for _ in LINEARS]
        self._norms = list(flat)

    def forward(self, hidden_TD: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, _Kept]:
        """Give what the layer makes, (T, D), and what the way back reads."""
        how = self._how
        _, normed_TD = self._add_and_norm(BEFORE_ATTENTION, hidden_TD)
        query_TF, key_TF = (
            native_training.turn(self._normed(norm, self._product(linear, normed_TD)), *rotary)
            for linear, norm in ((QUERY, OF_QUERY), (KEY, OF_KEY))
        )
        value_TF = self._product(VALUE, normed_TD)
        attended_TF = native_training.attend((query_TF, key_TF, value_TF), how.looks)
        made_TD = self._normed(AFTER_ATTENTION, self._product(OUTPUT, attended_TF))
        between_TD, between_normed_TD = self._add_and_norm(BEFORE_NETWORK, hidden_TD, made_TD)
        gate, up = (self._product(each, between_normed_TD) for each in (GATE, UP))
        gated = native_training.gates(gate, up, is_gelu=how.is_gelu)
        made_TD = self._normed(AFTER_NETWORK, self._product(DOWN, gated))
        kept = _Kept(
            *(hidden_TD, normed_TD, query_TF, key_TF, value_TF, attended_TF),
            *(between_TD, between_normed_TD, gate, up, gated, *rotary),
        )
        return between_TD + made_TD, kept

    def _product(self, place: int, inputs_TI: Tensor) -> Tensor:
        weight_OI, bias_O, *_ = self._linears[place]
        if weight_OI is not None:
            return functional.linear(inputs_TI, weight_OI, bias_O)
        adapter, factors = self._adapter(place)
        outputs_TO = adapter.product.forward(inputs_TI, bias_O)
        entering_TI = adapter.entering(inputs_TI)
        self.narrow[place] = native_training.adapt(
            entering_TI, factors, outputs_TO, scaling=adapter.scaling
        )
        return outputs_TO

    def _adapter(self, place: int) -> tuple[Adapter, tuple[Tensor, Tensor]]:
        adapter, (_, _, down_RI, up_OR) = self._how.adapters[place], self._linears[place]
        if adapter is None or down_RI is None or up_OR is None:
            raise ValueError(f"Linear layer {place} has neither a weight nor an adapter.")
        return adapter, (down_RI, up_OR)

    def _add_and_norm(
        self, place: int, inputs: Tensor, added: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        weight = self._norms[place]
        assert weight is not None  # noqa: S101 - layers without these norms are not taken over
        sums, outputs, self.factors[place] = native_training.add_and_norm(
            inputs, added, weight, epsilon=self._how.epsilon, adds_one=self._how.adds_one
        )
        self.normed_rows[place] = sums
        return sums, outputs

    def _normed(self, place: int, rows_TF: Tensor) -> Tensor:
        """Norm rows, or each head of them, where there is a norm."""
        weight = self._norms[place]
        if weight is None:
            return rows_TF
        return self._add_and_norm(place, rows_TF.view(-1, len(weight)))[1].view(rows_TF.shape)


class _WayBack(_Way):
    """The way back through a layer, with what the way forward has kept.

    `wants` says whether the gradient of what entered and of each weight is asked for.
    """

    def __init__(self, how: How, weights: Sequence[Tensor | None], wants: Sequence[bool]) -> None:
        super().__init__(how, weights)
        self.gradients: list[Tensor | None] = [None] * len(weights)
        """Of the weights; filled on the way."""
        self._wants = wants

    def backward(self, gradient_TD: Tensor, kept: _Kept) -> Tensor | None:
        """Give the gradient of what entered, if it is asked for; (T, D)."""
        made_TD = self._norm_back(AFTER_NETWORK, gradient_TD)
        gated = self._products_back(kept.gated, (DOWN, made_TD))
        gate, up = native_training.gates_backward(
            kept.gate, kept.up, gated, is_gelu=self._how.is_gelu
        )
        normed_TD = self._products_back(kept.between_normed_TD, (GATE, gate), (UP, up))
        between_TD = self._norm_back(BEFORE_NETWORK, normed_TD, beside=gradient_TD)
        made_TD = self._norm_back(AFTER_ATTENTION, between_TD)
        attended_TF = self._products_back(kept.attended_TF, (OUTPUT, made_TD))
        rows = kept.query_TF, kept.key_TF, kept.value_TF
        turned = native_training.attend_backward(rows, attended_TF, self._how.looks)
        rotary = kept.cosine_TW, kept.sine_TW
        query_TF, key_TF = (
            self._norm_back(norm, native_training.turn(each, *rotary, goes_back=True))
            for norm, each in ((OF_QUERY, turned[0]), (OF_KEY, turned[1]))
        )
        pairs = (QUERY, query_TF), (KEY, key_TF), (VALUE, turned[2])
        goes_on = self._wants[0] or self._trains(self._place_of_norm(BEFORE_ATTENTION))
        normed_TD = self._products_back(kept.normed_TD, *pairs, goes_on=goes_on)
        if not goes_on:
            return None
        return self._norm_back(BEFORE_ATTENTION, normed_TD, beside=between_TD)

    def _products_back(
        self, inputs_TI: Tensor, *gradients: tuple[int, Tensor], goes_on: bool = True
    ) -> Tensor:
        """Go back through linear layers with the same inputs; nothing is in what comes back if nobody asks for it."""
        made_TI: Tensor | None = None
        for place, gradient_TO in gradients:
            weight_OI = self._linears[place].weight
            if weight_OI is None:
                back_TI = self._adapter_back(place, inputs_TI, gradient_TO, goes_on=goes_on)
            else:
                back_TI = None
                first = place * len(Linear._fields)
                if self._trains(first):
                    self.gradients[first] = torch.mm(gradient_TO.t(), inputs_TI)
                if self._trains(first + 1):
                    self.gradients[first + 1] = gradient_TO.sum(0)
                if goes_on and made_TI is not None:
                    made_TI.addmm_(gradient_TO, weight_OI)
                elif goes_on:
                    made_TI = torch.mm(gradient_TO, weight_OI)
            if back_TI is not None:
                made_TI = back_TI if made_TI is None else made_TI.add_(back_TI)
        return inputs_TI if made_TI is None else made_TI

    def _adapter_back(
        self, place: int, inputs_TI: Tensor, gradient_TO: Tensor, *, goes_on: bool
    ) -> Tensor | None:
        (adapter, factors), narrow_TR = self._adapter(place), self.narrow[place]
        assert narrow_TR is not None  # noqa: S101 - kept on the way forward
        back_TI = adapter.product.backward(gradient_TO) if goes_on else None
        drops = back_TI is not None and adapter.dropout is not None
        adapted_TI = torch.zeros_like(inputs_TI) if drops else back_TI
        first = place * len(Linear._fields) + 2
        kept = (adapter.entering(inputs_TI), *factors, narrow_TR)
        self.gradients[first : first + 2] = native_training.adapt_backward(
            kept, gradient_TO, adapted_TI, scaling=adapter.scaling
        )
        if back_TI is None or adapted_TI is None or adapter.dropout is None:
            return back_TI
        return native_training.drop(adapted_TI, adapter.dropout, added=back_TI)

    def _norm_back(self, place: int, gradient: Tensor, *, beside: Tensor | None = None) -> Tensor:
        """Go back through a norm, where there is one, of rows or of their heads."""
        weight, rows, factors = self._norms[place], self.normed_rows[place], self.factors[place]
        if weight is None or rows is None or factors is None:
            return gradient
        number = self._place_of_norm(place)
        made, of_weight = native_training.norm_backward(
            (rows, weight, factors),
            gradient.view(rows.shape),
            beside,
            adds_one=self._how.adds_one,
            trains=self._trains(number),
        )
        self.gradients[number] = None if of_weight is None else of_weight.to(weight.dtype)
        return made.view(gradient.shape)

    def _place_of_norm(self, place: int) -> int:
        return len(LINEARS) * len(Linear._fields) + place

    def _trains(self, number: int) -> bool:
        return self._wants[1 + number]
