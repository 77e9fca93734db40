"""What is saved answers like what was trained: in a fresh process, and in plain transformers and PEFT."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from lushan.backbones.adapters import Method
from lushan.backbones.heads import vocabulary_logits
from lushan.data.batching import pack
from lushan.inference.predict import Predictor
from lushan.model_store.certificate import describe_answers
from lushan.model_store.tuned_model import load_predictor
from lushan.records import AnswerMode, Features
from tests.conftest import MakeTiny
from tests.saved import EXAMPLES, LABELS, TEXTS, save_tuned

ASK = """
import json, sys
from pathlib import Path
from lushan.model_store.certificate import describe_answers
from lushan.model_store.tuned_model import load_predictor
from tests.saved import EXAMPLES
for run in sys.argv[1:]:
    print(json.dumps(describe_answers(load_predictor(Path(run)), EXAMPLES)))
"""


@dataclass(frozen=True)
class Kind:
    """One way of training and answering."""

    name: str
    answer: AnswerMode
    method: Method
    model_type: str = "llama"
    precision: Literal["bf16", "fp32"] = "fp32"

    @property
    def is_adapter(self) -> bool:
        return self.method == "lora"


KINDS = (
    Kind("full", "head", "full"),
    Kind("lora", "head", "lora"),
    Kind("head", "head", "head"),
    Kind("top", "head", "top"),
    Kind("generate-full", "generate", "full"),
    Kind("generate-lora", "generate", "lora"),
    Kind("bert-head", "head", "head", "bert"),
    Kind("bert-lora", "head", "lora", "bert"),
    Kind("tied", "generate", "full", "gpt2"),
    Kind("bf16", "head", "lora", precision="bf16"),
)


@dataclass(frozen=True)
class Saved:
    """Run folders, models in memory, and what a fresh process answers."""

    folder: Path
    predictors: dict[str, Predictor]
    fresh: dict[str, dict[str, Any]]

    def model(self, kind: Kind) -> Path:
        return self.folder / kind.name / "model"


@pytest.fixture(scope="module")
def saved(tiny_folder: MakeTiny, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = tmp_path_factory.mktemp("runs")
    predictors = {
        kind.name: save_tuned(
            folder / kind.name,
            tiny_folder(kind.model_type),
            answer=kind.answer,
            method=kind.method,
            precision=kind.precision,
        )
        for kind in KINDS
    }
    asked = [str(folder / kind.name) for kind in KINDS]
    done = subprocess.run([sys.executable, "-c", ASK, *asked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return Saved(folder, predictors, dict(zip(predictors, answers, strict=True)))


every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


@every_kind
def test_fresh_process_gives_the_same_ids_labels_answers_and_probabilities(
    kind: Kind, saved: Saved
) -> None:
    expected = describe_answers(saved.predictors[kind.name], EXAMPLES)
    found = saved.fresh[kind.name]
    np.testing.assert_allclose(
        found.pop("probabilities"), expected["probabilities"], rtol=0, atol=1e-6
    )
    assert np.ptp(expected.pop("probabilities"), axis=0).max() > 1e-5  # the texts differ
    assert found == expected


def plain(kind: Kind, saved: Saved) -> torch.nn.Module:
    """Load a saved model without Lushan."""
    import peft  # slow to import

    folder = saved.model(kind)
    if kind.answer == "generate":
        library = peft.AutoPeftModelForCausalLM if kind.is_adapter else AutoModelForCausalLM
        return library.from_pretrained(str(folder)).eval()
    if kind.is_adapter:
        return peft.AutoPeftModelForSequenceClassification.from_pretrained(
            str(folder), num_labels=len(LABELS)
        ).eval()
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind.precision == "fp32"], ids=lambda kind: kind.name
)
def test_plain_libraries_load_it_and_give_the_same_scores(kind: Kind, saved: Saved) -> None:
    predictor = saved.predictors[kind.name]
    model = plain(kind, saved)
    tokenizer = AutoTokenizer.from_pretrained(saved.model(kind))
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        theirs = model(input_ids=torch.tensor([ids])).logits[0]
        batch = pack([Features(tuple(ids), "x", 0)])
        if kind.answer == "head":
            ours = torch.from_numpy(predictor.task.outputs(predictor.backbone, batch)[0])
        else:
            hidden_TD = predictor.backbone.hidden_states(batch)
            ours = vocabulary_logits(predictor.backbone.plain_model, hidden_TD)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "are_tied"), [("tied", True), ("generate-full", False)])
def test_matrix_that_input_and_output_share_is_still_shared_and_one_that_is_not_is_not(
    kind: str, are_tied: bool, saved: Saved
) -> None:
    folder = saved.folder / kind
    assert ("lm_head.weight" in load_file(folder / "model" / "model.safetensors")) is not are_tied
    models: list[Any] = [
        load_predictor(folder).backbone.plain_model,
        AutoModelForCausalLM.from_pretrained(folder / "model"),
    ]
    for model in models:
        one, other = model.get_input_embeddings(), model.get_output_embeddings()
        assert (one.weight.data_ptr() == other.weight.data_ptr()) is are_tied


@pytest.mark.parametrize("kind", KINDS[:1] + KINDS[2:4], ids=lambda kind: kind.name)
def test_label_map_of_the_saved_configuration_counts_like_the_labels_in_memory(
    kind: Kind, saved: Saved
) -> None:
    config = AutoConfig.from_pretrained(saved.model(kind))
    names = ("0", "1", "10", "2", "3", "4", "5", "6", "7", "8", "9")
    assert config.id2label == dict(enumerate(names))
    assert config.label2id == {name: number for number, name in enumerate(names)}
    assert saved.predictors[kind.name].state.labels == names


@torch.inference_mode()
def test_plain_transformers_names_the_same_label_for_every_text(saved: Saved) -> None:
    (kind, *_) = KINDS
    model = AutoModelForSequenceClassification.from_pretrained(saved.model(kind)).eval()
    tokenizer = AutoTokenizer.from_pretrained(saved.model(kind))
    ids = [int(model(**tokenizer(text, return_tensors="pt")).logits.argmax()) for text in TEXTS]
    answers = saved.fresh[kind.name]["answers"]
    assert [model.config.id2label[number] for number in ids] == answers
    assert len(set(answers)) > 1
