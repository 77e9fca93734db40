"""Answer a question with the part of a text that says it, or tell that none does.

Columns: `context`, `question`, `answers` (`text` and `answer_start` in characters, as SQuAD has them; or texts alone, which need
not be in the context, and can only be written), or SQuAD's nested files.

A model reads the question, the context and a last mark. For a head every token of the context may be where the answer starts
and where it ends; the last token, which in a decoder has seen all, stands for "not in here". Its answer is always cut out of
the context, at borders of tokens. With `generate` the model writes the answer, which may then be in its own words.

Shapes: T tokens, D width, K tokens of the context and the last.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from lushan import cut_answers, text_answers
from lushan.backbones.encoding import LengthLimit
from lushan.backbones.inspect import Family
from lushan.backbones.load import AnswerLayer, Backbone
from lushan.backbones.tokenizer import Tokenizer
from lushan.cut_answers import Part
from lushan.data.columns import Columns
from lushan.data.squad import ANSWER, NO_ANSWER, read_answers
from lushan.data.words import is_unspaced
from lushan.errors import DataError
from lushan.metrics import answering as metrics
from lushan.metrics.abstention import Asked, ThresholdPoint, threshold_table
from lushan.records import (
    Answer,
    AnswerMode,
    Batch,
    Example,
    Features,
    LossSum,
    Prediction,
    Rendered,
    Row,
    Scores,
    Span,
    TaskState,
    content_id,
)
from lushan.tasks import Outputs, Preparation, Untuned, Wording

_SAMPLES = (
    ("Ada left London in May.", "When did Ada leave?", "May"),
    ("Ada left London in May.", "Who left London?", "Ada"),
    ("The river Spree flows through Berlin.", "Where does the Spree flow?", "Berlin"),
    ("Soup was served at noon with bread.", "What was served?", "Soup"),
    ("Soup was served at noon with bread.", "Who cooked the soup?", None),
    ("The fox slept in the forest.", "Where did the fox sleep?", "in the forest"),
)


class _Abstention:
    """When no answer is given."""

    def may_abstain(self, state: TaskState) -> bool:
        """Whether the training rows had questions without an answer."""
        return NO_ANSWER in state.labels

    def unanswered(self, example: Example) -> Example:
        """The example as if its text had no answer."""
        return replace(example, target=(), labels=(NO_ANSWER,))

    def thresholds(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> list[ThresholdPoint]:
        """Show what thresholds of giving no answer do; the one with the best F1 is marked."""
        kinds = {bool(each.target) for each in examples}
        if len(kinds) < 2:
            return []
        given = [_given(*pair) for pair in zip(predictions, examples, strict=True)]
        scored = [
            metrics.score_answer(_question(example), answer)
            for answer, example in zip(given, examples, strict=True)
        ]
        return threshold_table([
            Asked(
                prediction.no_answer_probability or 0.0,
                bool(example.target),
                score.f1,
                score.exact_match,
                bool(answer),
            )
            for prediction, example, score, answer in zip(
                predictions, examples, scored, given, strict=True
            )
        ])


class Task:
    """Questions about a text, answered with a part of it.

    Columns: `context`, `question`, `answers`.
    """

    columns = Columns(
        required=("context", "question", "answers"),
        guesses={
            "context": ("passage", "paragraph", "document", "text"),
            "question": ("query",),
            "answers": ("answer",),
        },
        asked_with=("question",),
    )
    answers: tuple[AnswerMode, ...] = ("head", "generate")
    settings = frozenset({"num_shots", "instruction", "attention"})
    writes = True
    is_judged_by_likelihood = False
    untuned: Mapping[Family, Untuned] = {"decoder": "prompt", "encoder": "nothing"}
    baselines: tuple[str, ...] = ("sentence",)
    abstention = _Abstention()
    wording = Wording(
        pipeline_tag="question-answering",
        use="Answering questions with a part of the text that they are about, for texts like those it was trained on.",
        label="answer",
        counted="questions",
        nothing="no answer",
        limits={
            "head": "Any part of the text can be given, also a wrong one, and nothing that does not stand in it."
        },
    )
    as_read = staticmethod(cut_answers.as_read)

    def read(self, row: Row, *, multi_label: bool = False, needs_target: bool = True) -> Example:
        """Check one row. The most frequent of several answers comes first.

        Raises:
            DataError: If the context or the question is missing, or an answer is not at its place.
        """
        context, question = (_text(row, name) for name in ("context", "question"))
        extra = {"question": question}
        if row.values.get("answers") is None:
            if needs_target:
                raise DataError(
                    f"{row.place}: column `answers` is empty. For a question without an answer give an empty list."
                )
            return Example(content_id(context, question), context, None, row.place, extra)
        # `most_common` keeps the order of the row where answers are equally frequent.
        found = [each for each, _ in Counter(read_answers(row, context)).most_common()]
        told = [each if isinstance(each, str) else [each.start, each.end] for each in found]
        identity = content_id(context, question, told)
        labels = (ANSWER if found else NO_ANSWER,)
        target = cast("Answer", tuple(found))
        return Example(identity, context, target, row.place, extra, labels)

    def layer(self, state: TaskState, *, answer: AnswerMode) -> AnswerLayer:
        """A layer with two outputs at every token, the answer starts here, and ends here; or the vocabulary."""
        if answer == "generate":
            return AnswerLayer("language")
        return AnswerLayer("tag", ("start", "end"), both_ways=state.both_ways)

    def prepare(
        self, examples: Sequence[Example], preparation: Preparation, *, multi_label: bool
    ) -> TaskState:
        """See whether there are questions without an answer: only then may a model give none.

        Raises:
            DataError: If no question has an answer.
        """
        labels = tuple(sorted({label for each in examples for label in each.classes}))
        if ANSWER not in labels:
            raise DataError(
                f"None of the {len(examples):,} training rows has an answer. Give rows whose text answers the question."
            )
        writing = text_answers.learn_to_write(examples, preparation, text_of=_told_answer)
        both_ways = preparation.attention == "bidirectional"
        return replace(writing, labels=labels, both_ways=both_ways)

    def notes(self, examples: Sequence[Example]) -> list[str]:
        """Tell of the answers that are not learned."""
        return _notes(examples)

    def render(
        self,
        example: Example,
        state: TaskState,
        *,
        answer: AnswerMode,
        with_target: bool,
        shots: Sequence[Example] = (),
    ) -> list[Rendered]:
        """Question, context and a last mark, of which only the context may be cut; before them, to write, worked examples."""
        start = ""
        if answer == "generate":
            start = _instruction(state)
            start += "".join(f"{_asked(shot)} {_told_answer(shot)}\n\n" for shot in shots)
        before = len(start) + len(_before(example))
        cuttable = (before, before + len(example.text))
        question = len(start) + len("Question: ")
        asked = (question, question + len(example.extra.get("question", "")))
        rendered = Rendered(start + _asked(example), cuttable=cuttable, given=(asked, cuttable))
        if answer == "generate" and with_target:
            return [text_answers.told(rendered, f" {_told_answer(example)}")]
        return [rendered]

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
        """Token ids, and where among the tokens of the context the answer starts and ends; or the answer's own tokens.

        For a head a long context is read in windows, each of which begins in the middle of the one before. The windows with most
        of the answer learn it; the others learn that it is not in them.

        Raises:
            DataError: If a text is too long and the policy is `error`, or a head is to learn an answer without a place.
        """
        rendered = [
            document
            for each in examples
            for document in self.render(
                each, state, answer=answer, with_target=with_target, shots=shots
            )
        ]
        if answer == "generate":
            return text_answers.encode_text(rendered, examples, tokenizer, limit=limit)
        if with_target:
            _refuse_free_answers(examples)
        parts = [Part(_before(each), _spans(each.target)) for each in examples]
        return cut_answers.encode_parts(
            rendered, examples, parts, tokenizer, limit=limit, with_target=with_target
        )

    def candidates(self, state: TaskState) -> list[str]:
        """None: any text may be written."""
        return []

    def loss(
        self, backbone: Backbone, batch: Batch, state: TaskState, *, dropout: float
    ) -> LossSum:
        """Cross-entropy of the token where the answer starts, and of that where it ends: their mean; or of what is written."""
        if batch.features[0].targets_from >= 0:
            return text_answers.answer_loss(backbone, backbone.hidden_states(batch), batch)
        return cut_answers.part_loss(backbone, batch, dropout=dropout)

    def outputs(self, backbone: Backbone, batch: Batch) -> Outputs:
        """Start and end scores of the tokens of the context and of the last, before softmax; (K, 2) each.

        Of answers that are written: how likely the truth is, and its number of tokens; (2,) each.
        """
        if batch.features[0].targets_from >= 0:
            return text_answers.truth_likelihoods(backbone, batch)
        return [logits_K2.cpu().numpy() for logits_K2 in cut_answers.place_logits(backbone, batch)]

    def decode(
        self,
        outputs: Outputs,
        features: Sequence[Features],
        examples: Sequence[Example],
        state: TaskState,
        *,
        answer: AnswerMode,
    ) -> list[Prediction]:
        """The part of the text that is likeliest against "not in here", over all windows.

        No answer is given where the probability of "not in here" is above the threshold and the training rows had such
        questions. What is written stands for its first place in the text, and for itself where it has none.
        """
        if answer == "generate":
            written = text_answers.decode_written(outputs, examples)
            return [
                _withheld(_placed(prediction, example), each.no_answer_log_likelihood, state)
                for prediction, example, each in zip(written, examples, outputs, strict=True)
            ]
        return cut_answers.decode_parts(
            outputs,
            features,
            examples,
            threshold=state.no_answer_threshold,
            may_abstain=NO_ANSWER in state.labels,
        )

    def score(
        self,
        predictions: Sequence[Prediction],
        examples: Sequence[Example],
        state: TaskState,
        *,
        seed: int = 0,
    ) -> Scores:
        """F1 of words first (of characters where the context is written without spaces); right is an exact match."""
        questions = [_question(example) for example in examples]
        given = [_given(*pair) for pair in zip(predictions, examples, strict=True)]
        scores = list(map(metrics.score_answer, questions, given))
        num_by_characters = sum(each.by_characters for each in questions)
        return Scores(
            main_metric="f1",
            metrics={
                **metrics.intervals(scores, seed=seed),
                **metrics.intervals_by_kind(questions, scores, seed=seed),
                **text_answers.likelihoods(predictions, seed=seed),
            },
            correct=[each.exact_match == 1 for each in scores],
            details={
                **text_answers.validation_loss(predictions),
                "num_scored_by_words": len(questions) - num_by_characters,
                "num_scored_by_characters": num_by_characters,
            },
        )

    def sample_rows(self) -> list[Row]:
        """Six questions about short texts, one without an answer."""
        return [
            Row(
                {
                    "context": context,
                    "question": question,
                    "answers": {
                        "text": [] if answer is None else [answer],
                        "answer_start": [] if answer is None else [context.index(answer)],
                    },
                },
                "samples",
                number,
            )
            for number, (context, question, answer) in enumerate(_SAMPLES, start=1)
        ]


def _notes(examples: Sequence[Example]) -> list[str]:
    notes: list[str] = []
    if num_several := sum(len(each.target or ()) > 1 for each in examples):
        notes.append(
            f"{num_several:,} training rows have several answers: the most frequent, else the first, is learned; "
            "in a test any of them is right."
        )
    if num_free := sum(map(_is_free, examples)):
        notes.append(
            f"{num_free:,} training rows have answers without a place in their context: these are written as they are."
        )
    return notes


def _is_free(example: Example) -> bool:
    """Whether the right answers are texts of their own, and not parts of the context."""
    return bool(example.target) and not _spans(example.target)


def _refuse_free_answers(examples: Sequence[Example]) -> None:
    for each in examples:
        if _is_free(each):
            raise DataError(
                f"{each.place}: the answer {_right_answers(each)[0]!r} has no `answer_start`, so that no head can learn where "
                "it stands. Use `--answer generate`, which writes answers, or give the place of each in its context."
            )


def _text(row: Row, name: str) -> str:
    value = row.values.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{row.place}: column `{name}` must hold a text, got {value!r}.")
    return value


def _before(example: Example) -> str:
    return f"Question: {example.extra.get('question', '')}\nContext: "


def _asked(example: Example) -> str:
    return f"{_before(example)}{example.text}\nAnswer:"


def _instruction(state: TaskState) -> str:
    if state.instruction is not None:
        return f"{state.instruction}\n\n"
    absent = f", or write: {NO_ANSWER}" if NO_ANSWER in state.labels else ""
    return f"Answer from the context{absent}.\n\n"


def _told_answer(example: Example) -> str:
    """The answer that is learned, as it is written; a model's may be in its own words."""
    return next(iter(_right_answers(example)), NO_ANSWER)


def _placed(written: Prediction, example: Example) -> Prediction:
    """Give an answer that was written its place in the text."""
    text = str(written.answer)
    if text.casefold() in ("", NO_ANSWER):
        return replace(written, answer=())
    start = example.text.find(text)
    if start < 0:
        return written
    return replace(written, answer=(Span(start, start + len(text), ANSWER, text),))


def _withheld(written: Prediction, log_likelihood: float | None, state: TaskState) -> Prediction:
    """Give no answer where the model would have written so with a probability above the threshold."""
    if log_likelihood is None or state.no_answer_threshold is None:
        return written
    probability = float(np.exp(min(0.0, log_likelihood)))
    told = replace(written, no_answer_probability=probability)
    if probability <= state.no_answer_threshold:
        return told
    return replace(told, answer=(), log_likelihood=min(0.0, log_likelihood))


def _question(example: Example) -> metrics.Question:
    return metrics.Question(_right_answers(example), by_characters=is_unspaced([example.text]))


def _right_answers(example: Example) -> tuple[str, ...]:
    """The answers that are right, as texts; the first is learned."""
    return _texts(example.target, example)


def _texts(answer: Answer | None, example: Example) -> tuple[str, ...]:
    if isinstance(answer, str):
        return (answer,)
    parts = (each for each in answer or () if isinstance(each, (str, Span)))
    return tuple(each if isinstance(each, str) else _cut(example, each) for each in parts)


def _spans(answer: object) -> list[Span]:
    return [each for each in answer if isinstance(each, Span)] if isinstance(answer, tuple) else []


def _given(prediction: Prediction, example: Example) -> str:
    """The text of an answer; empty where none was given."""
    return next(iter(_texts(prediction.answer, example)), "")


def _cut(example: Example, span: Span) -> str:
    return example.text[span.start : span.end]
