"""A model folder is run once; what is broken is found."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lushan.backbones.self_check import TEXT, measure_perplexity, measure_similarity_gap
from lushan.errors import ModelError
from tests.conftest import MakeTiny


def with_a_broken_weight(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    file = target / "model.safetensors"
    state = load_file(file)
    next(iter(state.values())).view(-1)[0] = math.nan
    save_file(state, file, metadata={"format": "pt"})
    return target


@torch.no_grad()
def test_perplexity_equals_that_of_transformers(tiny_folder: MakeTiny) -> None:
    folder = tiny_folder("gemma3_text")
    ids = AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt")["input_ids"]
    loss = AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids, labels=ids).loss
    assert measure_perplexity(folder) == pytest.approx(math.exp(loss), rel=1e-5)


def test_similarity_gap_is_a_difference_of_cosines(tiny_folder: MakeTiny) -> None:
    assert -2 < measure_similarity_gap(tiny_folder("bert")) < 2


@pytest.mark.parametrize(
    ("model_type", "measure"), [("llama", measure_perplexity), ("bert", measure_similarity_gap)]
)
def test_values_that_are_not_finite_are_refused(
    model_type: str, measure: object, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    folder = with_a_broken_weight(tiny_folder(model_type), tmp_path / "broken")
    assert callable(measure)
    with pytest.raises(ModelError, match="`broken` gives values that are not finite"):
        measure(folder)
