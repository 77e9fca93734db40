"""A model folder is run once; what is broken is found."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lushan.backbones.inspect import describe
from lushan.backbones.self_check import TEXT, measure_perplexity, measure_similarity_gap
from lushan.backbones.sources import CATALOG, DEFAULT_MODEL, locate, models_folder
from lushan.backbones.tokenizer import Tokenizer
from lushan.errors import ModelError
from tests.conftest import MakeTiny


def real_model(name: str) -> Path:
    if not (models_folder() / name).is_dir():
        pytest.skip(f"{name} is not here")
    return locate(name)


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


@pytest.mark.slow
@pytest.mark.parametrize(("name", "perplexity"), [(DEFAULT_MODEL, 16.87), ("gemma-3-270m", 14.94)])
def test_real_decoder_has_the_measured_perplexity(name: str, perplexity: float) -> None:
    assert measure_perplexity(real_model(name)) == pytest.approx(perplexity, rel=0.01)


@pytest.mark.slow
def test_gemma_without_its_bos_is_lost() -> None:
    folder = real_model("gemma-3-270m")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([Tokenizer.load(folder).encode([TEXT])[0].ids])
    with torch.inference_mode():
        whole, cut = (float(model(input_ids=each, labels=each).loss) for each in (ids, ids[:, 1:]))
    assert ids[0, 0] == 2
    assert cut > whole + 1


@pytest.mark.slow
def test_real_encoder_gives_the_published_similarities() -> None:
    assert measure_similarity_gap(real_model("all-MiniLM-L6-v2")) == pytest.approx(
        0.666 - 0.105, abs=0.002
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CATALOG))
def test_real_model_has_as_many_parameters_as_the_catalogue_says(name: str) -> None:
    assert describe(real_model(name)).num_parameters == CATALOG[name].num_parameters
