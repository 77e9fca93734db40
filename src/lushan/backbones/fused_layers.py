"""Decoder layers in two calls of `layers.cpp`, with the attention between them, and norms in one.

Layers are taken over only if they are built of parts that are known here and give, in a pass with random tokens, what they
gave before. What they add to each other then stays float32, where `transformers` rounds it to bfloat16 at every layer.

Shapes: T tokens, N texts, D width, H query heads, G key heads, R = H / G.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lushan.backbones import native, native_structures
from lushan.backbones.attention import is_causal_layer, packed_attention
from lushan.backbones.load import Backbone
from lushan.backbones.packed_linear import NativePacked, PackedLinear
from lushan.backbones.packing import Packing, Prefix
from lushan.backbones.slot_cache import SlotCache

_NORM_ROWS = 8
_ROUNDING = 2**-8
"""Of what a layer gives, when it is rounded to bfloat16."""
_LARGEST_DIFFERENCE = 0.03
"""Beyond that, as a share of what it adds: roundings in between make up to 0.02."""
_PROBE_LENGTHS = (1, 2, 5, 17)
_NORM_NAMES: dict[frozenset[str], tuple[str, str, str | None, str | None]] = {
    frozenset(each for each in names if each): names
    for names in (
        ("input_layernorm", "post_attention_layernorm", None, None),
        (
            *("input_layernorm", "pre_feedforward_layernorm"),
            *("post_attention_layernorm", "post_feedforward_layernorm"),
        ),
    )
}
"""What norms of a layer are called: before its attention and its network, after them."""
_ATTENTION_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj")
_NETWORK_LINEARS = ("gate_proj", "up_proj", "down_proj")
LINEAR_NAMES = (
    *(f"self_attn.{name}" for name in _ATTENTION_LINEARS),
    *(f"mlp.{name}" for name in _NETWORK_LINEARS),
)
"""Of a layer that can be fused, in the order of `native.LINEARS`."""
_IS_GELU = {"SiLU": False, "SiLUActivation": False, "GELUTanh": True}
"""By the class of the activation."""


class FusedNorm(nn.Module):
    """What takes the place of a root-mean-square norm: the same in one pass."""

    def __init__(self, norm: Any, epsilon: float, *, adds_one: bool) -> None:  # noqa: ANN401
        super().__init__()
        self.norm = norm
        self.epsilon, self.adds_one = epsilon, adds_one

    def forward(self, inputs: Tensor) -> Tensor:
        """Norm the last axis; what fused layers made comes as float32 and leaves as bfloat16."""
        is_wide = inputs.dtype == torch.float32
        if (
            torch.is_grad_enabled()
            or self.norm.weight.dtype != torch.bfloat16
            or not (is_wide or inputs.dtype == torch.bfloat16)
        ):
            return self.norm(inputs)
        return native.rms_norm(
            inputs, self.norm.weight, epsilon=self.epsilon, adds_one=self.adds_one
        )


def fused_norm(norm: nn.Module) -> FusedNorm | None:
    """Give what does the same as a norm, shown on random numbers; None where that is not known here."""
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    weight = getattr(norm, "weight", None)
    if not type(norm).__name__.endswith("RMSNorm") or not isinstance(epsilon, float):
        return None
    if not isinstance(weight, nn.Parameter) or weight.dtype != torch.bfloat16:
        return None
    if weight.dim() != 1 or len(weight) % 16 or native.why_missing():
        return None
    generator = torch.Generator().manual_seed(0)
    inputs_MD = torch.randn(_NORM_ROWS, len(weight), generator=generator).bfloat16()
    with torch.inference_mode():
        expected_MD = norm(inputs_MD)
        for adds_one in (False, True):
            fused = FusedNorm(norm, epsilon, adds_one=adds_one)
            # Sums in another order may round a number to its neighbour.
            if torch.allclose(fused(inputs_MD), expected_MD, rtol=0.008, atol=1e-6):
                return fused
    return None


class FusedLayer:
    """What takes the place of a decoder layer's `forward`."""

    def __init__(self, layer: Any, parts: "_Parts") -> None:  # noqa: ANN401
        self.own_forward = layer.forward
        self.adapted: Callable[[], native_structures.Adapted | None] = lambda: None
        """Tells what adapters add to this layer in the pass that runs."""
        self.parts = parts
        self.scaling: float = 1.0
        self.window: int | None = None
        self.leads: list[FusedLayer] = []
        """This layer and those that follow it with the same rotary positions, where it is the first of them: a decoding
        step runs them in one call."""
        self._attention = layer.self_attn
        self._norm = layer.input_layernorm.norm

    def __call__(self, hidden_states: Tensor, *arguments: Any, **options: Any) -> Tensor:  # noqa: ANN401
        """Run the layer; (1, T, D)."""
        packing, rotary = options.get("packing"), options.get("position_embeddings")
        if packing is None or rotary is None or arguments or not self._is_fused(rotary):
            if rotary is not None:
                rounded = (each.to(hidden_states.dtype) for each in rotary)
                options["position_embeddings"] = tuple(rounded)
            return self.own_forward(hidden_states, *arguments, **options)
        if isinstance(packing, SlotCache):
            return self._step(hidden_states, rotary, packing) if self.leads else hidden_states
        layer, residual_TD = self.parts.layer, _plain(hidden_states)
        cosines_TD, sines_TD = map(_plain, rotary)
        rows = native.before_attention(layer, residual_TD, (cosines_TD, sines_TD), self.adapted())
        attended_TF = self._attended(rows, packing).flatten(1)
        return native.after_attention(layer, attended_TF, residual_TD, self.adapted())[None]

    def _attended(self, rows: tuple[Tensor, Tensor, Tensor], packing: Packing) -> Tensor:
        """Let every document look at itself and at what it continues; (T, H, D)."""
        if any(group.branches for group in packing.groups):
            query, key, value = (each[None].transpose(1, 2) for each in rows)
            how = {"packing": packing, "scaling": self.scaling, "sliding_window": self.window}
            attended_1THD, _ = packed_attention(self._attention, query, key, value, None, **how)
            return attended_1THD[0].contiguous()
        if packing.record is not None:
            packing.record.keys[self.number] = rows[1].transpose(0, 1)
            packing.record.values[self.number] = rows[2].transpose(0, 1)
        parts = [
            native.attend_documents(
                tuple(each[group.start : group.end] for each in rows),  # pyright: ignore[reportArgumentType] - three
                group.lengths_N,
                group.prefix and _of_layer(group.prefix, self.number),
                causal=is_causal_layer(self._attention),
                scaling=self.scaling,
                window=self.window,
            )
            for group in packing.groups
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _step(self, hidden_1ND: Tensor, rotary: tuple[Tensor, Tensor], cache: SlotCache) -> Tensor:
        layers = [
            native.InStep(
                each.parts.layer,
                each.adapted(),
                cache.tables(each.number),
                each.window,
                each.scaling,
            )
            for each in self.leads
        ]
        cosines_ND, sines_ND = map(_plain, rotary)
        residual_ND = _plain(hidden_1ND)
        return native.step(layers, residual_ND, (cosines_ND, sines_ND), cache.positions)[None]

    @property
    def number(self) -> int:
        """Of the layer, from 0 on."""
        return self._attention.layer_idx

    def _is_fused(self, rotary: tuple[Tensor, Tensor]) -> bool:
        return (
            not torch.is_grad_enabled()
            # An explanation computes in float32.
            and self._norm.weight.dtype == torch.bfloat16
            and rotary[0].shape[-1] == self.parts.layer.head_width
        )


def _of_layer(prefix: Prefix, layer: int) -> tuple[Tensor, Tensor]:
    key_GPD, value_GPD = prefix.keys[layer], prefix.values[layer]
    if key_GPD.stride() != value_GPD.stride() or key_GPD.stride(2) != 1:
        key_GPD, value_GPD = key_GPD.contiguous(), value_GPD.contiguous()
    return key_GPD, value_GPD


def _plain(each_1TD: Tensor) -> Tensor:
    return each_1TD[0].float().contiguous()


class _Parts(NamedTuple):
    """A layer as the library is told of it."""

    layer: native_structures.Layer
    kept: list[Tensor]
    """Whose addresses it holds."""


class KnownParts(NamedTuple):
    """What a decoder layer is built of."""

    linears: list[Any]
    """In the order of `LINEAR_NAMES`."""
    norms: list[Any]
    """Before its attention and its network, after them, of each query's and key's head; None where there is none."""
    is_gelu: bool


def known_parts(layer: Any) -> KnownParts | None:  # noqa: ANN401 - a layer of any architecture
    """Take a layer apart; None where it has parts that are not known here."""
    norms: dict[str, Any] = dict(layer.named_children())
    attention, network = norms.pop("self_attn", None), norms.pop("mlp", None)
    names = _NORM_NAMES.get(frozenset(norms))
    if names is None or attention is None or network is None:
        return None
    rotary = getattr(getattr(attention, "config", None), "rope_parameters", None) or {}
    if rotary.get("llama_4_scaling_beta"):  # of queries, far behind the places that are tried
        return None
    heads, gated = dict(attention.named_children()), dict(network.named_children())
    is_gelu = _IS_GELU.get(type(gated.pop("act_fn", None)).__name__)
    head_norms = [heads.pop(name, None) for name in ("q_norm", "k_norm")]
    linears = [heads.pop(name, None) for name in _ATTENTION_LINEARS]
    linears += [gated.pop(name, None) for name in _NETWORK_LINEARS]
    if heads or gated or is_gelu is None or None in linears:
        return None
    chosen = [None if name is None else norms[name] for name in names]
    return KnownParts(linears, chosen + head_norms, is_gelu)


def _parts_of(layer: Any) -> _Parts | None:  # noqa: ANN401
    """Describe a layer; None where it has parts that are not known here."""
    parts = known_parts(layer)
    if parts is None or not all(map(_is_known, parts.linears)):
        return None
    given = [each for each in parts.norms if each is not None]
    if not all(isinstance(each, FusedNorm) for each in given):
        return None
    if len({(each.epsilon, each.adds_one) for each in given}) > 1:
        return None
    head_width = int(layer.self_attn.head_dim)
    return _described(parts.linears, parts.norms, head_width, is_gelu=parts.is_gelu)


def _is_known(linear: Any) -> bool:  # noqa: ANN401
    return (
        isinstance(linear, PackedLinear)
        and isinstance(linear.product, NativePacked)
        and not (linear.in_features % 32 or linear.out_features % 16)
    )


def _described(
    linears: Sequence[Any], norms: Sequence[Any], head_width: int, *, is_gelu: bool
) -> _Parts | None:
    """Tell the library of a layer; None where heads are not as wide as it can turn and norm them."""
    widths = [linears[0].in_features] * 4 + [head_width] * 2
    if head_width % 32 or any(
        norm is not None and len(norm.norm.weight) != width
        for norm, width in zip(norms, widths, strict=True)
    ):
        return None
    biases = [None if each.bias is None else each.bias.detach().float() for each in linears]
    matrices = [each.product.matrix(bias) for each, bias in zip(linears, biases, strict=True)]
    weights = [None if each is None else each.norm.weight for each in norms]
    query, key = linears[:2]
    layer = native_structures.Layer(
        *matrices,
        *(None if each is None else each.data_ptr() for each in weights),
        query.in_features,
        query.out_features // head_width,
        key.out_features // head_width,
        head_width,
        linears[-1].in_features,
        norms[0].adds_one,
        is_gelu,
        norms[0].epsilon,
    )
    return _Parts(layer, [each for each in (*biases, *weights) if each is not None])


def has_fused_layers(backbone: Backbone) -> bool:
    """Whether the layers of a model run in two calls each."""
    return isinstance(backbone.layers[0].forward, FusedLayer)


def fuse_layers(backbone: Backbone) -> None:
    """Have the decoder layers of a packed model run in two calls each.

    They do where all are built of parts that are known here, and give what they gave before.

    Args:
        backbone: Changed in place.
    """
    core, layers = backbone.core, list(backbone.layers)
    turns = [each for each in core.modules() if type(each).__name__.endswith("RotaryEmbedding")]
    if backbone.packing_mode != "packed" or not isinstance(getattr(core, "norm", None), FusedNorm):
        return
    described = [_parts_of(each) for each in layers]
    if not turns or None in described:
        return
    fused = [FusedLayer(*pair) for pair in zip(layers, described, strict=True)]  # pyright: ignore[reportArgumentType]
    calls = _observed(backbone, layers, fused)
    if not (calls and all(_gives_the_same(*pair) for pair in zip(fused, calls, strict=True))):
        return
    for layer, each in zip(layers, fused, strict=True):
        layer.forward = each
    for turn in turns:
        turn.forward = partial(_turned, turn.forward)
    _let_lead(fused, calls)


def _turned(
    own_forward: Callable[..., Any], hidden: Tensor, *where: object, **named: object
) -> Any:  # noqa: ANN401
    """Give cosines and sines as they are computed, in float32; layers that want them rounded round them."""
    return own_forward(hidden.new_empty(0, dtype=torch.float32), *where, **named)


class _Probe(SlotCache):
    """Notes how layers attend."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[int, tuple[float, int | None]] = {}

    def attend(
        self,
        layer: int,
        rows: tuple[Tensor, Tensor, Tensor],
        *,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        """Let the new token of every text look at its text."""
        self.asked[layer] = scaling, window
        return super().attend(layer, rows, scaling=scaling, window=window)


class _Observed(NamedTuple):
    """A layer's part in a pass."""

    given: Tensor
    options: dict[str, Any]
    made: Tensor


def _observed(
    backbone: Backbone, layers: Sequence[nn.Module], fused: Sequence[FusedLayer]
) -> list[_Observed]:
    """Watch the layers in a decoding step after random texts, and note how they attend; empty where that is not clear."""
    probe, generator = _Probe(), torch.Generator().manual_seed(0)
    for length in _PROBE_LENGTHS:
        sizes = [
            (each.parts.layer.num_key_heads, length, each.parts.layer.head_width) for each in fused
        ]
        probe.add({
            each.number: tuple(torch.randn(size, generator=generator).bfloat16() for _ in range(2))  # pyright: ignore[reportArgumentType]
            for each, size in zip(fused, sizes, strict=True)
        })
    calls: list[_Observed] = []
    hooks = [
        each.register_forward_hook(
            lambda _, given, options, made: calls.append(_Observed(given[0], options, made)),
            with_kwargs=True,
        )
        for each in layers
    ]
    token_ids_1N = torch.arange(len(_PROBE_LENGTHS))[None]
    try:
        with torch.inference_mode():
            backbone.next_states(token_ids_1N, probe)
    finally:
        for hook in hooks:
            hook.remove()
    if len(calls) != len(fused) or set(probe.asked) != {each.number for each in fused}:
        return []
    for each in fused:
        each.scaling, each.window = probe.asked[each.number]
    return calls


def _gives_the_same(fused: FusedLayer, call: _Observed) -> bool:
    fused.leads = [fused]
    with torch.inference_mode():
        return _is_near(fused(call.given, **call.options), call.given, call.made)


def _let_lead(fused: Sequence[FusedLayer], calls: Sequence[_Observed]) -> None:
    """Put layers together that follow each other and are given the same rotary positions."""
    leader: FusedLayer | None = None
    last: object = None
    for each, call in zip(fused, calls, strict=True):
        rotary = call.options["position_embeddings"]
        each.leads = []
        if leader is None or rotary is not last:
            leader, last = each, rotary
        leader.leads.append(each)


def _is_near(found: Tensor, given: Tensor, expected: Tensor) -> bool:
    expected, added = expected.float(), expected.float() - given.float()
    difference = (found.float() - expected).abs() - _ROUNDING * expected.abs()
    return bool(difference.clamp(min=0).norm() <= _LARGEST_DIFFERENCE * added.norm())
