"""What frozen layers make of the rows of a run."""

from dataclasses import replace

import pytest
import torch

from lushan.data.batching import pack
from lushan.records import SplitName
from lushan.workflows.frozen_rows import frozen_states
from lushan.workflows.tune import untrained
from tests.unit.workflows.conftest import BuildSetup


def quiet(_: str) -> None:
    """Tell nobody."""


@pytest.mark.parametrize("part", ["train", "validation"])
def test_states_are_those_of_the_model(part: SplitName, build_setup: BuildSetup) -> None:
    setup = build_setup("llama", adapter={"method": "head"})
    backbone = untrained(setup, tell=quiet).backbone
    states = frozen_states(setup, backbone, tell=quiet)
    assert states is not None
    batch = pack(list(setup.features[part])[:3], device=backbone.device)
    kept_TD = states.of(batch)
    assert kept_TD is not None
    with torch.inference_mode():
        expected_TD = backbone.hidden_states(batch)
    torch.testing.assert_close(kept_TD[batch.last_N], expected_TD[batch.last_N])


def test_states_that_a_setup_brings_along_are_taken(build_setup: BuildSetup) -> None:
    setup = build_setup("llama", adapter={"method": "head"})
    backbone = untrained(setup, tell=quiet).backbone
    known = frozen_states(setup, backbone, tell=quiet)
    again = frozen_states(replace(setup, frozen=known), backbone, tell=pytest.fail)
    assert again is known


@pytest.mark.parametrize(
    "adapter", [{"method": "full"}, {"method": "head", "cache_gigabytes": 0.0}]
)
def test_nothing_is_kept_where_nothing_is_frozen_or_may_be_kept(
    adapter: dict[str, object], build_setup: BuildSetup
) -> None:
    setup = build_setup("llama", adapter=adapter)
    assert frozen_states(setup, untrained(setup, tell=quiet).backbone, tell=quiet) is None
