"""Find the names in a text and say what each is: persons, places, diseases.

Columns: `text`, `entities` (a list of `start`, `end`, `label` in characters), or `tokens`, `tags` (BIO or BIOES).

Inside, entities are always spans of characters. A model answers word by word, so no answer begins or ends inside a
word; of a word's tokens the last is read, which in a decoder has seen all of it. Words that share that token (Chinese
characters often do) are one unit: nobody could tell them apart. With `generate` it writes the entities and their types one
after another (`span_answers.py`); only what stands in the text, from the start of a word to the end of one, is an answer.

Shapes: T tokens, D width, U units, C tags, K chosen positions.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lushan import span_answers, text_answers
from lushan.backbones.encoding import LengthLimit, Window, encode_rendered
from lushan.backbones.heads import token_logits
from lushan.backbones.inspect import Family
from lushan.backbones.load import AnswerLayer, Backbone
from lushan.backbones.tokenizer import Tokenizer
from lushan.data.columns import Columns
from lushan.data.spans import read_spans, read_tagged, words_in
from lushan.errors import DataError
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

_SAMPLES: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("Ada Lovelace left London.", (("Ada Lovelace", "person"), ("London", "place"))),
    ("It rained in Paris.", (("Paris", "place"),)),
    ("Marie Curie saw Warsaw again.", (("Marie Curie", "person"), ("Warsaw", "place"))),
    ("Nobody came along.", ()),
    ("We met Alan Turing.", (("Alan Turing", "person"),)),
    ("From Lima to Quito by train.", (("Lima", "place"), ("Quito", "place"))),
)


class Task:
    """Named entities, none of which overlap.

    Columns: `text` and `entities`, or `tokens` and `tags`.
    """

    columns = Columns(
        required=("text", "entities"),
        guesses={"text": ("sentence", "content", "body"), "entities": ("spans",)},
        others=(
            Columns(
                required=("tokens", "tags"),
                guesses={"tokens": ("words",), "tags": ("labels", "ner_tags", "ner")},
            ),
        ),
    )
    answers: tuple[AnswerMode, ...] = ("head", "generate")
    settings = frozenset({"num_shots", "instruction", "attention"})
    writes = True
    is_judged_by_likelihood = False
    untuned: Mapping[Family, Untuned] = {"decoder": "prompt", "encoder": "nothing"}
    baselines: tuple[str, ...] = ("dictionary",)
    wording = Wording(
        pipeline_tag="token-classification",
        use="Finding the entities of {count} types in texts like those it was trained on: {labels}.",
        label="type",
        counted="entities",
        nothing="no entity",
        limits=dict.fromkeys(
            answers, "Only parts of the text can be given, and only with the known types."
        ),
    )
    as_read = staticmethod(span_answers.as_read)

    def read(self, row: Row, *, multi_label: bool = False, needs_target: bool = True) -> Example:
        """Check one row, in either form.

        Raises:
            DataError: If the text is missing, or its entities do not fit it.
        """
        words: list[Place] | None = None
        if row.values.get("tokens") is not None:
            text, words, spans = read_tagged(row, needs_tags=needs_target)
        else:
            text, spans = read_spans(row, needs_spans=needs_target)
        extra = {} if words is None else {"words": [list(each) for each in words]}
        if spans is None:
            return Example(content_id(text), text, None, row.place, extra)
        plain = [[each.start, each.end, each.label] for each in spans]
        return Example(content_id(text, plain), text, spans, row.place, extra)

    def layer(self, state: TaskState, *, answer: AnswerMode) -> AnswerLayer:
        """A layer with one output per tag, at every token; or the vocabulary."""
        if answer == "generate":
            return AnswerLayer("language")
        return AnswerLayer("tag", _tags(state), both_ways=state.both_ways)

    def prepare(
        self, examples: Sequence[Example], preparation: Preparation, *, multi_label: bool
    ) -> TaskState:
        """Fix the order of the types.

        Raises:
            DataError: If there is no entity at all.
        """
        labels = tuple(sorted({label for each in examples for label in each.classes}))
        if not labels:
            raise DataError(
                f"None of the {len(examples):,} training rows has an entity. Mark some, or choose another task."
            )
        state = text_answers.learn_to_write(examples, preparation, text_of=span_answers.write_spans)
        most_items, longest_name = span_answers.bounds(examples)
        return replace(
            state,
            labels=labels,
            both_ways=preparation.attention == "bidirectional",
            most_items=most_items,
            longest_name=longest_name,
        )

    def notes(self, examples: Sequence[Example]) -> list[str]:
        """Tell of entities that no answer can give, because they begin or end inside a word."""
        num_inside = sum(_num_inside_words(each) for each in examples)
        if not num_inside:
            return []
        return [
            f"{num_inside:,} entities of the training rows begin or end inside a word: the whole word is learned. "
            "Such entities in test rows count as missed."
        ]

    def render(
        self,
        example: Example,
        state: TaskState,
        *,
        answer: AnswerMode,
        with_target: bool,
        shots: Sequence[Example] = (),
    ) -> list[Rendered]:
        """The text alone; or instruction, worked examples and text, to write the entities."""
        text = Rendered(example.text, cuttable=(0, len(example.text)))
        if answer == "head":
            return [text]
        usual = f"Name the entities of the text: {', '.join(state.labels)}."
        opening = usual if state.instruction is None else state.instruction
        if not with_target:
            text = replace(text, grammar=span_answers.grammar(example, state))
        return [
            text_answers.render_prompt(
                text,
                opening=f"{opening}\n\n",
                shots=[(shot.text, f" {span_answers.write_spans(shot)}") for shot in shots],
                question="Entities:",
                answer=f" {span_answers.write_spans(example)}" if with_target else None,
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
        """Token ids with the tag of every unit, several windows where a text is too long; or the tokens of what is written.

        Raises:
            DataError: If a text is too long and the policy is `error`, or a type is not known.
        """
        rendered = [
            document
            for each in examples
            for document in self.render(
                each, state, answer=answer, with_target=with_target, shots=shots
            )
        ]
        if answer == "generate":
            grammar = partial(span_answers.grammar, state=state)
            return text_answers.encode_text(
                rendered, examples, tokenizer, limit=limit, grammar=grammar
            )
        places = [each.place for each in examples]
        encoded = encode_rendered(rendered, tokenizer, limit=limit, places=places)
        numbers = {tag: number for number, tag in enumerate(_tags(state))}
        features: list[Features] = []
        for index, (example, windows) in enumerate(zip(examples, encoded, strict=True)):
            words = words_in(example)
            readings = _readings(windows, words)
            places = [(words[first][0], words[last][1]) for first, last, _, _ in readings]
            tags = _unit_tags(example, places, numbers) if with_target else [-1] * len(places)
            num_cut_off = _num_cut_off(example, places) if with_target else 0
            for number, window in enumerate(windows):
                read = [
                    (reading, tag)
                    for reading, tag in zip(readings, tags, strict=True)
                    if reading.window == number
                ]
                features.append(
                    Features(
                        token_ids=window.token_ids,
                        place=example.place,
                        example_index=index,
                        target=tuple(tag for _, tag in read) if with_target else -1,
                        positions=tuple(reading.position for reading, _ in read),
                        units=tuple((reading.first, reading.last) for reading, _ in read),
                        num_cut_tokens=window.num_cut_tokens,
                        num_cut_items=num_cut_off if window.num_cut_tokens else 0,
                    )
                )
        return features

    def candidates(self, state: TaskState) -> list[str]:
        """None: any text may be written."""
        return []

    def loss(
        self, backbone: Backbone, batch: Batch, state: TaskState, *, dropout: float
    ) -> LossSum:
        """Cross-entropy of the tag of every unit, or of what is written."""
        if batch.features[0].targets_from >= 0:
            return text_answers.answer_loss(backbone, backbone.hidden_states(batch), batch)
        logits_KC = _logits(backbone, batch, dropout=dropout)
        targets_K = torch.tensor(
            [tag for each in batch.features for tag in _as_tuple(each.target)],
            dtype=torch.long,
            device=logits_KC.device,
        )
        total = functional.cross_entropy(logits_KC, targets_K, reduction="sum")
        return LossSum(total, float(len(targets_K)))

    def outputs(self, backbone: Backbone, batch: Batch) -> Outputs:
        """Tag scores of every unit of a document, before softmax, (U, C) each; or how likely the truth is, (2,) each."""
        if batch.features[0].targets_from >= 0:
            return text_answers.truth_likelihoods(backbone, batch)
        logits_KC = _logits(backbone, batch).cpu().numpy()
        ends = np.cumsum([len(each.positions or ()) for each in batch.features])
        return np.split(logits_KC, ends[:-1])

    def decode(
        self,
        outputs: Outputs,
        features: Sequence[Features],
        examples: Sequence[Example],
        state: TaskState,
        *,
        answer: AnswerMode,
    ) -> list[Prediction]:
        """The likeliest tags that form entities; windows of a text are read as one. Words that were cut off have none."""
        if answer == "generate":
            read = span_answers.read_written_spans
            return text_answers.decode_items(outputs, examples, state, read=read)
        documents: list[list[tuple[Features, np.ndarray]]] = [[] for _ in examples]
        for scores_UC, each in zip(outputs, features, strict=True):
            documents[each.example_index].append((each, _log_softmax(scores_UC)))
        return [
            _prediction(example, parts, state)
            for example, parts in zip(examples, documents, strict=True)
        ]

    def score(
        self,
        predictions: Sequence[Prediction],
        examples: Sequence[Example],
        state: TaskState,
        *,
        seed: int = 0,
    ) -> Scores:
        """F1 of all entities first; a row is right when all its entities are."""
        return text_answers.score_items(predictions, examples, state, seed=seed)

    def sample_rows(self) -> list[Row]:
        """Six short reports of journeys."""
        rows: list[Row] = []
        for number, (text, names) in enumerate(_SAMPLES, start=1):
            entities = [
                {"start": text.index(name), "end": text.index(name) + len(name), "label": label}
                for name, label in names
            ]
            rows.append(Row({"text": text, "entities": entities}, "samples", number))
        return rows


def _tags(state: TaskState) -> tuple[str, ...]:
    """The tag of every class number: `O`, then `B-` and `I-` of each type."""
    return ("O", *(f"{mark}-{label}" for label in state.labels for mark in "BI"))


def _spans(example: Example) -> list[Span]:
    return [each for each in example.target or () if isinstance(each, Span)]


def _num_inside_words(example: Example) -> int:
    if "words" in example.extra:
        return 0
    words = words_in(example)
    starts, ends = {each[0] for each in words}, {each[1] for each in words}
    return sum(each.start not in starts or each.end not in ends for each in _spans(example))


def _unit_tags(example: Example, places: Sequence[Place], numbers: dict[str, int]) -> list[int]:
    """The tag number of every unit; a unit that is partly in an entity is in it."""
    tags = [0] * len(places)
    ends = [end for _, end in places]
    for span in _spans(example):
        if f"B-{span.label}" not in numbers:
            raise DataError(
                f"{example.place}: type `{span.label}` is not one of the {len(numbers) // 2} that the model knows. Take such "
                "entities out, or tune on rows that have some."
            )
        mark = "B"
        for unit in range(bisect_left(ends, span.start + 1), len(places)):
            if places[unit][0] >= span.end:
                break
            if tags[unit] == 0:
                tags[unit] = numbers[f"{mark}-{span.label}"]
                mark = "I"
    return tags


def _num_cut_off(example: Example, places: Sequence[Place]) -> int:
    """Entities of which no word is read, where these are the words that are."""
    end = places[-1][1] if places else 0
    return sum(each.start >= end for each in _spans(example))


class _Reading(NamedTuple):
    """Words that are answered for at one token."""

    first: int
    last: int
    window: int
    position: int


def _readings(windows: Sequence[Window], words: Sequence[Place]) -> list[_Reading]:
    """The last token of every word, in whichever window it is; words without a token are left out."""
    tokens = [
        (start, end, window, index)
        for window, each in enumerate(windows)
        for index, (start, end) in enumerate(each.offsets)
        if end > start
    ]
    starts = [start for start, _, _, _ in tokens]
    readings: list[_Reading] = []
    for word, (word_start, word_end) in enumerate(words):
        token = bisect_left(starts, word_end) - 1
        if token < 0 or tokens[token][1] <= word_start:
            continue
        _, _, window, position = tokens[token]
        if readings and readings[-1][2:] == (window, position):
            readings[-1] = readings[-1]._replace(last=word)
        else:
            readings.append(_Reading(word, word, window, position))
    return readings


def _as_tuple(target: int | tuple[int, ...]) -> tuple[int, ...]:
    return target if isinstance(target, tuple) else (target,)


def _logits(backbone: Backbone, batch: Batch, *, dropout: float = 0.0) -> Tensor:
    """Scores at the positions of all documents of a batch; (K, C)."""
    hidden_TD = backbone.hidden_states(batch)
    chosen = [
        start + position
        for start, each in zip(batch.first_N.tolist(), batch.features, strict=True)
        for position in each.positions or ()
    ]
    chosen_K = torch.tensor(chosen, dtype=torch.long, device=hidden_TD.device)
    return token_logits(backbone.plain_model, hidden_TD[chosen_K], dropout=dropout)


def _log_softmax(scores_UC: np.ndarray) -> np.ndarray:
    shifted = scores_UC.astype(np.float64)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def likeliest_tags(logs_UC: np.ndarray) -> list[int]:
    """Viterbi's path: the likeliest tags of which every `I-` follows a `B-` or `I-` of its own type.

    Args:
        logs_UC: Log-probability of every tag (`O`, `B-` and `I-` in turns) of every unit.
    """
    num_tags = logs_UC.shape[1]
    inside = np.arange(2, num_tags, 2)
    total_C = logs_UC[0].copy()
    total_C[inside] = -np.inf
    origins: list[np.ndarray] = []
    for logs_C in logs_UC[1:]:
        origin_C = np.full(num_tags, total_C.argmax())
        origin_C[inside] = np.where(total_C[inside] >= total_C[inside - 1], inside, inside - 1)
        total_C = total_C[origin_C] + logs_C
        origins.append(origin_C)
    path = [int(total_C.argmax())]
    for origin_C in reversed(origins):
        path.append(int(origin_C[path[-1]]))
    return path[::-1]


def _prediction(
    example: Example, parts: Sequence[tuple[Features, np.ndarray]], state: TaskState
) -> Prediction:
    words = words_in(example)
    outside_C = np.full(len(_tags(state)), -np.inf)
    outside_C[0] = 0.0
    places: list[Place] = []
    rows: list[np.ndarray] = []
    next_word = 0
    for features, logs_UC in parts:
        for (first, last), logs_C in zip(features.units, logs_UC, strict=True):
            if first != next_word:  # nobody was asked about the words between: no entity spans them
                places.append((words[next_word][0], words[first - 1][1]))
                rows.append(outside_C)
            places.append((words[first][0], words[last][1]))
            rows.append(logs_C)
            next_word = last + 1
    if not rows:
        return Prediction(example.id, ())
    logs_UC = np.stack(rows)
    path = likeliest_tags(logs_UC)
    sure_U = logs_UC[np.arange(len(path)), path]
    spans: list[Span] = []
    first = 0
    for unit, tag in enumerate(path):
        if tag % 2:
            first = unit
        goes_on = unit + 1 < len(path) and path[unit + 1] and path[unit + 1] % 2 == 0
        if tag and not goes_on:
            start, end = places[first][0], places[unit][1]
            probability = float(np.exp(sure_U[first : unit + 1].sum()))
            label = state.labels[(tag - 1) // 2]
            spans.append(Span(start, end, label, example.text[start:end], probability))
    return Prediction(example.id, tuple(spans), log_likelihood=min(0.0, float(sure_U.sum())))
