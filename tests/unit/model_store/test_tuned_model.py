"""Saving a tuned model and loading it again: what is kept, and what is refused."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from lushan.backbones.adapters import Method
from lushan.backbones.attention import ATTENTION_NAME
from lushan.backbones.encoding import LengthLimit
from lushan.backbones.tokenizer import Tokenizer
from lushan.errors import ModelError, RunError, UserError
from lushan.inference.generate import stop_ids
from lushan.inference.predict import Predictor
from lushan.model_store.tuned_model import (
    is_tuned_model,
    load_predictor,
    model_version,
    read_meaning,
    save_model,
    weights_digest,
    write_meaning,
)
from lushan.records import Example, TaskState
from tests.conftest import MakeTiny
from tests.saved import EXAMPLES, LABELS, LIMIT, meaning_of, save_tuned
from tests.tiny import write_turns

STATE = TaskState(
    labels=LABELS,
    shots=(Example("s", "soup", "10", "a.csv, row 2"), Example("t", "海", ("2", "3"), "")),
    class_weights=(0.5,) * len(LABELS),
    instruction="这是什么",
    both_ways=True,
    most_items=3,
    longest_name=7,
    positive_label="2",
)
KEPT = dataclasses.replace(STATE, shots=())


@dataclasses.dataclass(frozen=True)
class Saved:
    """A run with a saved model, its base, and the model in memory."""

    run: Path
    base: Path
    predictor: Predictor

    @property
    def model(self) -> Path:
        return self.run / "model"


@pytest.fixture(scope="module", params=["full", "lora"])
def original(
    request: pytest.FixtureRequest, tiny_folder: MakeTiny, tmp_path_factory: pytest.TempPathFactory
) -> Saved:
    folder = tmp_path_factory.mktemp("saved")
    shutil.copytree(tiny_folder("llama"), folder / "base")
    method: Method = request.param
    predictor = save_tuned(folder / "run", folder / "base", method=method, state=STATE)
    return Saved(folder / "run", folder / "base", predictor)


@pytest.fixture
def saved(original: Saved, tmp_path: Path) -> Saved:
    """Give a copy that a test may spoil; its base too, though an adapter names it by its path."""
    shutil.copytree(original.base, tmp_path / "base")
    shutil.copytree(original.run, tmp_path / "run")
    copy = Saved(tmp_path / "run", tmp_path / "base", original.predictor)
    change_meaning(copy, base_model=str(copy.base))
    return copy


def change_meaning(saved: Saved, **values: object) -> None:
    file = saved.model / "lushan.json"
    meaning = json.loads(file.read_text(encoding="utf-8")) | values
    file.write_text(json.dumps(meaning), encoding="utf-8")


def weights_file(saved: Saved) -> Path:
    (file,) = saved.model.glob("*.safetensors")
    return file


def change_weights(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def table(predictor: Predictor) -> np.ndarray:
    return np.array([list(each.probabilities.values()) for each in predictor.predict(EXAMPLES)])


@pytest.mark.parametrize("place", ["run", "run/model"])
def test_loaded_model_answers_like_the_one_that_was_saved(place: str, original: Saved) -> None:
    loaded = load_predictor(original.run.parent / place)
    np.testing.assert_array_equal(table(loaded), table(original.predictor))
    assert np.ptp(table(loaded), axis=0).max() > 0.05  # the texts make a difference
    assert loaded.version == original.predictor.version


def test_everything_that_a_model_means_is_read_as_it_was_written(original: Saved) -> None:
    backbone = original.predictor.backbone
    expected = meaning_of(backbone, original.base, state=KEPT)
    assert read_meaning(original.model) == expected
    loaded = load_predictor(original.run)
    assert (loaded.state, loaded.limit, loaded.answer) == (KEPT, LIMIT, "head")


def test_no_training_row_goes_along_with_a_model(original: Saved) -> None:
    text = (original.model / "lushan.json").read_text(encoding="utf-8")
    assert json.loads(text)["state"]["shots"] == []
    assert "soup" not in text


def test_worked_examples_of_a_model_that_was_saved_with_them_are_left_behind(saved: Saved) -> None:
    state = json.loads((saved.model / "lushan.json").read_text(encoding="utf-8"))["state"]
    shot = {"id": "s", "text": "soup", "target": "10", "place": "a.csv, row 2", "extra": {}}
    change_meaning(saved, state=state | {"shots": [shot]})
    write_meaning(saved.model, read_meaning(saved.model))
    assert "soup" not in (saved.model / "lushan.json").read_text(encoding="utf-8")


def test_files_of_a_model_can_be_read_by_everybody(original: Saved) -> None:
    modes = {file.name: file.stat().st_mode & 0o777 for file in original.model.iterdir()}
    assert modes == dict.fromkeys(modes, 0o644)
    assert {"lushan.json", "tokenizer.json", weights_file(original).name} <= modes.keys()


def test_name_of_our_attention_is_not_written(original: Saved) -> None:
    written = [each.read_text("utf-8") for each in original.model.glob("*config.json")]
    assert not [text for text in written if ATTENTION_NAME in text]
    assert original.predictor.backbone.core.config._attn_implementation is not None


@pytest.mark.parametrize("method", ["full", "lora"])
def test_end_of_a_turn_is_told_to_other_programs(
    method: Method, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    base = write_turns(tiny_folder("llama"), tmp_path / "base")
    saved = save_tuned(tmp_path / "run", base, answer="generate", method=method)
    told = GenerationConfig.from_pretrained(tmp_path / "run" / "model")
    assert (told.eos_token_id, told._from_model_config) == ([2, 0], False)
    for each in (saved, load_predictor(tmp_path / "run")):
        assert stop_ids(each.backbone) == {0, 2}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_generation_settings_stay_as_they_are_where_a_turn_ends_with_the_stop_token(
    method: Method, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    save_tuned(tmp_path / "run", tiny_folder("llama"), answer="generate", method=method)
    file = tmp_path / "run" / "model" / "generation_config.json"
    base = tiny_folder("llama") / file.name
    assert file.exists() is (method == "full")
    assert method == "lora" or json.loads(file.read_bytes()) == json.loads(base.read_bytes())


def test_model_folder_of_the_old_name_stays_whole_until_the_new_one_is(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file.name: file.read_bytes() for file in saved.model.iterdir()}
    backbone = saved.predictor.backbone
    meaning = dataclasses.replace(meaning_of(backbone, saved.base), limit=LengthLimit(7))
    seen: list[bool] = []

    def fail(_: Tokenizer, __: Path) -> None:
        seen.append({f.name: f.read_bytes() for f in saved.model.iterdir()} == before)
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "save", fail)
        with pytest.raises(OSError, match=r"^$"):
            save_model(saved.model, backbone, meaning)
    assert seen == [True]
    assert {file.name: file.read_bytes() for file in saved.model.iterdir()} == before
    save_model(saved.model, backbone, meaning)
    assert read_meaning(saved.model).limit.max_tokens == 7
    assert sorted(each.name for each in saved.run.iterdir()) == ["model"]


def test_full_disk_is_told_and_leaves_nothing(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = saved.predictor.backbone

    def fail(_: Path) -> None:
        raise SafetensorError("Error while serializing: No space left on device (os error 28)")

    monkeypatch.setattr(backbone.model, "save_pretrained", fail)
    with pytest.raises(RunError, match=r"No space left on device.*`--resume`"):
        save_model(saved.model, backbone, meaning_of(backbone, saved.base))
    assert sorted(each.name for each in saved.run.iterdir()) == ["model"]


def test_version_changes_with_the_weights_and_with_what_they_mean(saved: Saved) -> None:
    versions = [model_version(saved.model)]
    change_meaning(saved, precision="bf16")
    versions.append(model_version(saved.model))
    change_weights(weights_file(saved), lambda weights: next(iter(weights.values())).add_(1))
    versions.append(model_version(saved.model))
    assert len(set(versions)) == 3
    assert {len(each) for each in versions} == {12}


def test_digest_of_weights_is_of_names_and_contents(tmp_path: Path) -> None:
    def digest(**files: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name, content in files.items():
            (folder / f"{name}.safetensors").write_text(content)
        (folder / "other.json").write_text(str(folder))
        return weights_digest(folder)

    assert digest(a="1", b="2") == digest(b="2", a="1")
    assert len({digest(a="1", b="2"), digest(a="2", b="1"), digest(a="12"), digest(c="12")}) == 4


# What is refused


@pytest.mark.parametrize(
    "lacking", ["score", "layers.1.mlp.up_proj"], ids=["the head", "another weight"]
)
def test_model_that_lacks_a_weight_is_refused(lacking: str, saved: Saved) -> None:
    def drop(weights: dict[str, torch.Tensor]) -> None:
        del weights[next(name for name in weights if lacking in name)]

    change_weights(weights_file(saved), drop)
    with pytest.raises(UserError, match=rf"(?s)run/model.*(lacks|[Mm]issing).*{lacking}"):
        load_predictor(saved.run)


def test_weights_file_that_is_cut_off_is_refused(saved: Saved) -> None:
    file = weights_file(saved)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"run/model.*(is cut off|cannot be loaded)"):
        load_predictor(saved.run)


def test_weights_file_that_is_not_there_is_refused(saved: Saved) -> None:
    weights_file(saved).unlink()
    with pytest.raises(UserError, match=r"run/model.*(no weights|cannot be loaded)"):
        load_predictor(saved.run)


def test_base_with_other_weights_is_refused_under_an_adapter_and_no_matter_to_a_whole_model(
    saved: Saved,
) -> None:
    file = saved.base / "model.safetensors"
    change_weights(file, lambda weights: weights["model.norm.weight"].add_(1e-3))
    if weights_file(saved).name == "model.safetensors":
        load_predictor(saved.run)
        return
    with pytest.raises(ModelError, match=r"is an adapter of .*base`, but the weights in .* others"):
        load_predictor(saved.run)


def test_tokenizer_that_was_changed_is_refused(saved: Saved) -> None:
    is_adapter = (saved.model / "adapter_config.json").is_file()
    file = (saved.base if is_adapter else saved.model) / "tokenizer.json"
    changed = json.loads(file.read_text(encoding="utf-8"))
    changed["model"]["merges"].pop()
    file.write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(RunError, match="is not the one that the model was trained with"):
        load_predictor(saved.run)


def test_model_of_a_newer_version_is_refused_with_what_to_do(saved: Saved) -> None:
    change_meaning(saved, schema_version=2, something_new=1)
    with pytest.raises(RunError, match=r"schema version 2; .* reads up to 1\. Update Lushan"):
        load_predictor(saved.run)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '"x"', "{}", '{"schema_version": 1}', '{"schema_version": "1"}', "\ufffd"],
)
def test_meaning_that_cannot_be_read_is_refused(text: str, saved: Saved) -> None:
    (saved.model / "lushan.json").write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=r"lushan\.json` is broken: .* Tune again, or restore"):
        load_predictor(saved.run)


@pytest.mark.parametrize("values", [{"state": "x"}, {"limit": {"tokens": 3}}, {"unknown": 1}])
def test_meaning_with_wrong_values_is_refused(values: dict[str, Any], saved: Saved) -> None:
    change_meaning(saved, **values)
    with pytest.raises(RunError, match=r"lushan\.json` is broken"):
        load_predictor(saved.run)


def test_folder_that_is_no_run_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunError, match=r"holds no tuned model.*the folder that `lushan tune"):
            load_predictor(folder)


@pytest.mark.parametrize("text", ["{", "[]", "\ufffd", '{"task": "dialogue"}'])
def test_broken_model_is_a_tuned_one_so_that_it_is_refused_by_name(text: str, saved: Saved) -> None:
    assert is_tuned_model(saved.run)
    assert is_tuned_model(saved.model)
    (saved.model / "lushan.json").write_text(text, encoding="utf-8")
    assert is_tuned_model(saved.run)
    with pytest.raises(RunError, match=r"lushan\.json` is broken: .* Tune again, or restore"):
        read_meaning(saved.model)


def test_model_of_the_cache_is_no_tuned_one_though_it_has_a_record(tmp_path: Path) -> None:
    assert not is_tuned_model(tmp_path)
    record = {"schema_version": 1, "name": "mine", "kind": "decoder", "source": {}}
    (tmp_path / "lushan.json").write_text(json.dumps(record), encoding="utf-8")
    assert not is_tuned_model(tmp_path)
