"""One ONNX file that turns token ids into the scores of a tuned head, for `onnxruntime` and whatever reads ONNX.

Shapes: B documents, L tokens of the longest, C classes, D width.
"""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lushan.atomic import write_json, write_text
from lushan.backbones.load import Purpose
from lushan.errors import ModelError
from lushan.inference.predict import Predictor
from lushan.model_store import exports
from lushan.model_store.exports import Score, Tolerance
from lushan.model_store.merged import Merged
from lushan.model_store.tuned_model import plain_attention, write_meaning

FILE = "model.onnx"
INPUTS = ("input_ids", "attention_mask")
OUTPUT = "logits"
_LABELS = "labels.json"
_MOST_BYTES_IN_ONE_FILE = 1_900_000_000
"""A file of protobuf holds 2 GiB; larger weights go beside it."""
_BLOCK_WEIGHTS = 32
"""Weights that share a scale."""


class Form(exports.Form):
    """Weights in float32, or those of matrix products in 8 bits."""

    program = "onnxruntime"
    packages: ClassVar = ("onnx", "onnxscript", "onnxruntime")
    scores_vocabulary: ClassVar = True
    own_rules: ClassVar = ("stop_tokens",)  # nothing is written
    tolerances: ClassVar = {
        "none": Tolerance(1e-3, 1, 0.97, 0.01),
        "int8": Tolerance(0.2, 1, 0.95, 0.05),
    }

    def check(self, predictor: Predictor, purpose: Purpose) -> None:
        """Refuse what answers by more than one pass from token ids to scores."""
        refuse_writing(predictor, purpose, name="ONNX")

    def write(self, merged: Merged, folder: Path, *, quantise: str) -> list[str]:
        """Write the model, its tokenizer, its labels, and how they are used."""
        write_onnx(merged.predictor, folder / FILE)
        if quantise == "int8":
            _quantise(folder / FILE)
        write_beside(merged, folder, code=_CODE)
        return []

    def reread(self, merged: Merged, folder: Path) -> Predictor:
        """Give the model in memory: Lushan does not read ONNX."""
        return merged.predictor

    def open_scores(self, folder: Path) -> Score:
        """Load the file into onnxruntime."""
        keep_to_itself()
        import onnxruntime  # optional, slow to import

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        providers = ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(str(folder / FILE), options, providers=providers)

        def score(ids_BL: np.ndarray, mask_BL: np.ndarray) -> np.ndarray:
            found: Any = session.run([OUTPUT], dict(zip(INPUTS, (ids_BL, mask_BL), strict=True)))
            return found[0]

        return score

    def read_labels(self, folder: Path) -> list[str]:
        """Read the labels beside the file."""
        return read_labels(folder)


def keep_to_itself() -> None:
    """Have onnxruntime, which PyTorch's exporter imports too, not tell its makers what it runs."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def refuse_writing(predictor: Predictor, purpose: Purpose, *, name: str) -> None:
    """Refuse what answers by more than one pass from token ids to scores.

    Raises:
        ModelError: If the model writes, or chooses among labels by writing them.
    """
    if purpose == "language" and (predictor.writes or predictor.task.candidates(predictor.state)):
        raise ModelError(
            f"This model answers by writing, token by token, which one pass from token ids to scores cannot: {name} is for "
            "models with a head and for `choice`. Use `--to gguf` or `--to hf`, or tune with `--answer head`."
        )


class _Scores(nn.Module):
    """From token ids to logits, as the model was trained to answer."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - transformers' classes share no useful type
        super().__init__()
        self.model = model
        self.reads_last = hasattr(model, "score") and "SequenceClass" in type(model).__name__

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Give (B, C), or (B, L, C) of a layer that answers at every token."""
        options = {"input_ids": input_ids, "attention_mask": attention_mask}
        if not self.reads_last:
            return self.model(**options).logits
        # transformers looks for the last token that is not the padding token, which may stand in a text.
        hidden_BLD = self.model.base_model(**options, use_cache=False).last_hidden_state
        last_B = attention_mask.sum(dim=1) - 1
        rows_B = torch.arange(hidden_BLD.shape[0], device=hidden_BLD.device)
        return self.model.score(hidden_BLD[rows_B, last_B])


def write_onnx(predictor: Predictor, file: Path) -> None:
    """Write a model as one function of token ids and attention mask, for any number of documents of any length.

    Raises:
        ModelError: If PyTorch cannot turn this architecture into ONNX.
    """
    keep_to_itself()
    model = predictor.backbone.plain_model
    num_bytes = sum(each.numel() * each.element_size() for each in model.parameters())
    ids_BL = torch.ones(2, 6, dtype=torch.long)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    config = predictor.backbone.core.config
    ours = config._attn_implementation
    config._attn_implementation = "sdpa" if model._supports_sdpa else "eager"
    try:
        with quiet("torch.onnx"):
            torch.onnx.export(
                _Scores(model).eval(),
                (ids_BL, torch.ones_like(ids_BL)),
                str(file),
                input_names=list(INPUTS),
                output_names=[OUTPUT],
                dynamic_shapes=dict.fromkeys(INPUTS, axes),
                dynamo=True,
                external_data=num_bytes > _MOST_BYTES_IN_ONE_FILE,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ModelError(
            f"PyTorch cannot turn a `{config.model_type}` model into ONNX: {str(error)[:300]}. Use `--to hf`."
        ) from None
    finally:
        config._attn_implementation = ours


@contextlib.contextmanager
def quiet(name: str) -> Iterator[None]:
    """Keep a library's log and its warnings off the terminal while the block runs."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _quantise(file: Path) -> None:
    """Store the weights of matrix products in 8 bits, a scale for each block; activations stay in float32."""
    keep_to_itself()
    import onnx

    # Importing the quantizer sets up logging for the whole process, unless somebody has.
    somebody = logging.NullHandler()
    logging.root.addHandler(somebody)
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    logging.root.removeHandler(somebody)
    model = onnx.load(str(file))
    quantizer: Any = MatMulNBitsQuantizer(
        model, bits=8, block_size=_BLOCK_WEIGHTS, is_symmetric=True, accuracy_level=1
    )
    with quiet("onnxruntime.quantization.matmul_nbits_quantizer"):
        quantizer.process()
    file.with_name(f"{file.name}.data").unlink(missing_ok=True)  # the weights as they were
    num_bytes = sum(len(each.raw_data) for each in quantizer.model.model.graph.initializer)
    quantizer.model.save_model_to_file(
        str(file), use_external_data_format=num_bytes > _MOST_BYTES_IN_ONE_FILE
    )


def write_beside(merged: Merged, folder: Path, *, code: str) -> None:
    """Write configuration, tokenizer, labels, and how the files are used."""
    predictor = merged.predictor
    predictor.backbone.tokenizer.save(folder)
    with plain_attention(predictor.backbone):
        predictor.backbone.plain_model.config.save_pretrained(folder)
    write_meaning(folder, replace(merged.meaning, adapter="full"))
    labels = predictor.task.layer(predictor.state, answer=predictor.answer).labels
    write_json(folder / _LABELS, list(labels))
    row = predictor.task.sample_rows()[0]
    example = predictor.task.read(row, multi_label=predictor.state.multi_label)
    rendered = predictor.task.render(
        example, predictor.state, answer=predictor.answer, with_target=False
    )
    prefix = predictor.backbone.tokenizer.encode(["a"])[0].ids
    page = _PAGE.format(
        task=merged.meaning.task,
        text=repr(rendered[0].text),
        code=code.format(text=repr(rendered[0].text)),
        ids_of_a=prefix,
    )
    write_text(folder / "README.md", page)


def read_labels(folder: Path) -> list[str]:
    """Read what `write_beside` wrote."""
    return json.loads((folder / _LABELS).read_text(encoding="utf-8"))


_PAGE = """\
# A tuned model for the task `{task}`

`input_ids` and `attention_mask`, both int64 of (documents, tokens) and padded at the end, give `logits`: (documents, classes), or
(documents, tokens, classes) where the model answers at every token. `labels.json` names the classes in their order.

The model was trained on texts in this form, and must be asked in it:

    {text}

```python
{code}```

`tokenizer.json` gives the token ids; the text "a" must become {ids_of_a}. How the answers of this export compare with those of the tuned
model stands in `export.json`; `lushan doctor` holds these files to `certificate.json`.
"""

INPUTS_CODE = """\
tokenizer = Tokenizer.from_file("tokenizer.json")
tokenizer.no_truncation()  # the file may say otherwise
tokenizer.no_padding()
encoded = tokenizer.encode({text})
inputs = {{"input_ids": [encoded.ids], "attention_mask": [encoded.attention_mask]}}
"""
"""Texts to inputs, as the page of every form says it."""

_CODE = (
    """\
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

"""
    + INPUTS_CODE
    + """\
session = onnxruntime.InferenceSession("model.onnx")
print(session.run(["logits"], {{name: np.array(each, np.int64) for name, each in inputs.items()}})[0])
"""
)
