"""Choice: what is read, scored and answered; compared with transformers as lm-evaluation-harness asks it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from lushan.backbones.encoding import LengthLimit
from lushan.backbones.load import Backbone, load_backbone
from lushan.data.batching import pack
from lushan.errors import SettingError
from lushan.inference.predict import Predictor
from lushan.records import Example, Features, Prediction, Row, TaskState, content_id
from lushan.tasks import Preparation
from lushan.tasks.choice import Task
from tests.conftest import MakeTiny

TASK = Task()
STATE = TaskState()
LIMIT = LengthLimit(128)
QUESTION = "The children ran home, so they"
CHOICES = ["ate soup", "were a brave little fox", "watched 10 films", "add"]


def row(**values: Any) -> Row:  # noqa: ANN401 - whatever a file holds
    return Row({"question": QUESTION, "choices": CHOICES, "answer": 0, **values}, "a.csv", 7)


def read(**values: Any) -> Example:  # noqa: ANN401
    return TASK.read(row(**values))


EXAMPLES = [read(), read(question="Never again", choices=["cold", "a great film!"], answer="B")]


def encode(backbone: Backbone, *examples: Example) -> list[Features]:
    tokenizer = backbone.tokenizer
    options: Any = {"answer": "generate", "limit": LIMIT, "with_target": True}
    return TASK.encode(examples, STATE, tokenizer, **options)


def ask(backbone: Backbone, *examples: Example, shots: Sequence[Example] = ()) -> list[Prediction]:
    return Predictor(backbone, TASK, STATE, "generate", LIMIT).predict(examples, shots=shots)


def harness_likelihoods(folder: Path, context: str, continuations: list[str]) -> list[float]:
    """Log-likelihoods as lm-evaluation-harness takes them: every pair by itself, in plain transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    found: list[float] = []
    for continuation in continuations:
        context_ids = tokenizer(context)["input_ids"]
        whole_ids = tokenizer(context + continuation)["input_ids"]
        wanted = torch.tensor(whole_ids[len(context_ids) :])
        with torch.inference_mode():
            logits_TV = model(torch.tensor([whole_ids[:-1]])).logits[0]
        logs_TV = logits_TV[-len(wanted) :].log_softmax(-1)
        found.append(float(logs_TV.gather(1, wanted[:, None]).sum()))
    return found


@pytest.fixture
def backbone(tiny_folder: MakeTiny) -> Backbone:
    return load_backbone(tiny_folder("llama"), purpose="language")


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox", "mistral", "gemma3_text"])
def test_log_likelihoods_are_those_of_the_harness(model_type: str, tiny_folder: MakeTiny) -> None:
    folder = tiny_folder(model_type)
    backbone = load_backbone(folder, purpose="language")
    for example, found in zip(EXAMPLES, ask(backbone, *EXAMPLES), strict=True):
        choices = example.extra["choices"]
        expected = harness_likelihoods(
            folder, example.extra["question"], [f" {each}" for each in choices]
        )
        assert list(found.log_likelihoods) == choices
        assert list(found.log_likelihoods.values()) == pytest.approx(expected, abs=1e-3)
        per_character = [x / len(each) for x, each in zip(expected, choices, strict=True)]
        assert found.answer == choices[per_character.index(max(per_character))]
        assert sum(found.probabilities.values()) == pytest.approx(1)
        assert max(found.probabilities, key=found.probabilities.__getitem__) == found.answer


def test_worked_examples_and_a_premise_read_as_in_the_harness(
    backbone: Backbone, tiny_folder: MakeTiny
) -> None:
    values = {"premise": "It was cold.", "choice1": "The Fox ran.", "choice2": "We ate."}
    copa = TASK.read(Row({**values, "question": "effect", "label": 1}, "a", 1))
    context = f"{QUESTION} ate soup\n\nIt was cold therefore"
    expected = harness_likelihoods(tiny_folder("llama"), context, [" the Fox ran.", " we ate."])
    (found,) = ask(backbone, copa, shots=EXAMPLES[:1])
    assert list(found.log_likelihoods.values()) == pytest.approx(expected, abs=1e-3)
    assert copa.target == "We ate."


def test_loss_is_the_cross_entropy_of_the_right_choice(backbone: Backbone) -> None:
    batch = pack(encode(backbone, *EXAMPLES))
    found = TASK.loss(backbone, batch, STATE, dropout=0.0)
    expected = 0.0
    for example, asked in zip(EXAMPLES, ask(backbone, *EXAMPLES), strict=True):
        choices = example.extra["choices"]
        characters = torch.tensor([float(len(each)) for each in choices])
        logs = torch.tensor(list(asked.log_likelihoods.values()))
        scores = logs / characters * characters.mean()
        right = torch.tensor(choices.index(example.target))
        expected += float(functional.cross_entropy(scores, right))
        assert asked.log_likelihood == pytest.approx(float(scores.log_softmax(0).max()), abs=1e-4)
    assert found.count == pytest.approx(2)
    assert found.total.item() == pytest.approx(expected, rel=1e-4)


def test_head_is_refused_and_worked_examples_are_drawn_by_the_seed() -> None:
    with pytest.raises(SettingError, match=r"by likelihood only\. Use `--answer generate`"):
        TASK.render(EXAMPLES[0], STATE, answer="head", with_target=False)
    rows = [replace(EXAMPLES[0], id=str(number)) for number in range(20)]
    drawn = [
        [each.id for each in TASK.prepare(rows, Preparation(num_shots=4, seed=seed), multi_label=False).shots]
        for seed in (0, 0, 1)
    ]  # fmt: skip
    assert drawn[0] == drawn[1] != drawn[2]
    ranked = sorted((each.id for each in rows), key=lambda each: content_id(0, each))
    assert drawn[0] == ranked[:4]


def test_answers_that_lack_the_right_choices_probability_are_scored_without_log_loss() -> None:
    logs = {each: -float(n) for n, each in enumerate(CHOICES, start=1)}
    whole = Prediction("a", CHOICES[1], dict.fromkeys(CHOICES, 0.25), log_likelihoods=logs)
    kept = replace(whole, probabilities={CHOICES[1]: 0.25})  # as runs of earlier versions did
    examples = [read(), read(answer=1)]
    assert TASK.score([whole, whole], examples, STATE).details["log_loss"] == -math.log(0.25)
    found = TASK.score([kept, whole], examples, STATE)
    assert found.correct == [False, True]
    assert "log_loss" not in found.details
