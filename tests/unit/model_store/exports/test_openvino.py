"""OpenVINO's files score as Lushan does, in float32 and nearly in 8 bits."""

import shutil
from pathlib import Path

import pytest

from lushan.errors import ModelError
from lushan.inference.predict import Predictor
from lushan.model_store.exports import load_form, onnx
from lushan.model_store.exports import openvino as form_of_openvino
from lushan.model_store.exports.onnx import FILE
from lushan.records import AnswerMode
from tests.conftest import MakeTiny
from tests.exported import assert_same_outputs, merged_of, write_form
from tests.unit.model_store.conftest import Written

pytest.importorskip("openvino")
pytest.importorskip("onnxscript")

WAYS: list[tuple[str, AnswerMode, str]] = [
    *(("tagging", "head", "llama"), ("choice", "generate", "llama")),
    *(("classification", "head", "gemma3_text"), ("classification", "head", "bert")),
]


@pytest.fixture
def _written_before(class_onnx: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the ONNX file that is there, which saves the seconds that making it takes."""

    def copy(predictor: Predictor, file: Path) -> None:
        del predictor
        shutil.copyfile(class_onnx.folder / FILE, file)

    monkeypatch.setattr(form_of_openvino, "write_onnx", copy)


WRITTEN_BEFORE = pytest.mark.usefixtures("_written_before")


@WRITTEN_BEFORE
def test_class_layer_is_scored_alike(class_onnx: Written, tmp_path: Path) -> None:
    write_form(class_onnx.merged, "openvino", tmp_path / "ir")
    assert_same_outputs(class_onnx.merged, "openvino", tmp_path / "ir")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_every_kind_of_answer_is_scored_alike(
    way: tuple[str, AnswerMode, str], tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    task, mode, model_type = way
    merged = merged_of(tiny_folder(model_type), task, mode)
    write_form(merged, "openvino", tmp_path / "ir")
    assert_same_outputs(merged, "openvino", tmp_path / "ir")


@WRITTEN_BEFORE
def test_eight_bits_take_less_room_and_nearly_the_same_scores(
    class_onnx: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(form_of_openvino, "_FEWEST_WEIGHTS", 64)
    write_form(class_onnx.merged, "openvino", tmp_path / "whole")
    write_form(class_onnx.merged, "openvino", tmp_path / "int8", quantise="int8")
    assert_same_outputs(class_onnx.merged, "openvino", tmp_path / "int8", atol=0.2)
    with pytest.raises(AssertionError):
        assert_same_outputs(class_onnx.merged, "openvino", tmp_path / "int8", atol=1e-6)
    sizes = [(tmp_path / name / "model.bin").stat().st_size for name in ("whole", "int8")]
    assert sizes[1] < sizes[0]


@WRITTEN_BEFORE
def test_only_files_that_openvino_reads_are_left(class_onnx: Written, tmp_path: Path) -> None:
    (note,) = write_form(class_onnx.merged, "openvino", tmp_path / "ir")
    assert "INFERENCE_PRECISION_HINT" in note
    page = (tmp_path / "ir" / "README.md").read_text(encoding="utf-8")
    assert onnx.INPUTS_CODE.partition("{text}")[0] in page
    assert not list((tmp_path / "ir").glob("*.onnx*"))
    labels = load_form("openvino").read_labels(tmp_path / "ir")
    assert labels == list(class_onnx.merged.predictor.state.labels)


def test_model_that_writes_is_refused(tiny_folder: MakeTiny) -> None:
    merged = merged_of(tiny_folder("llama"), "completion", "generate")
    with pytest.raises(ModelError, match="OpenVINO is for models with a head"):
        load_form("openvino").check(merged.predictor, "language")
