"""A model whose way into ONNX, which takes seconds, is gone once for many tests."""

from pathlib import Path
from typing import NamedTuple

import pytest

from lushan.model_store.merged import Merged
from tests.conftest import MakeTiny
from tests.exported import merged_of, write_form


class Written(NamedTuple):
    """A model, and the folder that it was written into."""

    merged: Merged
    folder: Path


@pytest.fixture(scope="session")
def class_onnx(tiny_folder: MakeTiny, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Give a tiny llama with a class layer, as ONNX; nobody may change it."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    merged = merged_of(tiny_folder("llama"), "classification", "head")
    folder = tmp_path_factory.mktemp("class") / "onnx"
    write_form(merged, "onnx", folder)
    return Written(merged, folder)
