"""Layers that are spread over the processes of a run, for models that do not fit into one (FSDP2).

Every process holds a part of each layer's weights, and with it their gradients, masters and moments. A layer is put
together when it computes, and taken apart behind it. Embeddings, the last norm and the class layer are whole in every
process: they are small beside the layers, and read from outside of the model's own pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

from lushan.backbones.load import Backbone
from lushan.training.processes import Team

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor  # slow to import, and most runs have one process


def shard(backbone: Backbone, team: Team) -> None:
    """Leave this process its part of each layer; all processes of the run call this at the same time.

    Args:
        backbone: Changed in place; its weights move to the device of this process, layer by layer.
        team: The processes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    core, layers = backbone.core, list(backbone.layers)
    mesh = init_device_mesh(team.device.type, (team.place[1],))
    # Gradients of the processes are added up in float32, as those of whole weights are.
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    inside = {weight for layer in layers for weight in layer.parameters()}
    beside = {weight for weight in core.parameters() if weight not in inside}
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(core, mesh=mesh, mp_policy=policy, ignored_params=beside)
    for module in core.modules():
        if isinstance(module, FSDPModule):
            # The loss is divided by the count of the whole step, so what the processes found is added up and no mean
            # is taken. Gloo refuses the operation that FSDP would take for that: "Cannot use ReduceOp.PREMUL_SUM".
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    backbone.model.to(team.device)


def is_part(weight: Tensor) -> TypeGuard[DTensor]:
    """Whether this process holds only a part of a weight."""
    return hasattr(weight, "device_mesh")


def own_part(tensor: Tensor) -> Tensor:
    """Give what this process holds of a weight or of its gradient; shares its memory."""
    return tensor.to_local() if is_part(tensor) else tensor


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """Give this process's part of a whole tensor, cut as the weight `like` is; the whole one where that is whole."""
    if not is_part(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    moved = whole.to(like.device)
    cut = distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)
    return cut.to_local()


def put_together(part: Tensor, like: Tensor) -> Tensor:
    """Give the whole of a tensor that is cut as the weight `like` is; all processes call this at the same time."""
    if not is_part(like):
        return part
    from torch.distributed.tensor import DTensor

    spread = DTensor.from_local(
        part,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
    return spread.full_tensor()
