"""Training is made to fit into memory, or refused before it begins; what is predicted is near to what torch keeps."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lushan.backbones.inspect import ModelFacts, describe
from lushan.backbones.load import Backbone, load_backbone
from lushan.backbones.native import why_missing
from lushan.data.batching import pack
from lushan.errors import SettingError
from lushan.records import Batch, Features
from lushan.workflows import memory
from lushan.workflows.memory import Fit, Load, check_reading, load_of, make_fit, needed_bytes
from lushan.workflows.recipe import TuneRecipe
from tests.conftest import MakeTiny

GIB = 1 << 30
FACTS = ModelFacts(
    architecture="LlamaForCausalLM",
    family="decoder",
    num_layers=24,
    width=896,
    vocabulary_size=151_936,
    context_tokens=32_768,
    num_parameters=494_000_000,
    tied=True,
    has_chat_template=True,
    model_type="qwen2",
    weights_bytes=988_000_000,
)
"""Qwen2.5-0.5B."""
LOAD = Load(most_tokens_a_step=8_000, longest=500, num_read_tokens=20_000)


@pytest.fixture(autouse=True)
def _laid_out_on_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every processor be one for which oneDNN lays out weights in bf16."""
    monkeypatch.setattr(memory, "lays_out", lambda device, _: device == "cpu")


def recipe_of(
    method: str = "full", *, optimizer: str = "adamw", precision: str = "bf16", **engine: object
) -> TuneRecipe:
    return TuneRecipe.model_validate({
        "model": {"precision": precision},
        "adapter": {"method": method},
        "training": {"optimizer": optimizer},
        "engine": engine,
    })


def fit_into(gibibytes: float, recipe: TuneRecipe, load: Load = LOAD) -> Fit:
    return make_fit(recipe, FACTS, load, free_bytes=gibibytes * GIB, device="cpu")


@pytest.mark.parametrize(("method", "most"), [("full", 12.0), ("lora", 6.0), ("top", 6.0)])
def test_half_a_billion_weights_fit(method: str, most: float) -> None:
    fit = fit_into(most - 1.0, recipe_of(method))
    assert fit.needed_bytes < (most - 1.0) * GIB
    assert not fit.checkpointing


def test_spread_layers_need_a_part_of_the_gradients_masters_and_moments() -> None:
    sizes = [
        make_fit(
            recipe_of(spread_layers=spread),
            FACTS,
            LOAD,
            free_bytes=1e12,
            device="cpu",
            num_processes=4,
        )
        for spread in (False, True)
    ]
    inner = FACTS.num_parameters - FACTS.vocabulary_size * FACTS.width
    saved = sizes[0].needed_bytes - sizes[1].needed_bytes
    added_up = 4 * (sizes[0].batch_tokens < LOAD.most_tokens_a_step)
    whole, part = 2 + (4 if why_missing() else 2) + 8 + added_up, 2 + 4 + 8 + added_up
    read = LOAD.num_read_tokens * FACTS.width
    assert saved == pytest.approx(1.15 * (inner * (whole - part / 4) + read * (whole - part)))


def test_tight_memory_makes_smaller_batches_and_then_computes_twice() -> None:
    recipe = recipe_of("lora")
    roomy, tight, tightest = (fit_into(each, recipe) for each in (20.0, 5.0, 2.9))
    assert [each.is_squeezed for each in (roomy, tight, tightest)] == [False, True, True]
    assert roomy[:2] == (4_096, False)
    assert tight[:2] == (512, False)
    assert tightest.checkpointing
    assert roomy.needed_bytes > tight.needed_bytes > tightest.needed_bytes


def test_batch_is_never_smaller_than_the_longest_document() -> None:
    for longest in (300, 700, 5_000):
        fit = fit_into(20.0, recipe_of("lora"), LOAD._replace(longest=longest))
        assert fit.batch_tokens >= longest


def test_what_a_user_set_is_not_changed() -> None:
    fit = fit_into(8.0, recipe_of("lora", batch_tokens=777, gradient_checkpointing=True))
    assert fit[:2] == (777, True)


@pytest.mark.parametrize(
    ("recipe", "helps"),
    [
        (recipe_of("full"), "`--adapter lora` or `top:N`, or set `training.optimizer=adafactor`"),
        (recipe_of("lora", gradient_checkpointing=False), "out `engine.gradient_checkpointing="),
        (recipe_of("lora", batch_tokens=9_000), "eave out `engine.batch_tokens`"),
    ],
)
def test_what_never_fits_is_refused_with_what_helps(recipe: TuneRecipe, helps: str) -> None:
    with pytest.raises(
        SettingError, match=r"needs about \d+\.\d GiB .* but 0\.5 GiB are free"
    ) as e:
        fit_into(0.5, recipe)
    assert helps in str(e.value)


def test_a_model_that_cannot_be_read_is_refused() -> None:
    check_reading(FACTS, free_bytes=1.85 * GIB)
    with pytest.raises(SettingError, match=r"takes about 1\.8 GiB of main memory, but 1\.7 GiB"):
        check_reading(FACTS, free_bytes=1.7 * GIB)


def test_load_is_that_of_the_longest_rows() -> None:
    lengths = (3, 9, 4, 7)
    rows = [Features(tuple(range(n)), place="", example_index=n) for n in lengths]
    assert load_of(rows, rows_per_step=2) == Load(16, 9, 9)


def test_documents_of_a_row_are_trained_on_in_one_step() -> None:
    sizes = ((0, 3), (0, 9), (1, 4), (2, 7))
    rows = [Features(tuple(range(n)), place="", example_index=row) for row, n in sizes]
    assert load_of(rows, rows_per_step=2) == Load(3 + 9 + 7, 9, 9)


def test_document_that_is_longer_than_a_batch_is_counted_whole() -> None:
    load = LOAD._replace(longest=5_000)
    cut, whole = (
        needed_bytes(
            recipe_of("lora"), FACTS, load, batch_tokens=size, checkpointing=False, device="cpu"
        )
        for size in (512, 5_000)
    )
    assert cut == whole


def needed_on(device: str, recipe: TuneRecipe, facts: ModelFacts = FACTS) -> float:
    return needed_bytes(recipe, facts, LOAD, batch_tokens=512, checkpointing=False, device=device)


def test_layers_that_are_one_are_kept_for_each_time_that_a_text_passes() -> None:
    inner = FACTS.num_parameters - FACTS.num_embedding_weights
    num_shared = FACTS.num_embedding_weights + inner // FACTS.num_layers
    shared = replace(FACTS, model_type="albert", num_parameters=num_shared)
    kept = [
        needed_bytes(
            recipe_of("lora"), facts, LOAD, batch_tokens=4_096, checkpointing=False, device="mps"
        )
        - 1.15 * 2 * facts.num_parameters
        for facts in (FACTS, shared)
    ]
    assert kept[1] == pytest.approx(kept[0])


@pytest.mark.parametrize("num_expert_weights", [0, 100_000_000])
def test_frozen_weights_but_those_of_experts_are_laid_out_for_either_direction_on_a_processor(
    num_expert_weights: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "why_missing", lambda: "masters are whole on either")
    facts = replace(FACTS, num_expert_weights=num_expert_weights)
    more = needed_on("cpu", recipe_of("lora"), facts) - needed_on("cuda", recipe_of("lora"), facts)
    inner = FACTS.num_parameters - FACTS.vocabulary_size * FACTS.width
    assert more == pytest.approx(1.15 * 2 * 2 * (inner - num_expert_weights))
    exact = recipe_of("lora", precision="fp32")
    assert needed_on("cpu", exact) == needed_on("cuda", exact)


def test_weights_are_halves_of_their_masters_on_a_processor_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "why_missing", lambda: "")
    more = needed_on("cuda", recipe_of("full")) - needed_on("cpu", recipe_of("full"))
    inner = FACTS.num_parameters - FACTS.vocabulary_size * FACTS.width
    assert more == pytest.approx(1.15 * 2 * (inner + LOAD.num_read_tokens * FACTS.width))


def test_adafactor_and_sgd_need_less_than_adamw() -> None:
    needs = [
        needed_bytes(
            recipe_of("full", optimizer=name),
            FACTS,
            LOAD,
            batch_tokens=512,
            checkpointing=False,
            device="cpu",
        )
        for name in ("adamw", "sgd", "adafactor")
    ]
    assert needs == sorted(needs, reverse=True)
    assert needs[0] - needs[2] > 0.3e9 * 8


def test_gradients_of_several_parts_are_added_up_in_float32() -> None:
    recipe = recipe_of("full")
    in_parts, at_once = (
        needed_bytes(
            recipe,
            FACTS,
            LOAD._replace(most_tokens_a_step=n),
            batch_tokens=512,
            checkpointing=False,
            device="cpu",
        )
        for n in (513, 512)
    )
    assert in_parts - at_once > 4 * (FACTS.num_parameters - FACTS.vocabulary_size * FACTS.width)


def kept_bytes(backbone: Backbone, batch: Batch) -> int:
    """What torch keeps of a forward pass for the backward pass, weights left out."""
    weights = {each.untyped_storage().data_ptr() for each in backbone.model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden_TD = backbone.hidden_states(batch)
        del hidden_TD
    return sum(kept.values())


@pytest.fixture
def middling_llama(tiny_folder: MakeTiny, tmp_path: Path) -> Path:
    """Give a model that is wide enough for its widths to count."""
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=3,
        num_key_value_heads=1,
    )
    for file in tiny_folder("llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_what_layers_keep_is_as_predicted(
    precision: Literal["bf16", "fp32"], middling_llama: Path
) -> None:
    backbone = load_backbone(middling_llama, purpose="embed", precision=precision)
    backbone.model.train()
    batch = pack([Features((5,) * 24, place="", example_index=n) for n in range(16)])
    found = kept_bytes(backbone, batch)
    recipe, facts = recipe_of(precision=precision), describe(middling_llama)
    predicted = [
        needed_bytes(
            recipe,
            facts,
            Load(tokens, 24, 320),
            batch_tokens=tokens,
            checkpointing=False,
            device="cpu",
        )
        for tokens in (16 * 24, 24)
    ]
    per_token = (predicted[0] - predicted[1]) / (15 * 24)
    assert found / batch.num_tokens == pytest.approx(per_token, rel=0.25)


def test_matrix_that_a_model_lost_is_not_counted_off_its_layers() -> None:
    lost = replace(FACTS, tied=False, can_write=False)
    needs = [
        needed_bytes(
            recipe_of("lora"), each, LOAD, batch_tokens=512, checkpointing=False, device="cpu"
        )
        for each in (FACTS, lost, replace(lost, can_write=True))
    ]
    assert needs[0] == needs[1] > needs[2]
