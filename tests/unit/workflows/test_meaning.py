"""What a model folder says beside the weights."""

from dataclasses import replace
from pathlib import Path

from lushan.model_store.tuned_model import read_meaning, save_model
from lushan.workflows.meaning import meaning_of
from lushan.workflows.tune import untrained
from tests.unit.workflows.conftest import BuildSetup


def test_folder_says_what_the_recipe_and_the_trained_model_do(
    build_setup: BuildSetup, tmp_path: Path
) -> None:
    adapter = {"method": "top", "layers": 1}
    setup = build_setup(answer="generate", adapter=adapter, model={"precision": "bf16"})
    predictor = untrained(setup, tell=lambda _: None)
    settled = replace(predictor, state=replace(predictor.state, no_answer_threshold=0.25))
    meaning = meaning_of(setup, settled, base_digest="abc")
    save_model(tmp_path, settled.backbone, meaning)
    found = read_meaning(tmp_path)
    kept = replace(settled.state, shots=())
    assert found == replace(meaning, state=kept)
    assert (found.task, found.answer, found.precision) == ("classification", "generate", "bf16")
    assert (found.adapter, found.base_model) == ("top:1", setup.recipe.model.name)
    assert (found.base_digest, found.state.no_answer_threshold) == ("abc", 0.25)
