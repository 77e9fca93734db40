"""Answer a question with the part of a text that says it, or tell that none does.

Columns: `context`, `question`, `answers` (`text` and `answer_start` in characters, as SQuAD has them), or SQuAD's nested
files.

A model reads the question, the context and a last mark. For a head every token of the context may be where the answer starts
and where it ends; the last token, which in a decoder has seen all, stands for "not in here". Its answer is always cut out of
the context, at borders of tokens. With `generate` the model writes the answer, which may then be in its own words.

Shapes: T tokens, D width, K tokens of the context and the last.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lushan import text_answers
from lushan.backbones.encoding import LengthLimit, Window, encode_rendered
from lushan.backbones.heads import token_logits
from lushan.backbones.inspect import Family
from lushan.backbones.load import AnswerLayer, Backbone
from lushan.backbones.tokenizer import Tokenizer
from lushan.data.columns import Columns
from lushan.data.squad import ANSWER, read_answers
from lushan.data.words import is_unspaced
from lushan.errors import DataError
from lushan.metrics import answering as metrics
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
    Span,
    TaskState,
    content_id,
)
from lushan.tasks import Outputs, Preparation, Untuned, Wording

Place = tuple[int, int]

NO_ANSWER = "no answer"
"""Class of a question whose text does not answer it."""
_NOWHERE: Place = (0, 0)
_SAMPLES = (
    ("Ada left London in May.", "When did Ada leave?", "May"),
    ("Ada left London in May.", "Who left London?", "Ada"),
    ("The river Spree flows through Berlin.", "Where does the Spree flow?", "Berlin"),
    ("Soup was served at noon with bread.", "What was served?", "Soup"),
    ("Soup was served at noon with bread.", "Who cooked the soup?", None),
    ("The fox slept in the forest.", "Where did the fox sleep?", "in the forest"),
)


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
    untuned: Mapping[Family, Untuned] = {"decoder": "prompt", "encoder": "nothing"}
    baselines: tuple[str, ...] = ("sentence",)
    wording = Wording(
        pipeline_tag="question-answering",
        use="Answering questions with a part of the text that they are about, for texts like those it was trained on.",
        label="answer",
        counted="questions",
        nothing="no answer",
    )

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
        found = [span for span, _ in Counter(read_answers(row, context)).most_common()]
        identity = content_id(context, question, [[each.start, each.end] for each in found])
        labels = None if found else (NO_ANSWER,)
        return Example(identity, context, tuple(found), row.place, extra, labels)

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
            DataError: If a text is too long and the policy is `error`.
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
        places = [each.place for each in examples]
        encoded = encode_rendered(rendered, tokenizer, limit=limit, places=places, overlapping=True)
        features: list[Features] = []
        for index, (example, windows) in enumerate(zip(examples, encoded, strict=True)):
            units = [_characters(window, example) for window in windows]
            targets = _targets(example, units) if with_target else [-1] * len(units)
            features += [
                Features(
                    token_ids=window.token_ids,
                    place=example.place,
                    example_index=index,
                    target=target,
                    units=characters,
                    num_cut_tokens=window.num_cut_tokens,
                    weight=1 / len(windows),
                )
                for window, characters, target in zip(windows, units, targets, strict=True)
            ]
        return features

    def candidates(self, state: TaskState) -> list[str]:
        """None: any text may be written."""
        return []

    def loss(
        self, backbone: Backbone, batch: Batch, state: TaskState, *, dropout: float
    ) -> LossSum:
        """Cross-entropy of the token where the answer starts, and of that where it ends: their mean; or of what is written."""
        if batch.features[0].targets_from >= 0:
            return text_answers.answer_loss(backbone, backbone.hidden_states(batch), batch)
        total = torch.zeros((), device=backbone.device)
        for logits_K2, each in zip(
            _logits(backbone, batch, dropout=dropout), batch.features, strict=True
        ):
            targets_2 = torch.tensor(each.target, device=logits_K2.device)
            total = total + each.weight * functional.cross_entropy(logits_K2.T, targets_2)
        return LossSum(total, sum(each.weight for each in batch.features))

    def outputs(self, backbone: Backbone, batch: Batch) -> Outputs:
        """Start and end scores of the tokens of the context and of the last, before softmax; (K, 2) each.

        Of answers that are written: how likely the truth is, and its number of tokens; (2,) each.
        """
        if batch.features[0].targets_from >= 0:
            return text_answers.truth_likelihoods(backbone, batch)
        return [logits_K2.cpu().numpy() for logits_K2 in _logits(backbone, batch)]

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

        No answer is given where "not in here" is likelier in every window and the training rows had such questions. What is
        written stands for its first place in the text, and for itself where it has none.
        """
        if answer == "generate":
            written = text_answers.decode_written(outputs, examples)
            return [_placed(*pair) for pair in zip(written, examples, strict=True)]
        found: list[list[_Found]] = [[] for _ in examples]
        for scores_K2, each in zip(outputs, features, strict=True):
            found[each.example_index].append(_best(scores_K2, each))
        return [
            _prediction(example, windows, may_abstain=NO_ANSWER in state.labels)
            for example, windows in zip(examples, found, strict=True)
        ]

    def score(
        self,
        predictions: Sequence[Prediction],
        examples: Sequence[Example],
        state: TaskState,
        *,
        seed: int = 0,
    ) -> Scores:
        """F1 of words first (of characters where the context is written without spaces); right is an exact match."""
        questions = [
            metrics.Question(
                tuple(_cut(example, span) for span in _spans(example.target)),
                by_characters=is_unspaced([example.text]),
            )
            for example in examples
        ]
        given = [_given(*pair) for pair in zip(predictions, examples, strict=True)]
        scores = list(map(metrics.score_answer, questions, given))
        num_by_characters = sum(each.by_characters for each in questions)
        return Scores(
            main_metric="f1",
            metrics={
                **metrics.intervals(scores, seed=seed),
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


class _Found(NamedTuple):
    """The best answer of one window."""

    place: Place
    """Characters of the context; (0, 0) where the window holds none of it."""
    log_odds: float
    """Logarithm of how much likelier it is than that the answer is not in the window."""
    log_likelihood: float
    log_absence: float
    """Logarithm of the probability that the answer is not in the window."""


def _notes(examples: Sequence[Example]) -> list[str]:
    num_several = sum(len(each.target or ()) > 1 for each in examples)
    if not num_several:
        return []
    return [
        f"{num_several:,} training rows have several answers: the most frequent, else the first, is learned; "
        "in a test any of them is right."
    ]


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
    if isinstance(example.target, str):
        return example.target
    return next((_cut(example, span) for span in _spans(example.target)), NO_ANSWER)


def _placed(written: Prediction, example: Example) -> Prediction:
    """Give an answer that was written its place in the text."""
    text = str(written.answer)
    if text.casefold() in ("", NO_ANSWER):
        return replace(written, answer=())
    start = example.text.find(text)
    if start < 0:
        return written
    return replace(written, answer=(Span(start, start + len(text), ANSWER, text),))


def _spans(answer: object) -> list[Span]:
    return [each for each in answer if isinstance(each, Span)] if isinstance(answer, tuple) else []


def _given(prediction: Prediction, example: Example) -> str:
    """The text of an answer; empty where none was given."""
    if isinstance(prediction.answer, str):
        return prediction.answer
    return next((_cut(example, span) for span in _spans(prediction.answer)), "")


def _cut(example: Example, span: Span) -> str:
    return example.text[span.start : span.end]


def _characters(window: Window, example: Example) -> tuple[Place, ...]:
    """The characters of the context that each token stands for, without space around them; the last for none."""
    shift = len(_before(example))
    found = [_trimmed(example.text, start - shift, end - shift) for start, end in window.offsets]
    return (*found[:-1], _NOWHERE)


def _trimmed(text: str, start: int, end: int) -> Place:
    start, end = max(start, 0), min(end, len(text))
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return (start, end) if start < end else _NOWHERE


def _candidates(units: Sequence[Place]) -> list[int]:
    """Tokens of the context, by their index."""
    return [index for index, place in enumerate(units) if place != _NOWHERE]


def _targets(example: Example, windows: Sequence[Sequence[Place]]) -> list[tuple[int, int]]:
    """For each window: the numbers of a first and a last candidate, or twice that behind the last: not in here."""
    spans = _spans(example.target)
    found: list[tuple[int, int] | None] = []
    absent: list[tuple[int, int]] = []
    for units in windows:
        places = [units[index] for index in _candidates(units)]
        touched = [
            number
            for number, (start, end) in enumerate(places)
            if spans and start < spans[0].end and end > spans[0].start
        ]
        found.append((touched[0], touched[-1]) if touched else None)
        absent.append((len(places), len(places)))
    most = max((last - first for each in found if each for first, last in [each]), default=0)
    return [
        each if each and each[1] - each[0] == most else nowhere
        for each, nowhere in zip(found, absent, strict=True)
    ]


def _logits(backbone: Backbone, batch: Batch, *, dropout: float = 0.0) -> list[Tensor]:
    """Scores of the candidates and of the last token of every document of a batch; (K, 2) each."""
    hidden_TD = backbone.hidden_states(batch)
    chosen = [[*_candidates(each.units), len(each.token_ids) - 1] for each in batch.features]
    flat = [
        start + index
        for start, indices in zip(batch.first_N.tolist(), chosen, strict=True)
        for index in indices
    ]
    chosen_K = torch.tensor(flat, dtype=torch.long, device=hidden_TD.device)
    logits_K2 = token_logits(backbone.plain_model, hidden_TD[chosen_K], dropout=dropout)
    return list(logits_K2.split([len(each) for each in chosen]))


def _best(scores_K2: np.ndarray, features: Features) -> _Found:
    """The likeliest start and end, the end not before the start."""
    logs_K2 = scores_K2.astype(np.float64)
    logs_K2 = logs_K2 - logs_K2.max(axis=0)
    logs_K2 = logs_K2 - np.log(np.exp(logs_K2).sum(axis=0))
    log_absence = float(logs_K2[-1].sum())
    starts, ends = logs_K2[:-1].T
    if not len(starts):
        return _Found(_NOWHERE, -np.inf, -np.inf, log_absence)
    best_end_from = np.maximum.accumulate(ends[::-1])[::-1]
    first = int((starts + best_end_from).argmax())
    last = first + int(ends[first:].argmax())
    tokens = _candidates(features.units)
    place = (features.units[tokens[first]][0], features.units[tokens[last]][1])
    log_likelihood = float(starts[first] + ends[last])
    return _Found(place, log_likelihood - log_absence, log_likelihood, log_absence)


def _prediction(example: Example, windows: Sequence[_Found], *, may_abstain: bool) -> Prediction:
    best = max(windows, key=lambda each: each.log_odds)
    if best.place == _NOWHERE or (may_abstain and best.log_odds < 0):
        absent = sum(each.log_absence for each in windows)
        return Prediction(example.id, (), log_likelihood=min(0.0, absent))
    start, end = best.place
    likelihood = min(0.0, best.log_likelihood)
    span = Span(start, end, ANSWER, example.text[start:end], float(np.exp(likelihood)))
    return Prediction(example.id, (span,), log_likelihood=likelihood)
