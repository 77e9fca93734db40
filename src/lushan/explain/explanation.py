"""From examples to explanations: what each word adds to the score of an answer, and how far that can be trusted."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from lushan.explain import faithfulness
from lushan.explain.embeddings import baseline_embedding, only_inputs_learn
from lushan.explain.faithfulness import Faithfulness
from lushan.explain.gradients import Integral, Scorer, completeness_gap, integrate
from lushan.explain.questions import Piece, Question, questions_of
from lushan.explain.scores import answer_scores
from lushan.explain.settings import BaselineName, ExplainSettings
from lushan.explain.words import Weight, word_weights
from lushan.inference.predict import Predictor
from lushan.records import Answer, Example, Span

CHUNK_EXAMPLES = 16
"""Examples that are explained together: their steps fill batches, and are kept at once."""


@dataclass(frozen=True, slots=True)
class TemplateWeight:
    """What a token that the user did not write adds to the score."""

    text: str
    """Its characters; empty for tokens that are put around every text."""
    weight: float


@dataclass(frozen=True, slots=True)
class Attribution:
    """Why one part of an answer is as it is: its label, one of its entities, or the whole text that was written."""

    target: str
    """The label, the text of the entity, or the answer as it is written."""
    span: Span | None
    """Where it stands in the text, if it is a part of it."""
    score: float
    """Natural logarithm of the probability of the target, in float32."""
    baseline_score: float
    """The same where every token of text and template is the baseline. The weights share out the difference."""
    words: tuple[Weight, ...]
    tokens: tuple[Weight, ...]
    """Tokens of the text."""
    template: tuple[TemplateWeight, ...]
    """Tokens of the template, in order."""
    template_share: float
    """The sizes of the template's weights, as a share of those of all tokens."""
    num_cut_tokens: int
    """Tokens that the model did not read because the text was too long; their words weigh nothing."""
    num_steps: int
    """Steps of the integration."""
    completeness_gap: float
    """How far the weights are from summing to the difference of the scores, as a share of their sizes."""
    faithfulness: Faithfulness


@dataclass(frozen=True, slots=True)
class Explanation:
    """One answer and why it is so."""

    id: str
    """Id of the example that was asked."""
    text: str
    """What the user wrote; several parts, such as a question and a context, are joined by a line end. Places count in it."""
    answer: Answer
    parts: tuple[Attribution, ...]
    """One for a label or a written answer, one for each of several labels or entities; none where nothing was found."""
    baseline: BaselineName
    """What stood for "no word"."""
    model_version: str


def explain(
    predictor: Predictor,
    examples: Iterable[Example],
    *,
    label: str | None = None,
    settings: ExplainSettings | None = None,
) -> Iterator[Explanation]:
    """Answer every example and say why, in order; memory does not grow with their number.

    Args:
        predictor: A model and its task.
        examples: What is asked; their targets are not looked at.
        label: Explain this label and not the one that was answered; of spans, only those of this label.
        settings: Baseline, steps and checks; None takes the usual ones.

    Raises:
        DataError: If a text is too long and the policy is `error`, or there is no such label.
        ModelError: If the model has no such baseline.
    """
    settings = settings or ExplainSettings()
    layer = predictor.task.layer(predictor.state, answer=predictor.answer)
    scorer = Scorer(
        predictor.backbone,
        partial(answer_scores, predictor.backbone, layer=layer),
        baseline_embedding(predictor.backbone, settings.baseline),
    )
    stream = iter(examples)
    while chunk := list(itertools.islice(stream, CHUNK_EXAMPLES)):
        yield from _explain_chunk(predictor, scorer, chunk, label=label, settings=settings)


def _explain_chunk(
    predictor: Predictor,
    scorer: Scorer,
    examples: Sequence[Example],
    *,
    label: str | None,
    settings: ExplainSettings,
) -> list[Explanation]:
    predictions = predictor.predict(examples)
    asked = [
        questions_of(predictor, example, prediction, label)
        for example, prediction in zip(examples, predictions, strict=True)
    ]
    with only_inputs_learn(predictor.backbone.model):
        found = iter(_attributions(scorer, [each for parts in asked for each in parts], settings))
    return [
        Explanation(
            example.id,
            parts[0].text if parts else example.text,
            prediction.answer,
            tuple(next(found) for _ in parts),
            settings.baseline,
            predictor.version,
        )
        for example, prediction, parts in zip(examples, predictions, asked, strict=True)
    ]


def _attributions(
    scorer: Scorer, questions: Sequence[Question], settings: ExplainSettings
) -> list[Attribution]:
    pieces = [piece for question in questions for piece in question.pieces]
    integrals = iter(
        integrate(
            scorer, [each.features for each in pieces], [each.moves_T for each in pieces], settings
        )
    )
    shared = [[next(integrals) for _ in question.pieces] for question in questions]
    tokens = [_tokens(*each) for each in zip(questions, shared, strict=True)]
    words = [
        word_weights(question.text, [((each.start, each.end), each.weight) for each in found])
        for question, found in zip(questions, tokens, strict=True)
    ]
    checked = faithfulness.check(scorer, questions, words, settings)
    rows = zip(questions, shared, tokens, words, checked, strict=True)
    return [_attribution(*row) for row in rows]


def _attribution(  # noqa: PLR0917 - what was found of one question, in the order in which it is found
    question: Question,
    integrals: Sequence[Integral],
    tokens: Sequence[Weight],
    words: Sequence[Weight],
    checked: Faithfulness,
) -> Attribution:
    shares = [piece.share for piece in question.pieces]
    pairs = list(zip(shares, integrals, strict=True))
    score = sum(share * each.score for share, each in pairs)
    baseline_score = sum(share * each.baseline_score for share, each in pairs)
    weights_T = np.concatenate([share * each.weights_T for share, each in pairs])
    template = [
        TemplateWeight(piece.shown[index], weight)
        for piece, index, weight in _input_tokens(question, integrals)
        if piece.places[index] is None
    ]
    size = float(np.abs(weights_T).sum())
    return Attribution(
        question.target,
        question.span,
        score,
        baseline_score,
        tuple(words),
        tuple(tokens),
        tuple(template),
        sum(abs(each.weight) for each in template) / size if size else 0.0,
        max(piece.features.num_cut_tokens for piece in question.pieces),
        max(each.num_steps for each in integrals),
        completeness_gap(weights_T, score - baseline_score),
        checked,
    )


def _tokens(question: Question, integrals: Sequence[Integral]) -> list[Weight]:
    """Give the tokens of the text in its order; a token that several windows read stands there once for each."""
    found: list[Weight] = []
    for piece, index, weight in _input_tokens(question, integrals):
        if (place := piece.places[index]) is not None:
            found.append(Weight(*place, question.text[slice(*place)], weight))
    return sorted(found, key=lambda each: (each.start, each.end))


def _input_tokens(
    question: Question, integrals: Sequence[Integral]
) -> Iterator[tuple[Piece, int, float]]:
    for piece, integral in zip(question.pieces, integrals, strict=True):
        for index in np.flatnonzero(piece.moves_T).tolist():
            yield piece, index, piece.share * float(integral.weights_T[index])
