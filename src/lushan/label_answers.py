"""What tasks share whose answer is a label of a closed list, or several: state, targets, loss, decoding.

Shapes: N documents, T tokens, D width, C classes, F features (documents), E examples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from lushan.backbones.encoding import LengthLimit, encode_rendered
from lushan.backbones.heads import class_logits
from lushan.backbones.load import AnswerLayer, Backbone
from lushan.backbones.tokenizer import Tokenizer
from lushan.data.draws import draw_in_turn
from lushan.data.splits import count_labels
from lushan.errors import DataError, SettingError
from lushan.records import (
    AnswerMode,
    Batch,
    Example,
    Features,
    LossSum,
    Prediction,
    Rendered,
    TaskState,
)
from lushan.text_answers import answer_loss

if TYPE_CHECKING:
    from lushan.tasks import Preparation

MOST_LABELS_IN_PROMPT = 20
THRESHOLD = 0.5
"""A text that may have several labels has those of at least this probability."""
_TINY = 1e-300
"""Stands for a probability of zero, whose logarithm is no number."""


def answer_layer(state: TaskState, answer: AnswerMode) -> AnswerLayer:
    """A layer with one output per label, or the vocabulary."""
    if answer == "generate":
        return AnswerLayer("language")
    return AnswerLayer("classify", state.labels, state.multi_label)


def learn_labels(
    examples: Sequence[Example], preparation: Preparation, *, multi_label: bool
) -> TaskState:
    """Fix the order of the labels, which of two is the positive one, the class weights and the worked examples.

    Raises:
        DataError: If there are fewer than two labels.
        SettingError: If the positive label is none of two.
    """
    counts = count_labels(examples)
    labels = tuple(sorted(counts))
    if len(labels) < (1 if multi_label else 2):
        raise DataError(
            f"The training rows have {len(labels)} label(s) ({', '.join(labels)}); at least two are needed."
        )
    _check_positive(preparation.positive_label, labels, multi_label=multi_label)
    weights: tuple[float, ...] = ()
    if preparation.class_weights == "balanced":
        total = sum(counts.values())
        weights = tuple(total / (len(labels) * counts[label]) for label in labels)
    return TaskState(
        labels=labels,
        multi_label=multi_label,
        shots=tuple(_choose_shots(examples, preparation)),
        class_weights=weights,
        instruction=preparation.instruction,
        positive_label=preparation.positive_label,
    )


def _check_positive(label: str | None, labels: Sequence[str], *, multi_label: bool) -> None:
    if label is None:
        return
    name = "`task_settings.positive_label`"
    if multi_label or len(labels) != 2:
        found = "a text can have several" if multi_label else f"there are {len(labels)}"
        raise SettingError(
            f"Setting {name} has no effect here: it needs two labels of which each text has one, but {found}. Remove it."
        )
    if label not in labels:
        raise SettingError(
            f"Setting {name} is `{label}`, but the training rows have the labels `{labels[0]}` and `{labels[1]}`. "
            "Name one of them."
        )


def _choose_shots(examples: Sequence[Example], preparation: Preparation) -> list[Example]:
    """Worked examples, the classes in turn."""
    classes_and_ids = ((each.classes, each.id) for each in examples)
    num_shots = preparation.num_shots
    drawn = draw_in_turn(classes_and_ids, num_each=num_shots, seed=preparation.seed)
    return [examples[place] for place in drawn[:num_shots]]


def encode_labels(
    rendered: Sequence[Sequence[Rendered]],
    examples: Sequence[Example],
    state: TaskState,
    tokenizer: Tokenizer,
    *,
    answer: AnswerMode,
    limit: LengthLimit,
    with_target: bool,
) -> list[Features]:
    """Token ids with class numbers (head) or supervised answer tokens (generate).

    Args:
        rendered: The documents of every example: one, or one for each label that is asked about by itself.
        examples: What they were made of.
        state: The labels.
        tokenizer: The model's.
        answer: Which way they are answered.
        limit: Longest document.
        with_target: Whether the truth is told.

    Raises:
        DataError: If a text is too long and the policy is `error`, or a label is not known.
    """
    asks_each = answer == "generate" and state.multi_label
    documents = [
        (index, candidate if asks_each else -1, document)
        for index, each in enumerate(rendered)
        for candidate, document in enumerate(each)
    ]
    windows = encode_rendered(
        [document for _, _, document in documents],
        tokenizer,
        limit=limit,
        places=[examples[index].place for index, _, _ in documents],
    )
    numbers = {label: number for number, label in enumerate(state.labels)}
    targets = [_target(example, state, numbers) if with_target else -1 for example in examples]
    weights = [_weight(example, state, numbers) if with_target else 1.0 for example in examples]
    return [
        Features(
            token_ids=window.token_ids,
            place=examples[index].place,
            example_index=index,
            target=targets[index],
            targets_from=window.targets_from if with_target else -1,
            candidate=candidate,
            num_cut_tokens=window.num_cut_tokens,
            weight=weights[index] / len(parts),
        )
        for (index, candidate, _), parts in zip(documents, windows, strict=True)
        for window in parts
    ]


def _target(example: Example, state: TaskState, numbers: dict[str, int]) -> int | tuple[int, ...]:
    labels = example.classes
    for label in labels:
        if label not in numbers:
            raise DataError(
                f"{example.place}: label `{label}` is not one of the {len(numbers)} that the model knows."
            )
    if state.multi_label:
        return tuple(int(label in labels) for label in state.labels)
    return numbers[labels[0]]


def _weight(example: Example, state: TaskState, numbers: dict[str, int]) -> float:
    labels = example.classes
    if not state.class_weights or not labels:
        return 1.0
    return sum(state.class_weights[numbers[label]] for label in labels) / len(labels)


def label_loss(backbone: Backbone, batch: Batch, state: TaskState, *, dropout: float) -> LossSum:
    """Cross-entropy of the label, of each label's yes or no, or of the answer's tokens."""
    hidden_TD = backbone.hidden_states(batch)
    if batch.features[0].targets_from >= 0:
        return answer_loss(backbone, hidden_TD, batch)
    logits_NC = class_logits(backbone.plain_model, hidden_TD, batch, dropout=dropout)
    weights_N = logits_NC.new_tensor([each.weight for each in batch.features])
    targets = torch.tensor([each.target for each in batch.features], device=logits_NC.device)
    if state.multi_label:
        losses_NC = functional.binary_cross_entropy_with_logits(
            logits_NC, targets.float(), reduction="none"
        )
        losses_N = losses_NC.mean(dim=1)
    else:
        losses_N = functional.cross_entropy(logits_NC, targets, reduction="none")
    return LossSum((losses_N * weights_N).sum(), sum(each.weight for each in batch.features))


def class_outputs(backbone: Backbone, batch: Batch) -> list[np.ndarray]:
    """Class scores before softmax or sigmoid; (C,) each."""
    hidden_TD = backbone.hidden_states(batch)
    return list(class_logits(backbone.plain_model, hidden_TD, batch).cpu().numpy())


def decode_labels(
    outputs: Sequence[np.ndarray],
    features: Sequence[Features],
    examples: Sequence[Example],
    state: TaskState,
    *,
    answer: AnswerMode,
) -> list[Prediction]:
    """Turn scores into labels; probabilities of a text's windows are averaged."""
    probabilities_FC = _probabilities(np.stack(outputs), state, answer=answer)
    table_EC = np.zeros((len(examples), len(state.labels)))
    counts_EC = np.zeros_like(table_EC)
    for row_C, each in zip(probabilities_FC, features, strict=True):
        columns = slice(None) if each.candidate < 0 else each.candidate
        table_EC[each.example_index, columns] += row_C[0] if each.candidate >= 0 else row_C
        counts_EC[each.example_index, columns] += 1
    table_EC /= counts_EC
    return [
        _prediction(example, row_C, state)
        for example, row_C in zip(examples, table_EC, strict=True)
    ]


def _probabilities(outputs: np.ndarray, state: TaskState, *, answer: AnswerMode) -> np.ndarray:
    outputs = outputs.astype(np.float64)
    if answer == "head" and state.multi_label:
        return 1 / (1 + np.exp(-outputs))
    shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _prediction(example: Example, probabilities_C: np.ndarray, state: TaskState) -> Prediction:
    by_label = {
        label: float(value) for label, value in zip(state.labels, probabilities_C, strict=True)
    }
    if state.multi_label:
        answer = tuple(label for label, value in by_label.items() if value >= THRESHOLD)
        certain = np.where(probabilities_C >= THRESHOLD, probabilities_C, 1 - probabilities_C)
        return Prediction(
            example.id, answer, by_label, float(np.log(np.maximum(certain, _TINY)).sum())
        )
    best = int(np.argmax(probabilities_C))
    likelihood = float(np.log(max(probabilities_C[best], _TINY)))
    return Prediction(example.id, state.labels[best], by_label, likelihood)


def log_loss(
    predictions: Sequence[Prediction], examples: Sequence[Example], state: TaskState
) -> float:
    """Mean negative log-likelihood of the truth; per label where a text can have several."""
    total = 0.0
    for prediction, example in zip(predictions, examples, strict=True):
        truth = set(example.classes)
        asked = state.labels if state.multi_label else tuple(truth)
        for label in asked:
            value = prediction.probabilities.get(label, 0.0)
            total -= math.log(max(value if label in truth else 1 - value, _TINY)) / len(asked)
    return total / len(examples)
