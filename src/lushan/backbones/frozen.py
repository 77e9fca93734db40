"""Layers that are not trained compute the same at every pass: compute once, read ever after.

`FrozenStates` holds what the frozen layers make of known documents; `skip_layers` and `run_until` cut a model's pass
in two at any layer, in every architecture of `transformers`, without model code of ours.

Shapes: T tokens, N documents, D width, R kept rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lushan.records import Batch

Position = Literal["first", "last", "all"]


@dataclass(frozen=True, slots=True)
class FrozenStates:
    """The hidden states with which known documents leave the frozen layers."""

    depth: int
    """How many layers are frozen; if all, the states are those after the last norm."""
    position: Position
    """Whether the rows are those of all tokens, or of the one token that a class layer reads."""
    first_rows: Mapping[tuple[int, ...], int]
    """Row of the first kept token, by the document's content."""
    states_RD: Tensor

    def of(self, batch: Batch) -> Tensor | None:
        """Give the states of a batch, (T, D), or None if one of its documents is not known.

        Rows of tokens that were not kept hold NaN, so that whoever reads one by mistake is found out.
        """
        firsts = [self.first_rows.get(each.content) for each in batch.features]
        if None in firsts:
            return None
        firsts_N = torch.tensor(firsts)
        if self.position == "all":
            starts_N = batch.first_N.cpu()
            documents_T = batch.document_ids_1T[0].cpu()
            rows_T = torch.arange(len(documents_T)) + (firsts_N - starts_N)[documents_T]
            return self.states_RD[rows_T].to(batch.first_N.device)
        read_N = batch.last_N if self.position == "last" else batch.first_N
        states_ND = self.states_RD[firsts_N].to(read_N.device)
        states_TD = states_ND.new_full((batch.num_tokens, states_ND.shape[1]), torch.nan)
        states_TD[read_N] = states_ND
        return states_TD


class _LayerReached(Exception):  # noqa: N818 - no error: it ends a pass early
    def __init__(self, hidden_1TD: Tensor) -> None:
        super().__init__()
        self.hidden_1TD = hidden_1TD


def run_until(run: Callable[[], object], layer: nn.Module) -> Tensor:
    """Run a model only until `layer` is called, and give what it would get; (1, T, D).

    Args:
        run: Calls the model.
        layer: One of its layers.
    """

    def stop(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        raise _LayerReached(arguments[0])

    handle = layer.register_forward_pre_hook(stop)
    try:
        run()
    except _LayerReached as reached:
        return reached.hidden_1TD
    finally:
        handle.remove()
    raise RuntimeError("The model never called that layer.")


@contextmanager
def skip_layers(layers: nn.ModuleList, depth: int, hidden_1TD: Tensor) -> Iterator[None]:
    """While this lasts, a pass leaves out the first `depth` layers, and the next one gets `hidden_1TD`."""

    def enter(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (hidden_1TD, *arguments[1:])

    def skip(*_: object, **__: object) -> Tensor:
        # Whatever a model takes out of this on its way, `enter` puts the whole in its place.
        return hidden_1TD

    handle = layers[depth].register_forward_pre_hook(enter)
    try:
        with other_forwards(list(layers)[:depth], [skip] * depth):
            yield
    finally:
        handle.remove()


@contextmanager
def other_forwards(
    layers: Sequence[nn.Module], forwards: Sequence[Callable[..., Any]]
) -> Iterator[None]:
    """While this lasts, layers compute something else; what is called around them (hooks) stays as it is."""
    before = [vars(layer).get("forward") for layer in layers]
    for layer, forward in zip(layers, forwards, strict=True):
        layer.forward = forward
    try:
        yield
    finally:
        for layer, replaced in zip(layers, before, strict=True):
            if replaced is None:
                del layer.forward
            else:
                layer.forward = replaced


def keep_in_eval(part: nn.Module) -> None:
    """Have a part run as it does when it answers, without dropout, also while others are trained."""
    part.eval()
    for each in part.modules():
        setattr(each, "train", MethodType(_unchanged, each))  # noqa: B010 - not typed to be replaced


def _unchanged(module: nn.Module, mode: bool = True) -> nn.Module:  # noqa: ARG001 - as `train` has it
    return module
