"""What frozen layers make of the rows of a run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lushan.backbones.load import Backbone
from lushan.data.batching import pack
from lushan.errors import RunError
from lushan.model_store.run_folder import RunFolder
from lushan.records import SplitName
from lushan.workflows.frozen_rows import frozen_states, noted_states
from lushan.workflows.setup import Setup
from lushan.workflows.tune import untrained
from tests.unit.workflows.conftest import BuildSetup

SPARE_BYTES = "lushan.inference.frozen_cache._SPARE_BYTES"


def quiet(_: str) -> None:
    """Tell nobody."""


def ready(setup: Setup) -> Backbone:
    return untrained(setup, tell=quiet).backbone


@pytest.mark.parametrize("part", ["train", "validation"])
def test_states_are_those_of_the_model(part: SplitName, build_setup: BuildSetup) -> None:
    setup = build_setup("llama", adapter={"method": "head"})
    backbone = ready(setup)
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
    backbone = ready(setup)
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
    assert frozen_states(setup, ready(setup), tell=quiet) is None


def test_states_of_another_configuration_are_not_read(
    build_setup: BuildSetup, tmp_path: Path
) -> None:
    setup, told = build_setup("llama", adapter={"method": "head"}), list[str]()
    mended = shutil.copytree(setup.base, tmp_path / "mended")
    config = json.loads((mended / "config.json").read_text(encoding="utf-8"))
    (mended / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}), "utf-8")
    for base in (setup.base, setup.base, mended):
        other = replace(setup, base=base)
        frozen_states(other, ready(other), tell=told.append)
    assert [line.split()[0] for line in told] == ["Computing", "Reading", "Computing"]


@pytest.mark.parametrize("began_with_room", [True, False])
def test_run_goes_on_reading_states_or_computing_them_as_it_began(
    build_setup: BuildSetup,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    began_with_room: bool,
) -> None:
    setup = build_setup("llama", adapter={"method": "head"})
    backbone = ready(setup)
    run = RunFolder.create(tmp_path / "run", recipe={}, status={}, overwrite=False)
    for has_room in (began_with_room, not began_with_room):
        monkeypatch.setattr(SPARE_BYTES, 0 if has_room else 1 << 60)
        shutil.rmtree(tmp_path / "cache" / "frozen", ignore_errors=True)
        if began_with_room and not has_room:
            with pytest.raises(RunError, match="reads what its 2 frozen layers make of its rows"):
                noted_states(run, setup, backbone, tell=quiet)
        else:
            states = noted_states(run, setup, backbone, tell=quiet)
            assert (states is not None) is began_with_room
        assert run.get("reads_frozen_states") is began_with_room


@pytest.mark.parametrize("leader_reads", [True, False])
def test_helper_does_as_its_leader_does(
    build_setup: BuildSetup, monkeypatch: pytest.MonkeyPatch, *, leader_reads: bool
) -> None:
    setup = build_setup("llama", adapter={"method": "head"})
    backbone, shared = ready(setup), list[Any]()

    def share(value: object) -> bool:
        shared.append(value)
        return leader_reads

    team = SimpleNamespace(leads=False, share=share)
    monkeypatch.setattr("lushan.workflows.frozen_rows.Team", lambda: team)
    assert (frozen_states(setup, backbone, tell=quiet) is not None) is leader_reads
    assert shared == [False]
