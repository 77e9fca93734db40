"""Decoder layers while they are trained: linear layers as they are, and what stands between them in one pass each.

Layers are taken over only if they are built of parts that are known here and give what they gave before, forward and
backward. What is computed, and where it is rounded, stays that of `transformers`, but for roundings that are left out.

Shapes: T tokens, D width, F = heads * width of a head, W that width.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lushan.backbones import layer_pass, native_training
from lushan.backbones.attention import is_causal_layer, packed_attention
from lushan.backbones.fused_layers import FusedNorm, fused_norm, known_parts
from lushan.backbones.load import Backbone
from lushan.backbones.lora import in_one_piece
from lushan.backbones.native_training import Dropout, Looks
from lushan.backbones.packing import Packing, plan_packing
from lushan.backbones.slot_cache import SlotCache
from lushan.errors import ModelError

_PROBE_LENGTHS = (5, 12)
_LARGEST_DIFFERENCE = 0.03
"""As a share of the norm, of what a layer adds and of each gradient: roundings in between were seen to make up to 0.015."""


class _AddAndNorm(torch.autograd.Function):
    """The sum of two rows, and that normed."""

    @staticmethod
    def forward(  # noqa: PLR0917 - the signature is that of torch
        ctx: Any,  # noqa: ANN401
        inputs_TD: Tensor,
        added_TD: Tensor | None,
        weight_D: Tensor,
        epsilon: float,
        adds_one: bool,
    ) -> tuple[Tensor, Tensor]:
        sums_TD, outputs_TD, factors_T = native_training.add_and_norm(
            inputs_TD.contiguous(),
            None if added_TD is None else added_TD.contiguous(),
            weight_D,
            epsilon=epsilon,
            adds_one=adds_one,
        )
        ctx.save_for_backward(sums_TD, weight_D, factors_T)
        ctx.adds_one = adds_one
        ctx.set_materialize_grads(False)
        return sums_TD, outputs_TD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        beside_TD, gradient_TD = gradients
        adds = ctx.needs_input_grad[1]
        if gradient_TD is None:  # nobody asked what was normed
            return beside_TD, beside_TD if adds else None, None, None, None
        sums_TD, weight_D, factors_T = ctx.saved_tensors
        made_TD, of_weight_D = native_training.norm_backward(
            (sums_TD, weight_D, factors_T),
            gradient_TD.contiguous(),
            None if beside_TD is None else beside_TD.contiguous(),
            adds_one=ctx.adds_one,
            trains=ctx.needs_input_grad[2],
        )
        of_weight_D = None if of_weight_D is None else of_weight_D.to(weight_D.dtype)
        return made_TD, made_TD if adds else None, of_weight_D, None, None


class _Gates(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, is_gelu: bool) -> Tensor:  # noqa: ANN401
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        ctx.is_gelu = is_gelu
        return native_training.gates(gate, up, is_gelu=is_gelu)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        gate, up = ctx.saved_tensors
        back = gradients[0].contiguous()
        return *native_training.gates_backward(gate, up, back, is_gelu=ctx.is_gelu), None


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_TF: Tensor, cosine_TW: Tensor, sine_TW: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(cosine_TW, sine_TW)
        return native_training.turn(rows_TF.contiguous(), cosine_TW, sine_TW)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        back_TF = native_training.turn(
            gradients[0].contiguous(), *ctx.saved_tensors, goes_back=True
        )
        return back_TF, None, None


class TrainedLayer:
    """What takes the place of a decoder layer's `forward`."""

    def __init__(self, layer: Any, norms: Sequence[FusedNorm | None], *, is_gelu: bool) -> None:  # noqa: ANN401
        self.own_forward = layer.forward
        self.scaling: float = 1.0
        self.window: int | None = None
        self._layer, self._attention, self._network = layer, layer.self_attn, layer.mlp
        self._norms, self._is_gelu = norms, is_gelu
        parts = known_parts(layer)
        self._linears: list[Any] = [] if parts is None else parts.linears
        kinds = {(each.epsilon, each.adds_one) for each in norms if each is not None}
        self._kind = kinds.pop() if len(kinds) == 1 else None

    @property
    def number(self) -> int:
        """Of the layer, from 0 on."""
        return self._attention.layer_idx

    def __call__(self, hidden_states: Tensor, *arguments: Any, **options: Any) -> Tensor:  # noqa: ANN401
        """Run the layer; (1, T, D)."""
        packing, rotary = options.get("packing"), options.get("position_embeddings")
        if packing is None or rotary is None or arguments or not self._is_fused(hidden_states):
            return self.own_forward(hidden_states, *arguments, **options)
        return checkpointed(self._layer, partial(self._run, packing=packing, rotary=rotary))(
            hidden_states
        )

    def _is_fused(self, hidden_1TD: Tensor) -> bool:
        # An explanation computes in float32, and a compiler joins what stands between products itself.
        return (
            hidden_1TD.dtype == torch.bfloat16
            and hidden_1TD.device.type == "cpu"  # layers may have moved since they were tried
            and self._layer.input_layernorm.weight.dtype == torch.bfloat16
            and not torch.compiler.is_compiling()
        )

    def _run(
        self, hidden_1TD: Tensor, *, packing: Packing, rotary: tuple[Tensor, Tensor]
    ) -> Tensor:
        cosine_TW, sine_TW = (each[0].to(torch.bfloat16).contiguous() for each in rotary)
        hidden_TD = hidden_1TD.squeeze(0)
        if (made := self._run_whole(hidden_TD, packing, (cosine_TW, sine_TW))) is not None:
            return made[None]
        attention, network = self._attention, self._network
        before_attention, before_network, after_attention, after_network, *_ = self._norms
        residual_TD, normed_TD = _add_and_norm(hidden_TD, None, before_attention)
        rows = [each(normed_TD) for each in (attention.q_proj, attention.k_proj, attention.v_proj)]
        attended_TF = self._attended(rows, packing, (cosine_TW, sine_TW))
        made_TD = _normed(attention.o_proj(attended_TF), after_attention)
        residual_TD, normed_TD = _add_and_norm(residual_TD, made_TD, before_network)
        gate, up = network.gate_proj(normed_TD), network.up_proj(normed_TD)
        made_TD = network.down_proj(_Gates.apply(gate, up, self._is_gelu))
        return (residual_TD + _normed(made_TD, after_network))[None]

    def _run_whole(
        self, hidden_TD: Tensor, packing: Packing, rotary: tuple[Tensor, Tensor]
    ) -> Tensor | None:
        """Run the layer in one function; None where a document is long, or a linear layer does more than is known there."""
        group = packing.all_short if isinstance(packing, Packing) else None
        if group is None or self._kind is None or self._dropout:
            return None
        pairs = [_linear_of(each) for each in self._linears]
        known = [each for each in pairs if each is not None]
        if len(known) < len(pairs):
            return None
        width, causal = self._attention.head_dim, is_causal_layer(self._attention)
        looks = Looks(group.lengths_N, width, causal, self.window, self.scaling)
        adapters = tuple(adapter for _, adapter in known)
        how = layer_pass.How(looks, *self._kind, self._is_gelu, adapters)
        norms = [None if each is None else each.norm.weight for each in self._norms]
        weights = layer_pass.Weights([linear for linear, _ in known], norms)
        return layer_pass.run(how, rotary, hidden_TD, weights)

    @property
    def _dropout(self) -> float:
        """Of what attention looks at."""
        return getattr(self._attention, "attention_dropout", 0.0) if self._attention.training else 0

    def _attended(
        self, rows: Sequence[Tensor], packing: Packing, rotary: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Let every document look at itself; (T, F)."""
        width = self._attention.head_dim
        turned = [
            _Turn.apply(_normed(each_TF, norm), *rotary)
            for each_TF, norm in zip(rows[:2], self._norms[4:], strict=True)
        ]
        heads = (each.view(1, len(each), -1, width).transpose(1, 2) for each in (*turned, rows[2]))
        attended_1THW, _ = packed_attention(
            self._attention,
            *heads,
            attention_mask=None,
            packing=packing,
            scaling=self.scaling,
            sliding_window=self.window,
            dropout=self._dropout,
        )
        return attended_1THW.flatten(2).squeeze(0)


def _linear_of(linear: Any) -> tuple[layer_pass.Linear, layer_pass.Adapter | None] | None:  # noqa: ANN401
    """Give the tensors of a linear layer with at most an adapter; None where it does something else."""
    if linear._forward_hooks or linear._forward_pre_hooks:
        return None
    if type(linear) is nn.Linear and "forward" not in vars(linear):
        return layer_pass.Linear(linear.weight, linear.bias), None
    parts = in_one_piece(linear)
    if parts is None or not native_training.can_adapt(parts.down_RI, parts.down_RI, parts.up_OR):
        return None
    adapted = layer_pass.Linear(None, parts.bias_O, parts.down_RI, parts.up_OR)
    dropout = Dropout.drawn(parts.dropout) if parts.dropout else None
    return adapted, layer_pass.Adapter(parts.product, parts.scaling, dropout)


def _add_and_norm(
    inputs_TD: Tensor, added_TD: Tensor | None, norm: FusedNorm | None
) -> tuple[Tensor, Tensor]:
    assert norm is not None, "layers without these norms are not taken over"  # noqa: S101 - ours
    return _AddAndNorm.apply(inputs_TD, added_TD, norm.norm.weight, norm.epsilon, norm.adds_one)


def _normed(inputs_TF: Tensor, norm: FusedNorm | None) -> Tensor:
    """Norm rows, or each head of them, where there is a norm."""
    if norm is None:
        return inputs_TF
    rows = inputs_TF.reshape(-1, len(norm.norm.weight))
    return _add_and_norm(rows, None, norm)[1].view(inputs_TF.shape)


def checkpointed(layer: Any, forward: Callable[..., Any]) -> Callable[..., Any]:  # noqa: ANN401
    """Have a forward pass that takes the place of a layer's compute twice where the layer would."""

    def run(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        if layer.training and getattr(layer, "gradient_checkpointing", False):
            return layer._gradient_checkpointing_func(partial(forward, **options), *arguments)
        return forward(*arguments, **options)

    return run


def compute_layers_twice(backbone: Backbone) -> None:
    """Keep only what enters each layer that is trained, and compute the rest again for the backward pass.

    Raises:
        ModelError: If `transformers` cannot do that in this architecture.
    """
    model = backbone.plain_model
    if not model.supports_gradient_checkpointing:
        raise ModelError(
            f"`{backbone.facts.model_type}` models have no gradient checkpointing. "
            "Set `engine.gradient_checkpointing=false`."
        )
    name = "activation_checkpointing_enable"  # earlier versions of transformers know the other name
    enable = getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")
    enable({"use_reentrant": False})
    # It also has embeddings give gradients, for a kind of checkpointing that is not used here: they would make the
    # backward pass go through frozen layers.
    model.disable_input_require_grads()


def has_trained_layers(backbone: Backbone) -> bool:
    """Whether what stands between the products of a model's layers runs in one pass each."""
    return isinstance(vars(backbone.layers[0]).get("forward"), TrainedLayer)


def fuse_trained_layers(backbone: Backbone) -> None:
    """Have what stands between the products of a model's layers run in one pass each.

    It does where all layers are built of parts that are known here, and give what they gave before.

    Args:
        backbone: Ready to train; changed in place.
    """
    layers = list(backbone.layers)
    if backbone.packing_mode != "packed" or not _can_train(backbone):
        return
    trained = [found for each in layers if (found := _taken_over(each)) is not None]
    if len(trained) < len(layers):
        return
    options = _observed(backbone, layers, trained)
    kinds = {
        (_told(layer), each.scaling, each.window): (layer, each)
        for layer, each in zip(layers, trained, strict=True)
    }
    if options is None or not all(_gives_the_same(*pair, options) for pair in kinds.values()):
        return
    for layer, each in zip(layers, trained, strict=True):
        layer.forward = each


def _told(layer: Any) -> tuple[object, ...]:  # noqa: ANN401 - a layer of any architecture
    """Say what a layer is told of itself: those of which all is equal compute the same, and one is tried for them."""
    parts = layer, layer.self_attn, layer.mlp
    return tuple(
        (type(part), name, value)
        for part in parts
        for name, value in sorted(vars(part).items())
        if name != "layer_idx" and isinstance(value, bool | int | float | str)
    )


def leave_trained_layers(backbone: Backbone) -> None:
    """Have layers run as `transformers` has them again, as they do in every process that loads the model.

    Args:
        backbone: Changed in place, if its layers were taken over.
    """
    if has_trained_layers(backbone):
        for layer in backbone.layers:
            del layer.forward


def _can_train(backbone: Backbone) -> bool:
    width = backbone.core.config.hidden_size
    return width % 16 == 0 and native_training.can_train(next(backbone.core.parameters()))


def _taken_over(layer: Any) -> TrainedLayer | None:  # noqa: ANN401 - a layer of any architecture
    parts = known_parts(layer)
    if parts is None or not isinstance(layer, GradientCheckpointingLayer):
        return None
    norms = [None if each is None else fused_norm(each) for each in parts.norms]
    if [each is None for each in norms] != [each is None for each in parts.norms]:
        return None
    if any(_drops_by_itself(each) for each in (layer, layer.self_attn, layer.mlp)):
        return None
    inner_width = parts.linears[-1].in_features
    if getattr(layer.self_attn, "head_dim", 1) % 32 or inner_width % 16:
        return None
    return TrainedLayer(layer, norms, is_gelu=parts.is_gelu)


def _drops_by_itself(module: Any) -> bool:  # noqa: ANN401 - a part of any architecture
    """Whether a module drops numbers without a part that does, as none of ours would."""
    return any(
        "dropout" in name and name != "attention_dropout" and bool(value)
        for name, value in vars(module).items()
    )


class _Probe(SlotCache):
    """Notes how layers attend."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[int, tuple[float, int | None]] = {}

    def begin_step(self) -> Tensor:
        """Give the places of the tokens."""
        return torch.cat([torch.arange(each) for each in _PROBE_LENGTHS])[None]

    def attend(
        self,
        layer: int,
        rows: tuple[Tensor, Tensor, Tensor],
        *,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        """Give what leads on, whatever it is."""
        self.asked[layer] = scaling, window
        return rows[0].transpose(1, 2)


def _observed(
    backbone: Backbone, layers: Sequence[nn.Module], trained: Sequence[TrainedLayer]
) -> dict[str, Any] | None:
    """Give what the first layer is given beside its rows, and note how all attend; None where that is not clear."""
    probe, found = _Probe(), list[dict[str, Any]]()
    hook = layers[0].register_forward_hook(
        lambda _, __, options, ___: found.append(options), with_kwargs=True
    )
    try:
        with torch.no_grad():
            backbone.next_states(torch.arange(sum(_PROBE_LENGTHS))[None], probe)
    finally:
        hook.remove()
    if not found or set(probe.asked) != {each.number for each in trained}:
        return None
    for each in trained:
        each.scaling, each.window = probe.asked[each.number]
    return found[0]


@contextmanager
def _without_dropout(layer: nn.Module) -> Iterator[None]:
    """While this lasts, a layer runs as it does when it answers."""
    trained = [each for each in layer.modules() if each.training]
    layer.eval()
    try:
        yield
    finally:
        for each in trained:
            each.training = True


def _gives_the_same(layer: Any, trained: TrainedLayer, options: dict[str, Any]) -> bool:  # noqa: ANN401
    options = options | {"packing": plan_packing(list(_PROBE_LENGTHS))}
    width = layer.self_attn.q_proj.in_features
    generator = torch.Generator().manual_seed(0)
    rows_1TD, back_1TD = (
        torch.randn(1, sum(_PROBE_LENGTHS), width, generator=generator).bfloat16() for _ in range(2)
    )
    rows_1TD.requires_grad_()
    weights = [each for each in layer.parameters() if each.requires_grad]
    tried: list[list[Tensor]] = []
    with _without_dropout(layer):
        for forward in (trained.own_forward, trained):
            made_1TD = forward(rows_1TD, **options)
            gradients = torch.autograd.grad(made_1TD, [rows_1TD, *weights], back_1TD)
            tried.append([made_1TD.detach() - rows_1TD.detach(), *gradients])
    return all(
        bool((one.float() - two.float()).norm() <= _LARGEST_DIFFERENCE * one.float().norm())
        for one, two in zip(*tried, strict=True)
    )
