"""Give a text its label, or its labels: sentiment, topic, intent.

Columns: `text`, `label` (a list, or labels joined by `|` or `;`, where a text can have several).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lushan import label_answers
from lushan.backbones.encoding import LengthLimit
from lushan.backbones.inspect import Family
from lushan.backbones.load import AnswerLayer, Backbone
from lushan.backbones.tokenizer import Tokenizer
from lushan.data.columns import Columns, cut_labels
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
from lushan.text_answers import render_prompt

_YES_NO = (" yes", " no")


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
    settings = frozenset({
        "multi_label",
        "class_weights",
        "num_shots",
        "instruction",
        "positive_label",
    })
    writes = False
    is_judged_by_likelihood = False
    untuned: Mapping[Family, Untuned] = {"decoder": "prompt", "encoder": "similarity"}
    baselines: tuple[str, ...] = ("majority", "tf_idf")
    wording = Wording(
        pipeline_tag="text-classification",
        use="Sorting texts like those it was trained on into {count} labels: {labels}.",
        limits=dict.fromkeys(
            answers, "Only the known labels can be given, also to a text that fits none of them."
        ),
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
        return label_answers.answer_layer(state, answer)

    def notes(self, examples: Sequence[Example]) -> list[str]:
        """Nothing beside what every task tells."""
        return []

    def prepare(
        self, examples: Sequence[Example], preparation: Preparation, *, multi_label: bool
    ) -> TaskState:
        """Fix the order of the labels, which of two is the positive one, the class weights and the worked examples.

        Raises:
            DataError: If there are fewer than two labels.
            SettingError: If the positive label is none of two.
        """
        return label_answers.learn_labels(examples, preparation, multi_label=multi_label)

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
            self.render(each, state, answer=answer, with_target=with_target, shots=shots)
            for each in examples
        ]
        return label_answers.encode_labels(
            rendered,
            examples,
            state,
            tokenizer,
            answer=answer,
            limit=limit,
            with_target=with_target,
        )

    def candidates(self, state: TaskState) -> list[str]:
        """The labels, or yes and no where each label is asked about by itself."""
        return list(_YES_NO) if state.multi_label else [f" {label}" for label in state.labels]

    def loss(
        self, backbone: Backbone, batch: Batch, state: TaskState, *, dropout: float
    ) -> LossSum:
        """Cross-entropy of the label, of each label's yes or no, or of the answer's tokens."""
        return label_answers.label_loss(backbone, batch, state, dropout=dropout)

    def outputs(self, backbone: Backbone, batch: Batch) -> Outputs:
        """Class scores before softmax or sigmoid; (C,) each."""
        return label_answers.class_outputs(backbone, batch)

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
        return label_answers.decode_labels(outputs, features, examples, state, answer=answer)

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
        positive = metrics.positive_label(
            state.labels, multi_label=state.multi_label, named=state.positive_label
        )
        options: dict[str, Any] = {"multi_label": state.multi_label, "positive": positive}
        scores = metrics.score(truth, answers, state.labels, **options)
        return Scores(
            main_metric="micro_f1" if state.multi_label else "accuracy",
            metrics=metrics.intervals(truth, answers, state.labels, seed=seed, **options),
            correct=metrics.correct_rows(truth, answers),
            details={
                "labels": list(state.labels),
                "positive_label": positive,
                "log_loss": label_answers.log_loss(predictions, examples, state),
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
        label, _ = cut_labels(label)
    if not isinstance(label, list | tuple):
        raise DataError(f"{row.place}: column `label` must hold a list of labels, got {label!r}.")
    return tuple(sorted({str(each).strip() for each in label} - {""}))


def _render_question(
    example: Example,
    state: TaskState,
    label: str | None,
    *,
    with_target: bool,
    shots: Sequence[Example],
) -> Rendered:
    return render_prompt(
        Rendered(example.text, cuttable=(0, len(example.text))),
        opening=_instruction(state),
        shots=[(shot.text, _answer(shot, label)) for shot in shots],
        question=_question(label),
        answer=_answer(example, label) if with_target else None,
    )


def _instruction(state: TaskState) -> str:
    if state.instruction is not None:
        return f"{state.instruction}\n\n"
    if state.multi_label or len(state.labels) > label_answers.MOST_LABELS_IN_PROMPT:
        return "Classify the text.\n\n"
    return f"Classify the text as one of: {', '.join(state.labels)}.\n\n"


def _question(label: str | None) -> str:
    return "Label:" if label is None else f"Does the label {label} apply?"


def _answer(example: Example, label: str | None) -> str:
    if label is None:
        return f" {example.target}"
    return _YES_NO[0] if label in example.classes else _YES_NO[1]
