"""Layers that are cut for processes are trained as whole ones; two processes do it in `test_processes.py`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed

from lushan.backbones.load import Backbone, load_backbone
from lushan.data.batching import pack
from lushan.records import Features
from lushan.training.optimizer import Optimizer, OptimizerSettings
from lushan.training.processes import Team
from lushan.training.sharding import is_part, own_part, part_of, put_together, shard
from tests.conftest import MakeTiny
from tests.unit.training.whole_masters import in_one_piece

SETTINGS = OptimizerSettings(
    optimizer="adamw",
    learning_rate=0.01,
    head_learning_rate=0.01,
    momentum=0.9,
    weight_decay=0.01,
    warmup_fraction=0.0,
    schedule="constant",
    max_gradient_norm=1e-2,
)
BATCH = pack([Features((5, 6, 7), "", 0), Features((8, 9), "", 1)])


@pytest.fixture
def _processes(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone."""
    meeting = f"file://{tmp_path}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def load(tiny_folder: MakeTiny, precision: str) -> Backbone:
    labels = ("a", "b")
    dtype = "bf16" if precision == "bf16" else "fp32"
    return load_backbone(tiny_folder("llama"), purpose="classify", labels=labels, precision=dtype)


def stepped(backbone: Backbone, *, num_steps: int = 3) -> tuple[Optimizer, list[float]]:
    optimizer = Optimizer(backbone.model, SETTINGS, num_steps=num_steps)
    norms: list[float] = []
    for _ in range(num_steps):
        backbone.hidden_states(BATCH).float().square().sum().backward()
        optimizer.collect()
        norms.append(optimizer.step(Team().sum))
    return optimizer, norms


@pytest.mark.usefixtures("_processes")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_layers_that_are_cut_take_the_steps_of_whole_ones(
    precision: str, tiny_folder: MakeTiny
) -> None:
    whole, cut = (load(tiny_folder, precision) for _ in range(2))
    shard(cut, Team())
    weights = dict(cut.model.named_parameters())
    assert {is_part(each) for name, each in weights.items() if ".layers." in name} == {True}
    assert not any(is_part(each) for name, each in weights.items() if ".layers." not in name)
    (one, norms), (other, other_norms) = stepped(whole), stepped(cut)
    assert other_norms == pytest.approx(norms, rel=1e-3)
    assert (one.is_spread, other.is_spread) == (False, True)
    torch.testing.assert_close(other.weights(), one.weights(), rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(
        other.state_dict(), in_one_piece(one.state_dict()), rtol=1e-2, atol=1e-4
    )


@pytest.mark.usefixtures("_processes")
def test_a_state_of_whole_weights_is_taken_up_by_parts(tiny_folder: MakeTiny) -> None:
    whole, cut = (load(tiny_folder, "bf16") for _ in range(2))
    shard(cut, Team())
    state = stepped(whole)[0].state_dict()
    taken = Optimizer(cut.model, SETTINGS, num_steps=3)
    taken.load_state_dict(state)
    torch.testing.assert_close(taken.state_dict(), in_one_piece(state), rtol=0, atol=0)
    wanted = {name: each.detach() for name, each in whole.model.named_parameters()}
    torch.testing.assert_close(taken.weights(), wanted, rtol=0, atol=0)


def test_whole_weights_are_their_own_parts() -> None:
    weight, other = torch.ones(3), torch.zeros(3)
    found: list[Tensor] = [own_part(weight), part_of(weight, other), put_together(weight, other)]
    assert all(each is weight for each in found)
    assert not is_part(weight)
