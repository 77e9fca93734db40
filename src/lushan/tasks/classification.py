"""Give a text its label, or its labels: sentiment, topic, intent.

Columns: `text`, `label` (a list, or labels joined by `|` or `;`, where a text can have several).

Shapes: N documents, T tokens, D width, C classes, K supervised positions, F features (documents).
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lushan.backbones.encoding import LengthLimit, encode_rendered
from lushan.backbones.heads import class_logits, vocabulary_loss
from lushan.backbones.inspect import Family
from lushan.backbones.load import AnswerLayer, Backbone
from lushan.backbones.tokenizer import Tokenizer
from lushan.data.columns import Columns
from lushan.data.example_store import kinds_of
from lushan.data.splits import count_labels
from lushan.errors import DataError
from lushan.metrics import classification as metrics
from lushan.records import (
    AnswerMode,
    Batch,
    Example,
    Features,
    LossSum,
    Prediction,
    Rendered,
    Row,
    Scores,
    TaskState,
    content_id,
)
from lushan.tasks import Outputs, Preparation, Untuned, Wording

_MOST_LABELS_IN_PROMPT = 20
_YES_NO = (" yes", " no")
_TINY = 1e-300
"""Stands for a probability of zero, whose logarithm is no number."""


class Task:
    """Text classification: binary, many classes, or several labels per text.

    Columns: `text` (the text) and `label` (its label, or a list of labels).
    """

    columns = Columns(
        required=("text", "label"),
        guesses={
            "text": ("sentence", "review", "content", "body", "utterance", "query", "message"),
            "label": ("labels", "class", "category", "sentiment", "intent", "topic", "target"),
        },
        labels=("label",),
        lists=("label",),
    )

    answers: tuple[AnswerMode, ...] = ("head", "generate")
    settings = frozenset({"multi_label", "class_weights", "num_shots", "instruction"})
    untuned: Mapping[Family, Untuned] = {"decoder": "prompt", "encoder": "similarity"}
    baselines: tuple[str, ...] = ("majority", "tf_idf")
    wording = Wording(
        pipeline_tag="text-classification",
        use="Sorting texts like those it was trained on into {count} labels: {labels}.",
    )

    def read(self, row: Row, *, multi_label: bool = False, needs_target: bool = True) -> Example:
        """Check one row.

        Raises:
            DataError: If the text is missing, or the label is although it is needed.
        """
        text = row.values.get("text")
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{row.place}: column `text` must hold a text, got {text!r}.")
        label = row.values.get("label")
        if label in (None, ""):
            if needs_target:
                raise DataError(f"{row.place}: column `label` is empty. Give every row a label.")
            return Example(content_id(text), text, None, row.place)
        target = _read_labels(row, label) if multi_label else _read_label(row, label)
        return Example(content_id(text, target), text, target, row.place)

    def layer(self, state: TaskState, *, answer: AnswerMode) -> AnswerLayer:
        """A layer with one output per label, or the vocabulary."""
        if answer == "generate":
            return AnswerLayer("language")
        return AnswerLayer("classify", state.labels, state.multi_label)

    def notes(self, examples: Sequence[Example]) -> list[str]:
        """Nothing beside what every task tells."""
        return []

    def prepare(
        self, examples: Sequence[Example], preparation: Preparation, *, multi_label: bool
    ) -> TaskState:
        """Fix the order of the labels, the class weights and the worked examples.

        Raises:
            DataError: If there are fewer than two labels.
        """
        counts = count_labels(examples)
        labels = tuple(sorted(counts))
        if len(labels) < (1 if multi_label else 2):
            raise DataError(
                f"The training rows have {len(labels)} label(s) ({', '.join(labels)}); at least two are needed."
            )
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
        )

    def render(
        self,
        example: Example,
        state: TaskState,
        *,
        answer: AnswerMode,
        with_target: bool,
        shots: Sequence[Example] = (),
    ) -> list[Rendered]:
        """The text alone for a head; instruction, worked examples and question for generation."""
        if answer == "head":
            return [Rendered(example.text, cuttable=(0, len(example.text)))]
        if not state.multi_label:
            return [_render_question(example, state, None, with_target=with_target, shots=shots)]
        return [
            _render_question(example, state, label, with_target=with_target, shots=shots)
            for label in state.labels
        ]

    def encode(
        self,
        examples: Sequence[Example],
        state: TaskState,
        tokenizer: Tokenizer,
        *,
        answer: AnswerMode,
        limit: LengthLimit,
        with_target: bool,
        shots: Sequence[Example] = (),
    ) -> list[Features]:
        """Token ids with class numbers (head) or supervised answer tokens (generate).

        Raises:
            DataError: If a text is too long and the policy is `error`.
        """
        rendered = [
            (index, candidate, each)
            for index, example in enumerate(examples)
            for candidate, each in enumerate(
                self.render(example, state, answer=answer, with_target=with_target, shots=shots)
            )
        ]
        windows = encode_rendered(
            [each for _, _, each in rendered],
            tokenizer,
            limit=limit,
            places=[examples[index].place for index, _, _ in rendered],
        )
        asks_each = answer == "generate" and state.multi_label
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
                candidate=candidate if asks_each else -1,
                num_cut_tokens=window.num_cut_tokens,
                weight=weights[index] / len(parts),
            )
            for (index, candidate, _), parts in zip(rendered, windows, strict=True)
            for window in parts
        ]

    def candidates(self, state: TaskState) -> list[str]:
        """The labels, or yes and no where each label is asked about by itself."""
        return list(_YES_NO) if state.multi_label else [f" {label}" for label in state.labels]

    def loss(
        self, backbone: Backbone, batch: Batch, state: TaskState, *, dropout: float
    ) -> LossSum:
        """Cross-entropy of the label, of each label's yes or no, or of the answer's tokens."""
        hidden_TD = backbone.hidden_states(batch)
        if batch.features[0].targets_from >= 0:
            return _answer_loss(backbone, hidden_TD, batch)
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

    def outputs(self, backbone: Backbone, batch: Batch) -> Outputs:
        """Class scores before softmax or sigmoid; (C,) each."""
        hidden_TD = backbone.hidden_states(batch)
        return list(class_logits(backbone.plain_model, hidden_TD, batch).cpu().numpy())

    def decode(
        self,
        outputs: Outputs,
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

    def score(
        self,
        predictions: Sequence[Prediction],
        examples: Sequence[Example],
        state: TaskState,
        *,
        seed: int = 0,
    ) -> Scores:
        """Accuracy first (macro F1 where a text can have several labels)."""
        truth: list[Any] = [each.target for each in examples]
        answers: list[Any] = [each.answer for each in predictions]
        options = {"multi_label": state.multi_label}
        scores = metrics.score(truth, answers, state.labels, **options)
        return Scores(
            main_metric="micro_f1" if state.multi_label else "accuracy",
            metrics=metrics.intervals(truth, answers, state.labels, seed=seed, **options),
            correct=metrics.correct_rows(truth, answers),
            details={
                "labels": list(state.labels),
                "log_loss": _log_loss(predictions, examples, state),
                "per_class": [asdict(each) for each in scores.per_class],
                "confusion": [list(row) for row in scores.confusion],
            },
        )

    def sample_rows(self) -> list[Row]:
        """Six short reviews."""
        samples = (
            ("a warm and funny film", "positive"),
            ("dull from start to end", "negative"),
            ("i would watch it again", "positive"),
            ("a waste of two hours", "negative"),
            ("the actors are a delight", "positive"),
            ("the plot makes no sense", "negative"),
        )
        return [
            Row({"text": text, "label": label}, "samples", number)
            for number, (text, label) in enumerate(samples, start=1)
        ]


def _read_label(row: Row, label: object) -> str:
    if isinstance(label, list | tuple):
        raise DataError(
            f"{row.place}: column `label` holds a list, {label!r}, but one label per text is expected. "
            "For several, use `--set task_settings.multi_label=true`."
        )
    return str(label).strip()


def _read_labels(row: Row, label: object) -> tuple[str, ...]:
    if isinstance(label, str):
        separator = "|" if "|" in label else ";"
        label = label.split(separator)
    if not isinstance(label, list | tuple):
        raise DataError(f"{row.place}: column `label` must hold a list of labels, got {label!r}.")
    return tuple(sorted({str(each).strip() for each in label} - {""}))


def _labels_of(example: Example) -> tuple[str, ...]:
    return example.classes


def _target(example: Example, state: TaskState, numbers: dict[str, int]) -> int | tuple[int, ...]:
    labels = _labels_of(example)
    for label in labels:
        if label not in numbers:
            raise DataError(
                f"{example.place}: label `{label}` is not one of the {len(numbers)} that the model knows."
            )
    if state.multi_label:
        return tuple(int(label in labels) for label in state.labels)
    return numbers[labels[0]]


def _weight(example: Example, state: TaskState, numbers: dict[str, int]) -> float:
    if not state.class_weights:
        return 1.0
    labels = _labels_of(example)
    if not labels:
        return 1.0
    return sum(state.class_weights[numbers[label]] for label in labels) / len(labels)


def _choose_shots(examples: Sequence[Example], preparation: Preparation) -> list[Example]:
    """Worked examples: the classes in turn, each class's examples in an order that the seed decides."""
    num_shots = preparation.num_shots
    first: dict[tuple[str, ...], list[tuple[str, int]]] = {}
    codes, kinds = kinds_of(examples)
    for place, (each, code) in enumerate(zip(examples, codes.tolist(), strict=True)):
        members = first.setdefault(_labels_of(kinds[code]), [])
        members.append((content_id(preparation.seed, each.id), place))
        if len(members) >= 100 * num_shots:
            members[:] = heapq.nsmallest(num_shots, members)
    ordered = sorted(sorted(members)[:num_shots] for members in first.values())
    by_label = [[examples[place] for _, place in members] for members in ordered]
    turns = [
        each
        for turn in range(num_shots)
        for members in by_label
        for each in members[turn : turn + 1]
    ]
    return turns[:num_shots]


def _render_question(
    example: Example,
    state: TaskState,
    label: str | None,
    *,
    with_target: bool,
    shots: Sequence[Example],
) -> Rendered:
    text = _instruction(state) + "".join(
        f"Text: {shot.text}\n{_question(label)}{_answer(shot, label)}\n\n" for shot in shots
    )
    start = len(text) + len("Text: ")
    text += f"Text: {example.text}\n{_question(label)}"
    cuttable = (start, start + len(example.text))
    if not with_target:
        return Rendered(text, cuttable=cuttable)
    answer = _answer(example, label)
    supervised = ((len(text), len(text) + len(answer)),)
    return Rendered(text + answer, supervised=supervised, cuttable=cuttable, ends_with_stop=True)


def _instruction(state: TaskState) -> str:
    if state.instruction is not None:
        return f"{state.instruction}\n\n"
    if state.multi_label or len(state.labels) > _MOST_LABELS_IN_PROMPT:
        return "Classify the text.\n\n"
    return f"Classify the text as one of: {', '.join(state.labels)}.\n\n"


def _question(label: str | None) -> str:
    return "Label:" if label is None else f"Does the label {label} apply?"


def _answer(example: Example, label: str | None) -> str:
    if label is None:
        return f" {example.target}"
    return _YES_NO[0] if label in _labels_of(example) else _YES_NO[1]


def _answer_loss(backbone: Backbone, hidden_TD: Tensor, batch: Batch) -> LossSum:
    """Cross-entropy of the supervised tokens; only their positions meet the vocabulary."""
    starts = batch.first_N.tolist()
    targets_K = torch.cat([
        torch.arange(start + each.targets_from, start + len(each.token_ids))
        for start, each in zip(starts, batch.features, strict=True)
    ]).to(hidden_TD.device)
    weights_K = torch.tensor(
        [each.weight for each in batch.features for _ in range(each.num_supervised)],
        device=hidden_TD.device,
    )
    total = vocabulary_loss(
        backbone.plain_model,
        hidden_TD[targets_K - 1],
        batch.token_ids_1T[0, targets_K],
        weights_K,
    )
    count = sum(each.weight * each.num_supervised for each in batch.features)
    return LossSum(total, count)


def _probabilities(outputs: np.ndarray, state: TaskState, *, answer: AnswerMode) -> np.ndarray:
    outputs = outputs.astype(np.float64)
    if answer == "head" and state.multi_label:
        return 1 / (1 + np.exp(-outputs))
    shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _log_loss(
    predictions: Sequence[Prediction], examples: Sequence[Example], state: TaskState
) -> float:
    """Mean negative log-likelihood of the truth; per label where a text can have several."""
    total = 0.0
    for prediction, example in zip(predictions, examples, strict=True):
        truth = set(_labels_of(example))
        asked = state.labels if state.multi_label else tuple(truth)
        for label in asked:
            value = prediction.probabilities.get(label, 0.0)
            total -= math.log(max(value if label in truth else 1 - value, _TINY)) / len(asked)
    return total / len(examples)


def _prediction(example: Example, probabilities_C: np.ndarray, state: TaskState) -> Prediction:
    by_label = {
        label: float(value) for label, value in zip(state.labels, probabilities_C, strict=True)
    }
    if state.multi_label:
        answer = tuple(label for label, value in by_label.items() if value >= 0.5)
        certain = np.where(probabilities_C >= 0.5, probabilities_C, 1 - probabilities_C)
        return Prediction(
            example.id, answer, by_label, float(np.log(np.maximum(certain, _TINY)).sum())
        )
    best = int(np.argmax(probabilities_C))
    likelihood = float(np.log(max(probabilities_C[best], _TINY)))
    return Prediction(example.id, state.labels[best], by_label, likelihood)
