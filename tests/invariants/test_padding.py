"""The answer for a text depends on the text alone: not on its neighbours, their order, the batch or the padding."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lushan.inference import constrained, predict
from lushan.inference.predict import Predictor
from lushan.model_store.tuned_model import load_predictor
from lushan.records import AnswerMode, Example
from tests.conftest import MakeTiny
from tests.saved import EXAMPLES, TEXTS, save_tuned

STRANGERS = [
    Example(f"s{number}", text, None)
    for number, text in enumerate(("a", "the river " * 12, "soup", TEXTS[0], "again. " * 20))
]
DECODERS = ("llama", "gpt2", "gemma3_text")
ENCODERS = ("bert", "modernbert")


def ask(predictor: Predictor, examples: Sequence[Example]) -> dict[str, list[float]]:
    return {each.id: list(each.probabilities.values()) for each in predictor.predict(examples)}


@pytest.mark.parametrize(
    ("model_type", "answer"),
    [
        *((each, "head") for each in (*DECODERS, *ENCODERS)),
        *((each, "generate") for each in (*DECODERS, "gpt_neo")),
    ],
)
def test_answer_does_not_depend_on_order_neighbours_or_batch_size(
    model_type: str,
    answer: AnswerMode,
    *,
    tiny_folder: MakeTiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_tuned(tmp_path, tiny_folder(model_type), answer=answer)
    predictor = load_predictor(tmp_path)
    alone = {key: row for each in EXAMPLES for key, row in ask(predictor, [each]).items()}
    expected = np.array(list(alone.values()))
    assert np.ptp(expected, axis=0).max() > 0.01  # the texts differ
    mixed = [*STRANGERS, *EXAMPLES]
    companies = ((EXAMPLES, 4096), (EXAMPLES[::-1], 4096), (mixed, 4096), (mixed, 60), (mixed, 1))
    for company, max_batch_tokens in companies:
        monkeypatch.setattr(predict, "MAX_BATCH_TOKENS", max_batch_tokens)
        monkeypatch.setattr(constrained, "MAX_BATCH_TOKENS", max_batch_tokens)
        found = ask(predictor, company)
        rows = [found[each.id] for each in EXAMPLES]
        np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-5)


def padding_on(side: str, source: Path, target: Path) -> Path:
    """Copy a model folder whose tokenizer pads to 40 tokens on one side by itself."""
    shutil.copytree(source, target)
    changes: dict[str, dict[str, Any]] = {
        "tokenizer_config.json": {"padding_side": side},
        "tokenizer.json": {
            "padding": {
                "strategy": {"Fixed": 40},
                "direction": side.title(),
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "<pad>",
            }
        },
    }
    for name, change in changes.items():
        values = json.loads((target / name).read_text(encoding="utf-8"))
        (target / name).write_text(json.dumps(values | change), encoding="utf-8")
    return target


@torch.inference_mode()
def answers_of_padded_batch(model_folder: Path, side: str, options: dict[str, Any]) -> np.ndarray:
    """Ask transformers about all texts at once, padded on the side that the folder names."""
    model = AutoModelForSequenceClassification.from_pretrained(model_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    inputs = tokenizer(list(TEXTS), return_tensors="pt", **options)
    mask_NL = inputs["attention_mask"]
    assert bool((mask_NL[:, 0] == 0).any()) is (side == "left")
    logits_NC = model(
        input_ids=inputs["input_ids"],
        attention_mask=mask_NL,
        position_ids=(mask_NL.cumsum(dim=1) - 1).clamp(min=0),  # gpt2 counts the padding, too
    ).logits
    return logits_NC.softmax(dim=1).numpy()


@pytest.mark.parametrize(
    ("model_type", "side"),
    [  # the class layer of an encoder reads the first column, where padding must not be
        *((each, "right") for each in (*DECODERS, *ENCODERS)),
        *((each, "left") for each in DECODERS),
    ],
)
def test_head_answers_like_transformers_whichever_side_is_padded(
    model_type: str, side: str, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    base = padding_on(side, tiny_folder(model_type), tmp_path / "base")
    save_tuned(tmp_path / "run", base)
    predictor = load_predictor(tmp_path / "run")
    found = list(ask(predictor, EXAMPLES).values())
    for options in ({"padding": True}, {"padding": "max_length", "max_length": 100}):
        expected = answers_of_padded_batch(tmp_path / "run" / "model", side, options)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
