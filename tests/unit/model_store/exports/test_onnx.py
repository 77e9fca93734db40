"""An ONNX file scores as Lushan does, alone and padded, whatever the task and the architecture."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from lushan.errors import ModelError
from lushan.model_store.export_program import padded
from lushan.model_store.exports import load_form, onnx
from lushan.model_store.exports.onnx import FILE
from lushan.records import AnswerMode
from lushan.tasks import Preparation
from tests.conftest import MakeTiny
from tests.exported import (
    assert_same_outputs,
    features_of,
    merged_of,
    own_outputs,
    write_form,
)
from tests.unit.model_store.conftest import Written

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

OTHER_WAYS: list[tuple[str, AnswerMode]] = [
    *(("tagging", "head"), ("answering", "head"), ("relations", "head")),
]
OTHER_TYPES = ("gpt2", "qwen3", "gemma3_text", "bert", "modernbert")


def test_class_layer_is_scored_alike(class_onnx: Written) -> None:
    assert_same_outputs(class_onnx.merged, "onnx", class_onnx.folder)


def test_choices_are_scored_alike(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    merged = merged_of(tiny_folder("llama"), "choice", "generate")
    write_form(merged, "onnx", tmp_path / "onnx")
    assert_same_outputs(merged, "onnx", tmp_path / "onnx")


@pytest.mark.slow
@pytest.mark.parametrize("way", OTHER_WAYS, ids="-".join)
def test_every_task_with_one_pass_is_scored_alike(
    way: tuple[str, AnswerMode], tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    merged = merged_of(tiny_folder("llama"), *way)
    write_form(merged, "onnx", tmp_path / "onnx")
    assert_same_outputs(merged, "onnx", tmp_path / "onnx")


@pytest.mark.slow
def test_decoder_that_looks_both_ways_is_scored_alike(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    both_ways = Preparation(attention="bidirectional")
    merged = merged_of(tiny_folder("llama"), "tagging", "head", both_ways)
    write_form(merged, "onnx", tmp_path / "onnx")
    assert_same_outputs(merged, "onnx", tmp_path / "onnx")


@pytest.mark.slow
@pytest.mark.parametrize("model_type", OTHER_TYPES)
def test_every_architecture_is_scored_alike(
    model_type: str, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    merged = merged_of(tiny_folder(model_type), "classification", "head")
    write_form(merged, "onnx", tmp_path / "onnx")
    assert_same_outputs(merged, "onnx", tmp_path / "onnx")


def test_padding_changes_no_score(class_onnx: Written) -> None:
    score = load_form("onnx").open_scores(class_onnx.folder)
    assert score is not None
    features = features_of(class_onnx.merged)
    together = score(*padded([each.token_ids for each in features]))
    expected = own_outputs(class_onnx.merged, features)
    np.testing.assert_allclose(together, expected, rtol=1e-4, atol=1e-4)


def test_padding_token_inside_of_a_text_is_no_end(class_onnx: Written) -> None:
    score = load_form("onnx").open_scores(class_onnx.folder)
    assert score is not None
    padding_id = class_onnx.merged.predictor.backbone.plain_model.config.pad_token_id
    first, second = (score(*padded([[5, 6, last]])) for last in (padding_id, 7))
    assert np.abs(first - second).max() > 1e-3
    assert np.abs(first - score(*padded([[5, 6]]))).max() > 1e-3


def test_eight_bits_take_less_room_and_nearly_the_same_scores(
    class_onnx: Written, tmp_path: Path
) -> None:
    shutil.copytree(class_onnx.folder, tmp_path / "int8")
    onnx._quantise(tmp_path / "int8" / FILE)
    assert_same_outputs(class_onnx.merged, "onnx", tmp_path / "int8", atol=0.2)
    with pytest.raises(AssertionError):
        assert_same_outputs(class_onnx.merged, "onnx", tmp_path / "int8", atol=1e-6)
    sizes = [(folder / FILE).stat().st_size for folder in (class_onnx.folder, tmp_path / "int8")]
    assert sizes[1] < sizes[0]


def test_weights_beside_the_file_are_those_in_eight_bits_alone(
    class_onnx: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "_MOST_BYTES_IN_ONE_FILE", 0)
    write_form(class_onnx.merged, "onnx", tmp_path / "whole")
    sizes = {each.name: each.stat().st_size for each in (tmp_path / "whole").iterdir()}
    shutil.copytree(tmp_path / "whole", tmp_path / "int8")
    onnx._quantise(tmp_path / "int8" / FILE)
    assert 0 < (tmp_path / "int8" / f"{FILE}.data").stat().st_size < sizes[f"{FILE}.data"]
    assert_same_outputs(class_onnx.merged, "onnx", tmp_path / "int8", atol=0.2)
    monkeypatch.undo()
    onnx._quantise(tmp_path / "whole" / FILE)
    assert {each.name for each in (tmp_path / "whole").iterdir()} == {*sizes} - {f"{FILE}.data"}
    assert_same_outputs(class_onnx.merged, "onnx", tmp_path / "whole", atol=0.2)


def test_quantising_says_nothing(
    class_onnx: Written, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(class_onnx.folder / FILE, tmp_path / FILE)
    onnx._quantise(tmp_path / FILE)
    assert capfd.readouterr() == ("", "")


def test_onnxruntime_is_told_to_send_nothing_before_it_is_imported(
    class_onnx: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(class_onnx.folder / FILE, tmp_path / FILE)
    for work in (
        lambda: load_form("onnx").open_scores(tmp_path),
        lambda: onnx._quantise(tmp_path / FILE),
    ):
        monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
        work()
        assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_labels_tokenizer_and_a_page_stand_beside_the_file(class_onnx: Written) -> None:
    folder = class_onnx.folder
    labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    assert tuple(labels) == class_onnx.merged.predictor.state.labels
    assert {each.name for each in folder.iterdir()} == {
        *("model.onnx", "labels.json", "tokenizer.json", "tokenizer_config.json", "README.md"),
        *("config.json", "lushan.json"),
    }
    page = (folder / "README.md").read_text(encoding="utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    compile(code, "README.md", "exec")
    assert "Tokenizer.from_file" in code


def test_page_reads_whole_texts_whatever_the_tokenizer_says(
    class_onnx: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = Tokenizer.from_file(str(class_onnx.folder / "tokenizer.json"))
    cut.enable_truncation(2)
    cut.enable_padding(length=64)
    cut.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.chdir(tmp_path)
    page = (class_onnx.folder / "README.md").read_text(encoding="utf-8")
    code = page.partition("```python\n")[2].partition("session =")[0]
    place: dict[str, Any] = {}
    exec(code, place)  # noqa: S102 - what the page tells people to run
    assert place["inputs"]["input_ids"] == [list(features_of(class_onnx.merged)[0].token_ids)]
    assert place["inputs"]["attention_mask"] == [[1] * len(place["encoded"].ids)]


@pytest.mark.parametrize("way", [("completion", "generate"), ("classification", "generate")])
def test_model_that_writes_is_refused_with_what_is_possible(
    way: tuple[str, AnswerMode], tiny_folder: MakeTiny
) -> None:
    merged = merged_of(tiny_folder("llama"), *way)
    with pytest.raises(ModelError, match=r"answers by writing.*`--to gguf` or `--to hf`"):
        load_form("onnx").check(merged.predictor, "language")
