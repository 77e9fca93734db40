"""One set of layers for many models: every row of a pass is adapted by the adapter of its own document.

The product with the frozen weight is taken once for all rows; what an adapter adds is added to its rows, in place. So
models that were tuned from one base differ in a few megabytes, and what they are asked runs through the layers together.
Products with few rows cost little more than their call: where that is cheaper, all adapters are multiplied at once.

Source: Chen et al. 2023 (Punica), https://arxiv.org/abs/2310.18547; Sheng et al. 2023 (S-LoRA),
https://arxiv.org/abs/2311.03285. Shapes: T rows of the flat axis, I inputs, O outputs, R rank.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D

from lushan.backbones import native_structures
from lushan.backbones.fused_layers import LINEAR_NAMES, FusedLayer
from lushan.backbones.load import MODEL_CLASSES, AnswerLayer, Backbone, Call
from lushan.backbones.lora import frozen_product
from lushan.backbones.packed_linear import PackedLinear
from lushan.backbones.quiet import quiet_transformers
from lushan.backbones.token_models import class_options, know_token_model
from lushan.errors import ModelError

_SPARED = {torch.bfloat16: 4096, torch.float32: 256}
"""Rows times ranks that may be computed in vain in order to call one product less; measured on an AMD EPYC 9005."""


class LowRank(NamedTuple):
    """What an adapter adds to one linear layer: `inputs @ down.T @ up`, its scale in `up`."""

    down_RI: Tensor
    up_RO: Tensor


@dataclass(frozen=True, eq=False)
class Adapter:
    """What a tuned model adds to the linear layers of its base."""

    layers: Mapping[str, LowRank]
    """By the layer's name in the core."""
    folder: Path | None = None
    """Where they are stored."""

    @property
    def num_bytes(self) -> int:
        """Memory of its matrices."""
        return sum(each.nbytes for pair in self.layers.values() for each in pair)

    @cached_property
    def rank(self) -> int:
        """The largest of its ranks."""
        return max((len(each.down_RI) for each in self.layers.values()), default=0)


class _Addition(Protocol):
    """What the adapters of a pass add to its rows."""

    def add(self, name: str, inputs_TI: Tensor, outputs_TO: Tensor) -> None:
        """Add to the outputs of a layer, in place."""
        ...


class _OneByOne:
    """The adapters of a pass, each with products of its own: nothing is computed in vain."""

    def __init__(self, rows: Mapping[Adapter, Sequence[range]], device: torch.device) -> None:
        self._parts = [(adapter, _index(own, device)) for adapter, own in rows.items()]

    def add(self, name: str, inputs_TI: Tensor, outputs_TO: Tensor) -> None:
        """Add to the outputs of a layer, in place."""
        for adapter, rows in self._parts:
            added = adapter.layers.get(name)
            if added is None:
                continue
            down_RI, up_RO = (
                each.to(inputs_TI.dtype) for each in added
            )  # float32 in an explanation
            narrow_TR = inputs_TI[rows] @ down_RI.T
            if isinstance(rows, slice):
                outputs_TO[rows].addmm_(narrow_TR, up_RO)
            else:
                outputs_TO.index_add_(0, rows, narrow_TR @ up_RO)


def _index(ranges: Sequence[range], device: torch.device) -> slice | Tensor:
    """Rows of an adapter: a slice where they stand together."""
    if len(ranges) == 1:
        return slice(ranges[0].start, ranges[0].stop)
    return torch.tensor([row for each in ranges for row in each], device=device)


def _rows_of(
    adapters: Sequence[Adapter | None], num_rows: Sequence[int]
) -> tuple[dict[Adapter, list[range]], int]:
    """Give the rows of each adapter, and how many there are in all."""
    rows: dict[Adapter, list[range]] = {}
    start = 0
    for adapter, size in zip(adapters, num_rows, strict=True):
        own = range(start, start + size)
        start = own.stop
        if adapter is None:
            continue
        known = rows.setdefault(adapter, [])
        if known and known[-1].stop == own.start:
            known[-1] = range(known[-1].start, own.stop)
        else:
            known.append(own)
    return rows, start


def _owners(rows: Mapping[Adapter, Sequence[range]], num_rows: int) -> list[int]:
    """Give the number of each row's adapter; -1 for none."""
    owners = [-1] * num_rows
    for number, own in enumerate(rows.values()):
        for each in own:
            owners[each.start : each.stop] = [number] * len(each)
    return owners


class _StackedLayer(NamedTuple):
    """One layer of several adapters."""

    ranks: tuple[int, ...]
    """Of each adapter; 0 where it leaves the layer as it is."""
    matrices: LowRank
    """Those of all, below each other."""


class _Stack:
    """The matrices of several adapters as one; as large as they are."""

    def __init__(self, adapters: tuple[Adapter, ...]) -> None:
        self.adapters = adapters
        self._layers: dict[str, _StackedLayer | None] = {}

    def layer(self, name: str) -> _StackedLayer | None:
        """Give what is added to a layer, if anything; made when it is first needed."""
        if name not in self._layers:
            found = [each.layers.get(name) for each in self.adapters]
            ranks = tuple(0 if each is None else len(each.down_RI) for each in found)
            pairs = [each for each in found if each is not None]
            downs, ups = [each.down_RI for each in pairs], [each.up_RO for each in pairs]
            self._layers[name] = (
                _StackedLayer(ranks, LowRank(torch.cat(downs), torch.cat(ups))) if pairs else None
            )
        return self._layers[name]


class _Stacked:
    """The adapters of a pass as one: all rows meet all of them, and what is not theirs is taken out between."""

    def __init__(
        self, stack: _Stack, rows: Mapping[Adapter, Sequence[range]], num_rows: int
    ) -> None:
        self._owners_T1 = torch.tensor(_owners(rows, num_rows))[:, None]
        self._stack = stack
        self._masks: dict[tuple[int, ...], Tensor] = {}

    def add(self, name: str, inputs_TI: Tensor, outputs_TO: Tensor) -> None:
        """Add to the outputs of a layer, in place."""
        layer = self._stack.layer(name)
        if layer is None:
            return
        ranks, added = layer
        narrow_TR = inputs_TI @ added.down_RI.T
        if ranks not in self._masks:
            columns_R = torch.arange(len(ranks)).repeat_interleave(torch.tensor(ranks))
            self._masks[ranks] = (self._owners_T1 == columns_R).to(narrow_TR)
        outputs_TO.addmm_(narrow_TR.mul_(self._masks[ranks]), added.up_RO)


def has_plain_layers(core: nn.Module) -> bool:
    """Whether all linear layers of a core do nothing but multiply, so that `ManyAdapters` computes what they do."""
    plain = {kind.forward for kind in (nn.Linear, Conv1D, PackedLinear)}
    linear = (each for each in core.modules() if isinstance(each, nn.Linear | Conv1D))
    return all(type(each).forward in plain for each in linear)


class _Owned(NamedTuple):
    """Which adapter each row of a pass has."""

    adapters: "_Told"
    owners_T: Tensor
    """Number of the adapter; -1 for none."""


class _Told:
    """Several adapters as fused layers are told of them; made when a layer first asks."""

    def __init__(self, adapters: tuple[Adapter, ...]) -> None:
        self.adapters = adapters
        self._layers: dict[str, Any] = {}

    def layer(self, name: str) -> Any:  # noqa: ANN401 - an array of the library
        """Give the matrices of a decoder layer, adapter by adapter."""
        if name not in self._layers:
            found = [
                each.layers.get(f"{name}.{linear}")
                for each in self.adapters
                for linear in LINEAR_NAMES
            ]
            self._layers[name] = (native_structures.LowRank * len(found))(
                *(
                    (None, None, 0)
                    if each is None
                    else (each.down_RI.data_ptr(), each.up_RO.data_ptr(), len(each.down_RI))
                    for each in found
                )
            )
        return self._layers[name]


class _Pass:
    """The pass that runs now."""

    addition: _Addition | None = None
    owned: _Owned | None = None

    def adapted(self, name: str) -> native_structures.Adapted | None:
        """Tell a fused layer what is added to it."""
        if self.owned is None:
            return None
        return native_structures.Adapted(
            self.owned.owners_T.data_ptr(), self.owned.adapters.layer(name)
        )


class ManyAdapters:
    """The linear layers of a core, to which each pass may bring the adapters of its rows."""

    def __init__(self, core: nn.Module) -> None:
        """Take over the layers; without `apply` they compute what they did.

        Args:
            core: Changed in place; packed or not. Its weights must not change any more.
        """
        self._pass = _Pass()
        self._stack: _Stack | None = None
        self._told: _Told | None = None
        self._device = next(core.parameters()).device
        self._layers = {
            name: _Layer(self._pass, name, layer)
            for name, layer in core.named_modules()
            if isinstance(layer, nn.Linear | Conv1D | PackedLinear)
        }
        for name, forward in self._layers.items():
            setattr(core.get_submodule(name), "forward", forward)  # noqa: B010 - not typed to be replaced
        self._has_fused_layers = False
        for name, layer in core.named_modules():
            if isinstance(layer.forward, FusedLayer):
                self._has_fused_layers = True
                layer.forward.adapted = partial(self._pass.adapted, name)
        self._dtype = next(core.parameters()).dtype
        self._spared = _SPARED.get(self._dtype, 0)

    @property
    def num_bytes(self) -> int:
        """Memory beside the weights of the core."""
        return sum(each.num_bytes_beside for each in self._layers.values())

    @contextmanager
    def apply(self, adapters: Sequence[Adapter | None], num_rows: Sequence[int]) -> Iterator[None]:
        """While this lasts, a pass adds to the rows of each document what its adapter makes of them.

        Args:
            adapters: One for each document, in the order of the flat axis; None leaves the base as it is.
            num_rows: How many rows each document has.
        """
        before = self._pass.addition, self._pass.owned
        rows, size = _rows_of(adapters, num_rows)
        self._pass.addition = self._addition(rows, size)
        self._pass.owned = self._owned(rows, size) if self._has_fused_layers else None
        try:
            yield
        finally:
            self._pass.addition, self._pass.owned = before

    def forget(self) -> None:
        """Let go of the adapters of earlier passes."""
        self._stack = self._told = None

    def _addition(self, rows: Mapping[Adapter, Sequence[range]], num_rows: int) -> _Addition | None:
        if not rows:
            return None
        in_vain = sum((num_rows - sum(map(len, own))) * each.rank for each, own in rows.items())
        if len(rows) == 1 or in_vain > self._spared * len(rows):
            return _OneByOne(rows, self._device)
        if self._stack is None or self._stack.adapters != tuple(rows):
            self._stack = _Stack(tuple(rows))
        return _Stacked(self._stack, rows, num_rows)

    def _owned(self, rows: Mapping[Adapter, Sequence[range]], num_rows: int) -> _Owned | None:
        if not rows:
            return None
        if self._told is None or self._told.adapters != tuple(rows):
            self._told = _Told(tuple(rows))
        return _Owned(self._told, torch.tensor(_owners(rows, num_rows), dtype=torch.int32))

    def adapter_of(self, model: Any, folder: Path | None = None) -> Adapter:  # noqa: ANN401 - PEFT's models are not typed
        """Take the adapter out of a PEFT model of the same architecture; `folder` is where it is stored.

        Raises:
            ModelError: If it changes more of the core than adding low-rank products to linear layers.
        """
        from peft.tuners.lora import LoraLayer  # slow to import, rarely needed
        from peft.utils import ModulesToSaveWrapper

        plain = model.get_base_model()
        prefix = f"{plain.base_model_prefix}."
        writes = plain.get_output_embeddings() is not None
        layers: dict[str, LowRank] = {}
        for name, layer in plain.named_modules():
            short = name.removeprefix(prefix)
            is_whole = isinstance(layer, ModulesToSaveWrapper)
            is_heads_own = is_whole and not (name.startswith(prefix) or writes)
            if is_heads_own or not (is_whole or isinstance(layer, LoraLayer)):
                continue
            if short not in self._layers or not _is_plain(layer):
                raise ModelError(
                    f"The adapter changes `{name}` in a way that cannot share its base with others. Serve this model alone."
                )
            layers[short] = _low_rank(layer, self._device, self._dtype)
        return Adapter(layers, folder)


def _low_rank(layer: Any, device: torch.device, dtype: torch.dtype) -> LowRank:  # noqa: ANN401
    (adapter,) = layer.active_adapters
    down_RI, up_OR = (
        each[adapter].weight.detach().to(device, dtype) for each in (layer.lora_A, layer.lora_B)
    )
    return LowRank(down_RI.contiguous(), (up_OR.T * layer.scaling[adapter]).contiguous())


def _is_plain(layer: Any) -> bool:  # noqa: ANN401
    from peft.tuners.lora import Linear

    is_linear = issubclass(type(layer), Linear)
    return is_linear and not layer.lora_variant and not any(layer.lora_bias.values())


class _Layer:
    """What takes the place of a linear layer's `forward`."""

    def __init__(self, running: _Pass, name: str, layer: nn.Linear | Conv1D | PackedLinear) -> None:
        is_packed = isinstance(layer, PackedLinear)
        self._product = layer.product if is_packed else frozen_product(layer)
        self.num_bytes_beside = 0 if is_packed else self._product.num_bytes
        self._forward = layer.forward
        self._bias_O: Tensor | None = layer.bias
        self._running = running
        self._name = name

    def __call__(self, inputs: Tensor) -> Tensor:
        flat_TI = inputs.reshape(-1, inputs.shape[-1])
        if torch.is_grad_enabled():  # an explanation looks back through the layers
            outputs_TO = self._forward(flat_TI)
        else:
            outputs_TO = self._product.forward(flat_TI, self._bias_O)
        if self._running.addition is not None:
            self._running.addition.add(self._name, flat_TI, outputs_TO)
        return outputs_TO.view(*inputs.shape[:-1], -1)


def empty_model(folder: Path, layer: AnswerLayer) -> Any:  # noqa: ANN401
    """Make a model that answers with this layer and whose weights take no memory, to be given those of others.

    Args:
        folder: Whose configuration it has.
        layer: What it answers with.
    """
    options = class_options(layer.purpose, layer.labels, multi_label=layer.multi_label)
    if layer.purpose == "tag":
        know_token_model(folder)
    config = AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, **options
    )
    with quiet_transformers(), torch.device("meta"):
        model_class = MODEL_CLASSES[layer.purpose]
        return model_class.from_config(config, dtype=torch.float32).eval()


def share_layers(model: Any, base: Backbone) -> None:  # noqa: ANN401
    """Put the layers of a base into a model that was made without; what answers stays its own.

    Args:
        model: A `transformers` class model, perhaps one out of a PEFT model; changed in place.
        base: What it was tuned from.

    Raises:
        ModelError: If the layer that answers has no weights.
    """
    from peft.utils import ModulesToSaveWrapper  # slow to import, rarely needed

    for name, part in list(model.named_modules()):
        if isinstance(part, ModulesToSaveWrapper):
            (adapter,) = part.active_adapters
            model.set_submodule(name, part.modules_to_save[adapter])
    setattr(model, model.base_model_prefix, base.core)
    if empty := [name for name, each in model.named_parameters() if each.is_meta]:
        raise ModelError(f"The model lacks weights, such as `{empty[0]}`.")


@dataclass(slots=True, kw_only=True)
class SharingBackbone(Backbone):
    """A backbone whose layers others use too: alone, its documents pass with its own adapter."""

    many: ManyAdapters
    adapter: Adapter | None
    """None where only the layer that answers is its own."""

    def _run(self, call: Call) -> Tensor:
        with self.many.apply([self.adapter], [call.token_ids_1T.shape[1]]):
            return Backbone._run(self, call)


def own_adapter(backbone: Backbone) -> Adapter | None:
    """What a model adds to layers that it shares; None where it adds nothing, or shares none."""
    return backbone.adapter if isinstance(backbone, SharingBackbone) else None
