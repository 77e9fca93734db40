"""What of an answer is explained, as documents whose score can be taken: a label, an entity, an answer as it is written.

Every token of a document knows the characters of the user's text that it stands for; tokens without any are the
template's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from lushan.backbones.encoding import Encodings, Window, watch_encoding
from lushan.errors import DataError
from lushan.explain.scores import candidates, targets_of
from lushan.inference.predict import Predictor
from lushan.records import Answer, Example, Features, Prediction, Rendered, Span

Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Piece:
    """One document: a whole text, or a window of one."""

    features: Features
    """With its target, in one of the forms that `answer_scores` knows."""
    places: tuple[Place | None, ...]
    """Characters [start, end) of the user's text that each token stands for; None for a token of the template."""
    shown: tuple[str, ...]
    """Characters of each token; empty for tokens that were put around the text."""
    moves_T: np.ndarray
    """Which tokens are input; the others are the answer itself."""
    share: float
    """What its score counts."""


@dataclass(frozen=True, slots=True)
class Question:
    """One part of an answer: why is it so?"""

    target: str
    """The label, the text of the entity, or the answer as it is written."""
    span: Span | None
    """Where it stands in the text, if it is a part of it."""
    text: str
    """What the user wrote; several parts, such as a question and a context, are joined by a line end."""
    pieces: tuple[Piece, ...]


def questions_of(
    predictor: Predictor, example: Example, prediction: Prediction, label: str | None
) -> list[Question]:
    """Give what is explained of an answer.

    Args:
        predictor: The model that answered.
        example: What it was asked.
        prediction: Its answer.
        label: Explain this label and not those of the answer; of spans, only those of this label.

    Raises:
        DataError: If there is no such label, or the answer is too long to be read behind its prompt.
    """
    if prediction.probabilities:
        return _about_labels(predictor, example, prediction, label)
    if predictor.answer == "generate":
        if label is not None:
            raise DataError(
                f"The label {label!r} cannot be explained: this model writes its answers. Leave the label out."
            )
        return [_question(predictor, example, prediction.answer)]
    known = predictor.state.labels
    if label is not None and label not in known:
        raise _unknown(label, known)
    spans = [each for each in prediction.answer if isinstance(each, Span)]
    chosen = [each for each in spans if label in {None, each.label}]
    found = [_question(predictor, example, (each,), span=each) for each in chosen]
    if not spans and label is None:
        # Of a passage that holds no answer this asks why; of a text without entities there is nothing to ask.
        found = [_question(predictor, example, ())]
    return [each for each in found if each.pieces]


def _about_labels(
    predictor: Predictor, example: Example, prediction: Prediction, label: str | None
) -> list[Question]:
    known = prediction.probabilities
    if label is not None and label not in known:
        raise _unknown(label, list(known))
    several = predictor.state.multi_label
    answer = prediction.answer
    given = [answer] if isinstance(answer, str) else [str(each) for each in answer]
    return [
        _question(predictor, example, (each,) if several else each, label=each)
        for each in ([label] if label is not None else given)
    ]


def _unknown(label: str, known: Sequence[str]) -> DataError:
    names = ", ".join(map(repr, known[:20])) + (", ..." if len(known) > 20 else "")
    return DataError(f"The label {label!r} is not one of the {len(known)} there are: {names}.")


class _Document(NamedTuple):
    """What the task made of an example, with the text that it was made from."""

    features: Features
    rendered: Rendered
    window: Window


def _question(
    predictor: Predictor,
    example: Example,
    answer: Answer,
    *,
    label: str | None = None,
    span: Span | None = None,
) -> Question:
    """Have the task read the example as if this answer were its truth; the documents then have it as their target."""
    with watch_encoding() as seen:
        features = predictor.task.encode(
            [replace(example, target=answer)],
            predictor.state,
            predictor.backbone.tokenizer,
            answer=predictor.answer,
            limit=predictor.limit,
            with_target=True,
        )
    documents = _documents(predictor, features, seen, label)
    rendered = seen[0][0]
    text = "\n".join(rendered.text[start:end] for start, end in _given(rendered))
    if span is not None and (whole := _place(rendered.cuttable, rendered)):
        # A passage may stand behind a question; spans count from its start.
        span = replace(span, start=span.start + whole[0], end=span.end + whole[0])
    target = label or (span.text if span else _written_answer(predictor, answer, rendered))
    # The words of an entity are spread over the windows; other answers are read in each.
    is_entity = any(each.features.positions is not None for each in documents)
    share = 1.0 if is_entity else 1 / len(documents) if documents else 0.0
    return Question(target, span, text, tuple(_piece(each, share) for each in documents))


def _written_answer(predictor: Predictor, answer: Answer, rendered: Rendered) -> str:
    if isinstance(answer, str):
        return answer
    written = "".join(rendered.text[start:end] for start, end in rendered.supervised)
    return written.strip() or predictor.task.wording.nothing


def _documents(
    predictor: Predictor, features: Sequence[Features], seen: Encodings, label: str | None
) -> list[_Document]:
    """Leave of an example's documents, and of their targets, what asks about one part of the answer."""
    if features[0].branches:
        return _chosen_path(features[0], seen)
    state = predictor.state
    layer = predictor.task.layer(state, answer=predictor.answer)
    number = state.labels.index(label) if label in state.labels else -1
    windows = [(rendered, window) for rendered, parts in seen for window in parts]
    documents = [_Document(each, *made) for each, made in zip(features, windows, strict=True)]
    if any(each.features.token_ids != each.window.token_ids for each in documents):
        raise AssertionError("a document is one window of one text")
    if layer.purpose == "classify":
        return [_about(each, replace(each.features, target=number)) for each in documents]
    if layer.purpose == "language":
        asked = [each for each in documents if each.features.candidate in {-1, number}]
        return [_about(each, _last_turn(each.features)) for each in asked]
    if features[0].positions is not None:
        tagged = [_about(each, _entity(each.features)) for each in documents]
        return [each for each in tagged if each.features.positions]
    return [each for each in documents if _holds_answer(each.features)] or documents


def _about(document: _Document, features: Features) -> _Document:
    return document._replace(features=features)


def _chosen_path(features: Features, seen: Encodings) -> list[_Document]:
    """Take the chosen one of several branches as a document of its own: it is what its score is about."""
    rendered = seen[targets_of(features)[0]][0]
    # Where the row was too long, its windows were made last.
    windows = next(parts for each, parts in reversed(seen) if each is rendered)
    return [
        _Document(
            replace(
                features,
                token_ids=each.token_ids,
                targets_from=each.targets_from,
                positions=None,
                units=(),
                branches=(),
            ),
            rendered,
            each,
        )
        for each in windows
    ]


def _last_turn(features: Features) -> Features:
    """Of a conversation, ask about the last turn alone."""
    if features.positions is None:
        return features
    first = features.positions[-1]
    while first - 1 in features.positions:
        first -= 1
    return replace(features, positions=None, targets_from=first + 1)


def _entity(features: Features) -> Features:
    """Ask about the tags of the words that are in the entity."""
    tags = targets_of(features)
    kept = [index for index, tag in enumerate(tags) if tag]
    return replace(
        features,
        positions=tuple((features.positions or ())[index] for index in kept),
        units=tuple(features.units[index] for index in kept),
        target=tuple(tags[index] for index in kept),
    )


def _holds_answer(features: Features) -> bool:
    return targets_of(features)[0] < len(candidates(features))


def _given(rendered: Rendered) -> list[Place]:
    return [(start, end) for start, end in rendered.given_ranges if end > start]


def _piece(document: _Document, share: float) -> Piece:
    features, rendered, window = document
    num_tokens = len(features.token_ids)
    answer_from = features.targets_from if features.targets_from >= 0 else num_tokens
    places = [_place(each, rendered) for each in window.offsets]
    return Piece(
        features,
        tuple(places),
        tuple(rendered.text[start:end] for start, end in window.offsets),
        np.arange(num_tokens) < answer_from,
        share,
    )


def _place(offset: Place, rendered: Rendered) -> Place | None:
    """Find a token of the rendered text in what the user wrote."""
    written = 0
    for start, end in _given(rendered):
        first, last = max(start, offset[0]), min(end, offset[1])
        if first < last:
            return (written + first - start, written + last - start)
        written += end - start + 1
    return None
