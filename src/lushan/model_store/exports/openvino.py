"""OpenVINO's own files (IR) of a function from token ids to the scores of a tuned head.

Shapes: B documents, L tokens of the longest, C classes; I inputs and O outputs of a matrix product.
"""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from lushan.backbones.load import Purpose
from lushan.inference.predict import Predictor
from lushan.model_store import exports
from lushan.model_store.exports import Score, Tolerance
from lushan.model_store.exports.onnx import (
    FILE,
    INPUTS,
    INPUTS_CODE,
    OUTPUT,
    read_labels,
    refuse_writing,
    write_beside,
    write_onnx,
)
from lushan.model_store.merged import Merged

_IR = "model.xml"
_FEWEST_WEIGHTS = 4_096
"""Smaller matrices stay as they are: they take no room."""
SETTINGS = {
    # In bf16 OpenVINO 2026.4 dies of SIGFPE with weights that are not quantised.
    "INFERENCE_PRECISION_HINT": "f32",
    # Activations in 8 bits cost much more quality than weights in 8 bits.
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}
"""How the model is to be compiled."""


class Form(exports.Form):
    """Weights in float32, or those of matrix products in 8 bits."""

    program = "openvino"
    packages: ClassVar = ("onnx", "onnxscript", "openvino")
    scores_vocabulary: ClassVar = True
    own_rules: ClassVar = ("stop_tokens",)  # nothing is written
    tolerances: ClassVar = {
        "none": Tolerance(1e-3, 1, 0.97, 0.01),
        "int8": Tolerance(0.2, 1, 0.95, 0.05),
    }

    def check(self, predictor: Predictor, purpose: Purpose) -> None:
        """Refuse what answers by more than one pass from token ids to scores."""
        refuse_writing(predictor, purpose, name="OpenVINO")

    def write(self, merged: Merged, folder: Path, *, quantise: str) -> list[str]:
        """Write the model, its tokenizer, its labels, and how they are used."""
        import openvino  # optional, slow to import

        write_onnx(merged.predictor, folder / FILE)
        # `read_model` is the bare reader; `convert_model` is a tool with telemetry.
        model = openvino.Core().read_model(str(folder / FILE))
        if quantise == "int8":
            _quantise(model)
        openvino.save_model(model, str(folder / _IR), compress_to_fp16=False)
        del model  # it reads from the file
        for file in folder.glob(f"{FILE}*"):
            file.unlink()
        write_beside(merged, folder, code=_CODE)
        return [f"Compile it with {SETTINGS}."]

    def reread(self, merged: Merged, folder: Path) -> Predictor:
        """Give the model in memory: Lushan does not read OpenVINO's files."""
        return merged.predictor

    def open_scores(self, folder: Path) -> Score:
        """Load the files into OpenVINO."""
        import openvino

        settings = {**SETTINGS, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled: Any = openvino.Core().compile_model(str(folder / _IR), "CPU", settings)

        def score(ids_BL: np.ndarray, mask_BL: np.ndarray) -> np.ndarray:
            found = compiled(dict(zip(INPUTS, (ids_BL, mask_BL), strict=True)))
            return np.array(found[OUTPUT])

        return score

    def read_labels(self, folder: Path) -> list[str]:
        """Read the labels beside the files."""
        return read_labels(folder)


def _quantise(model: Any) -> None:  # noqa: ANN401 - of a library without types
    """Store the weights of matrix products in 8 bits, a scale for each output; activations stay in float32."""
    from openvino import opset13 as opset

    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        constant = node.input_value(1).get_node()
        if constant.get_type_name() != "Constant" or constant.data.ndim != 2:
            continue
        weight = constant.data.astype(np.float32)
        if weight.size < _FEWEST_WEIGHTS:
            continue
        inner = 1 if node.get_attributes()["transpose_b"] else 0
        scale = np.abs(weight).max(axis=inner, keepdims=True) / 127
        scale[scale == 0] = 1
        stored = opset.constant(np.round(weight / scale).astype(np.int8))
        restored = opset.multiply(opset.convert(stored, "f32"), opset.constant(scale))
        node.input(1).replace_source_output(restored.output(0))


_CODE = (
    """\
import numpy as np
import openvino
from tokenizers import Tokenizer

"""
    + INPUTS_CODE
    + """\
settings = {{"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}}
compiled = openvino.Core().compile_model("model.xml", "CPU", settings)
print(compiled({{name: np.array(each, np.int64) for name, each in inputs.items()}})["logits"])
"""
)
