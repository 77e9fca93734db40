"""A model explains its answers however its weights are held."""

from dataclasses import replace
from pathlib import Path

import pytest

from lushan.backbones.packed import WeightsSetting
from lushan.explain.explanation import explain
from lushan.model_store.resident import Resident
from lushan.model_store.tuned_model import load_predictor
from tests.conftest import MakeTiny
from tests.many_runs import KINDS, examples_of, save_run


@pytest.mark.parametrize("weights", ["bf16", "int8"])
@pytest.mark.parametrize("name", ["topics", "names", "talks"])
def test_explanation_of_packed_weights_is_near_that_of_the_plain(
    name: str, weights: WeightsSetting, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    kind = replace(KINDS[name], precision="bf16")
    run, examples = (
        save_run(tmp_path / name, tiny_folder("llama"), kind),
        examples_of(kind.task)[:1],
    )
    resident = Resident(weights=weights)
    resident.load(run)
    shared = resident.model(name).predictor
    plain, alone = load_predictor(run), load_predictor(run, weights=weights)
    found = [next(iter(explain(each, examples))) for each in (plain, alone, shared)]
    first = [each.parts[0] for each in found]
    shares = [(each.score, each.baseline_score) for each in first]
    close = 1e-3 if weights == "bf16" else 0.05
    for each in shares[1:]:
        assert each == pytest.approx(shares[0], abs=close, rel=0)
    assert all(each.completeness_gap < 0.05 for each in first)
