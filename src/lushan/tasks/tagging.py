"""Find the names in a text and say what each is: persons, places, diseases.

Columns: `text`, `entities` (a list of `start`, `end`, `label` in characters), or `tokens`, `tags` (BIO or BIOES).

Inside, entities are always spans of characters. A model answers word by word, so no answer begins or ends inside a
word; of a word's tokens the last is read, which in a decoder has seen all of it.

Shapes: T tokens, D width, W words, C tags, K chosen positions.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lushan.backbones.encoding import LengthLimit, Window, encode_rendered
from lushan.backbones.heads import token_logits
from lushan.backbones.inspect import Family
from lushan.backbones.load import AnswerLayer, Backbone
from lushan.backbones.tokenizer import Tokenizer
from lushan.data.columns import Columns
from lushan.data.spans import read_spans, read_tagged, words_in
from lushan.errors import DataError, SettingError
from lushan.metrics import tagging as metrics
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
    answers: tuple[AnswerMode, ...] = ("head",)
    settings = frozenset[str]()
    untuned: Mapping[Family, Untuned] = {"decoder": "nothing", "encoder": "nothing"}
    baselines: tuple[str, ...] = ("dictionary",)
    wording = Wording(
        pipeline_tag="token-classification",
        use="Finding the entities of {count} types in texts like those it was trained on: {labels}.",
        label="type",
        counted="entities",
        nothing="no entity",
    )

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
        """A layer with one output per tag, at every token."""
        return AnswerLayer("tag", _tags(state))

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
        return TaskState(labels=labels)

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
        """The text alone.

        Raises:
            SettingError: If the answer is to be generated.
        """
        if answer != "head":
            raise SettingError("The task `tagging` answers by a head only. Use `--answer head`.")
        return [Rendered(example.text, cuttable=(0, len(example.text)))]

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
        """Token ids with the tag of every word; several windows where a text is too long.

        Raises:
            DataError: If a text is too long and the policy is `error`, or a type is not known.
        """
        rendered = [
            document
            for each in examples
            for document in self.render(each, state, answer=answer, with_target=with_target)
        ]
        places = [each.place for each in examples]
        encoded = encode_rendered(rendered, tokenizer, limit=limit, places=places)
        numbers = {tag: number for number, tag in enumerate(_tags(state))}
        features: list[Features] = []
        for index, (example, windows) in enumerate(zip(examples, encoded, strict=True)):
            words = words_in(example)
            tags = _word_tags(example, words, numbers) if with_target else []
            for window, found in zip(windows, _positions(windows, words), strict=True):
                units = tuple(unit for unit, _ in found)
                features.append(
                    Features(
                        token_ids=window.token_ids,
                        place=example.place,
                        example_index=index,
                        target=tuple(tags[unit] for unit in units) if with_target else -1,
                        positions=tuple(position for _, position in found),
                        units=units,
                        num_cut_tokens=window.num_cut_tokens,
                    )
                )
        return features

    def candidates(self, state: TaskState) -> list[str]:
        """None: nothing is generated."""
        return []

    def loss(
        self, backbone: Backbone, batch: Batch, state: TaskState, *, dropout: float
    ) -> LossSum:
        """Cross-entropy of the tag of every word."""
        logits_KC = _logits(backbone, batch, dropout=dropout)
        targets_K = torch.tensor(
            [tag for each in batch.features for tag in _as_tuple(each.target)],
            dtype=torch.long,
            device=logits_KC.device,
        )
        total = functional.cross_entropy(logits_KC, targets_K, reduction="sum")
        return LossSum(total, float(len(targets_K)))

    def outputs(self, backbone: Backbone, batch: Batch) -> Outputs:
        """Tag scores of every word of a document, before softmax; (words, C) each."""
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
        words = [words_in(each) for each in examples]
        tables = [_outside(len(each), num_tags=len(_tags(state))) for each in words]
        for scores_WC, each in zip(outputs, features, strict=True):
            tables[each.example_index][list(each.units)] = _log_softmax(scores_WC)
        return [
            _prediction(example, places, logs_WC, state)
            for example, places, logs_WC in zip(examples, words, tables, strict=True)
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
        truth: list[Any] = [each.target for each in examples]
        answers: list[Any] = [each.answer for each in predictions]
        scores = metrics.score(truth, answers, state.labels)
        return Scores(
            main_metric="f1",
            metrics=metrics.intervals(truth, answers, state.labels, seed=seed),
            correct=metrics.correct_rows(truth, answers),
            details={
                "labels": list(state.labels),
                "per_class": [asdict(each) for each in scores.per_class],
            },
        )

    def sample_rows(self) -> list[Row]:
        """Six short reports of journeys."""
        samples: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
            ("Ada Lovelace left London.", (("Ada Lovelace", "person"), ("London", "place"))),
            ("It rained in Paris.", (("Paris", "place"),)),
            ("Marie Curie saw Warsaw again.", (("Marie Curie", "person"), ("Warsaw", "place"))),
            ("Nobody came along.", ()),
            ("We met Alan Turing.", (("Alan Turing", "person"),)),
            ("From Lima to Quito by train.", (("Lima", "place"), ("Quito", "place"))),
        )
        rows: list[Row] = []
        for number, (text, names) in enumerate(samples, start=1):
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


def _word_tags(example: Example, words: Sequence[Place], numbers: dict[str, int]) -> list[int]:
    """The tag number of every word; a word that is partly in an entity is in it."""
    tags = [0] * len(words)
    ends = [end for _, end in words]
    for span in _spans(example):
        if f"B-{span.label}" not in numbers:
            raise DataError(
                f"{example.place}: type `{span.label}` is not one of the {len(numbers) // 2} that the model knows."
            )
        mark = "B"
        for word in range(bisect_left(ends, span.start + 1), len(words)):
            if words[word][0] >= span.end:
                break
            if tags[word] == 0:
                tags[word] = numbers[f"{mark}-{span.label}"]
                mark = "I"
    return tags


def _positions(windows: Sequence[Window], words: Sequence[Place]) -> list[list[tuple[int, int]]]:
    """For every window, the words whose last token it has: (number of the word, index of that token)."""
    tokens = [
        (start, end, window, index)
        for window, each in enumerate(windows)
        for index, (start, end) in enumerate(each.offsets)
        if end > start
    ]
    starts = [start for start, _, _, _ in tokens]
    found: list[list[tuple[int, int]]] = [[] for _ in windows]
    for unit, (word_start, word_end) in enumerate(words):
        last = bisect_left(starts, word_end) - 1
        if last >= 0 and tokens[last][1] > word_start:
            _, _, window, index = tokens[last]
            found[window].append((unit, index))
    return found


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


def _outside(num_words: int, *, num_tags: int) -> np.ndarray:
    """Log-probabilities of words that nobody was asked about: surely `O`; (W, C)."""
    logs_WC = np.full((num_words, num_tags), -np.inf)
    logs_WC[:, 0] = 0.0
    return logs_WC


def _log_softmax(scores_WC: np.ndarray) -> np.ndarray:
    shifted = scores_WC.astype(np.float64)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def likeliest_tags(logs_WC: np.ndarray) -> list[int]:
    """Viterbi's path: the likeliest tags of which every `I-` follows a `B-` or `I-` of its own type.

    Args:
        logs_WC: Log-probability of every tag (`O`, `B-` and `I-` in turns) of every word.
    """
    num_tags = logs_WC.shape[1]
    inside = np.arange(2, num_tags, 2)
    total_C = logs_WC[0].copy()
    total_C[inside] = -np.inf
    origins: list[np.ndarray] = []
    for logs_C in logs_WC[1:]:
        origin_C = np.full(num_tags, total_C.argmax())
        origin_C[inside] = np.where(total_C[inside] >= total_C[inside - 1], inside, inside - 1)
        total_C = total_C[origin_C] + logs_C
        origins.append(origin_C)
    path = [int(total_C.argmax())]
    for origin_C in reversed(origins):
        path.append(int(origin_C[path[-1]]))
    return path[::-1]


def _prediction(
    example: Example, words: Sequence[Place], logs_WC: np.ndarray, state: TaskState
) -> Prediction:
    path = likeliest_tags(logs_WC)
    sure_W = logs_WC[np.arange(len(path)), path]
    spans: list[Span] = []
    first = 0
    for word, tag in enumerate(path):
        if tag % 2:
            first = word
        goes_on = word + 1 < len(path) and path[word + 1] and path[word + 1] % 2 == 0
        if tag and not goes_on:
            start, end = words[first][0], words[word][1]
            probability = float(np.exp(sure_W[first : word + 1].sum()))
            label = state.labels[(tag - 1) // 2]
            spans.append(Span(start, end, label, example.text[start:end], probability))
    return Prediction(example.id, tuple(spans), log_likelihood=min(0.0, float(sure_W.sum())))
