"""Name the relation between two marked parts of a text, with its direction: `Cause-Effect(e2,e1)`.

Columns: `text`, `head` and `tail` (where they are in it), `label`. A text may have the marks in it instead of `head` and `tail`.

The model reads the text with its marks: `The <e1>fire</e1> was caused by <e2>lightning</e2>.` A class layer reads what
that of any classifier reads, a decoder's last token, which has seen both spans: a tuned model is a sequence classifier of `transformers`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lushan import label_answers
from lushan.backbones.encoding import LengthLimit
from lushan.backbones.inspect import Family
from lushan.backbones.load import AnswerLayer, Backbone
from lushan.backbones.tokenizer import Tokenizer
from lushan.data.columns import Columns
from lushan.data.pairs import HEAD_MARKS, TAIL_MARKS, places_of, read_pair, without_marks
from lushan.errors import DataError
from lushan.metrics import classification, relations
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

_SPANS = f"of {HEAD_MARKS[0]} and {TAIL_MARKS[0]}"


class Task:
    """The relation of two spans of a text, one of a closed list.

    Columns: `text`, `head`, `tail` and `label`.
    """

    columns = Columns(
        required=("text", "label"),
        optional=("head", "tail"),
        guesses={
            "text": ("sentence", "content", "body"),
            "label": ("labels", "relation", "class"),
            "head": ("e1", "subject", "head_entity"),
            "tail": ("e2", "object", "tail_entity"),
        },
        labels=("label",),
    )
    answers: tuple[AnswerMode, ...] = ("head", "generate")
    settings = frozenset({"class_weights", "num_shots", "instruction"})
    writes = False
    is_judged_by_likelihood = False
    untuned: Mapping[Family, Untuned] = {"decoder": "prompt", "encoder": "similarity"}
    baselines: tuple[str, ...] = ("majority", "tf_idf")
    wording = Wording(
        pipeline_tag="text-classification",
        use="Naming the relation between two marked parts of texts like those it was trained on, one of {count}: {labels}.",
        label="relation",
        counted="pairs",
        limits=dict.fromkeys(
            answers,
            "Every pair gets one of the known relations, also a pair that none of them fits.",
        ),
    )

    def read(self, row: Row, *, multi_label: bool = False, needs_target: bool = True) -> Example:
        """Check one row; the text of its example has the marks.

        Raises:
            DataError: If the spans do not fit the text, or the label is missing although it is needed.
        """
        text = read_pair(row)
        label = row.values.get("label")
        if label in (None, ""):
            if needs_target:
                raise DataError(f"{row.place}: column `label` is empty. Give every row a label.")
            return Example(content_id(text), text, None, row.place, group=without_marks(text))
        if isinstance(label, list | tuple):
            raise DataError(
                f"{row.place}: column `label` holds a list, {label!r}, but one relation per row is expected. "
                "Write a row for each."
            )
        target = str(label).strip()
        # Pairs of one text are never cut into two splits.
        id_, group = content_id(text, target), without_marks(text)
        return Example(id_, text, target, row.place, group=group)

    def layer(self, state: TaskState, *, answer: AnswerMode) -> AnswerLayer:
        """A layer with one output per label, or the vocabulary."""
        return label_answers.answer_layer(state, answer)

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
        return label_answers.learn_labels(examples, preparation, multi_label=False)

    def render(
        self,
        example: Example,
        state: TaskState,
        *,
        answer: AnswerMode,
        with_target: bool,
        shots: Sequence[Example] = (),
    ) -> list[Rendered]:
        """The marked text alone for a head; instruction, worked examples and question for generation.

        What may be cut is what stands before the first span or behind the second, whichever is longer.
        """
        text = _with_limits(example.text)
        if answer == "head":
            return [text]
        return [
            render_prompt(
                text,
                opening=_opening(state),
                shots=[(shot.text, f" {shot.target}") for shot in shots],
                question="Relation:",
                answer=f" {example.target}" if with_target else None,
            )
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
        """Token ids with class numbers (head) or supervised answer tokens (generate); both spans are in every window.

        Raises:
            DataError: If a text is too long and the policy is `error`, or its spans are too far apart to fit.
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
        """The labels."""
        return [f" {label}" for label in state.labels]

    def loss(
        self, backbone: Backbone, batch: Batch, state: TaskState, *, dropout: float
    ) -> LossSum:
        """Cross-entropy of the label, or of the answer's tokens."""
        return label_answers.label_loss(backbone, batch, state, dropout=dropout)

    def outputs(self, backbone: Backbone, batch: Batch) -> Outputs:
        """Class scores before softmax; (C,) each."""
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
        """The likeliest label; probabilities of a text's windows are averaged."""
        return label_answers.decode_labels(outputs, features, examples, state, answer=answer)

    def score(
        self,
        predictions: Sequence[Prediction],
        examples: Sequence[Example],
        state: TaskState,
        *,
        seed: int = 0,
    ) -> Scores:
        """Macro F1 of the relations first, as SemEval-2010 Task 8 counts; the tables are of whole labels."""
        truth: list[Any] = [each.target for each in examples]
        answers: list[Any] = [each.answer for each in predictions]
        tables = classification.score(truth, answers, state.labels, multi_label=False)
        return Scores(
            main_metric="macro_f1",
            metrics=relations.intervals(truth, answers, state.labels, seed=seed),
            correct=classification.correct_rows(truth, answers),
            details={
                "labels": list(state.labels),
                "log_loss": label_answers.log_loss(predictions, examples, state),
                "per_class": [asdict(each) for each in tables.per_class],
                "confusion": [list(row) for row in tables.confusion],
            },
        )

    def sample_rows(self) -> list[Row]:
        """Six sentences of who has what."""
        samples = (
            ("Ada", " got a ", "dog", " at long last.", "Has(e1,e2)"),
            ("Tea", " is what ", "Bo", " sips.", "Has(e2,e1)"),
            ("Max", " met ", "Eva", " on a hill.", "Other"),
            ("Lea", " owns ", "land", " in the west.", "Has(e1,e2)"),
            ("A hat", " sat on ", "Tom", " again.", "Has(e2,e1)"),
            ("Sun", " or ", "rain", ", he said to us.", "Other"),
        )
        rows: list[Row] = []
        for number, (head, between, tail, behind, label) in enumerate(samples, start=1):
            text = head + between + tail + behind
            values = {
                name: {"start": text.index(part), "end": text.index(part) + len(part)}
                for name, part in (("head", head), ("tail", tail))
            }
            rows.append(Row({"text": text, **values, "label": label}, "samples", number))
        return rows


def _with_limits(text: str) -> Rendered:
    """Let the longer part outside of the spans be cut, from its far end."""
    places = places_of(text)
    if places is None:
        return Rendered(text, cuttable=(0, len(text)))
    first, second = sorted(places)
    before = (0, first[0] - len(HEAD_MARKS[0]))
    behind = (second[1] + len(TAIL_MARKS[1]), len(text))
    is_before_longer = before[1] > behind[1] - behind[0]
    return Rendered(
        text,
        cuttable=before if is_before_longer else behind,
        cuts_start=is_before_longer,
        uncut="What must stay (both spans, what is between them, and the shorter side)",
        given=((0, len(text)),),
    )


def _opening(state: TaskState) -> str:
    if state.instruction is not None:
        return f"{state.instruction}\n\n"
    if len(state.labels) > label_answers.MOST_LABELS_IN_PROMPT:
        return f"Name the relation {_SPANS}.\n\n"
    return f"Name the relation {_SPANS} as one of: {', '.join(state.labels)}.\n\n"
