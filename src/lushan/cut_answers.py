"""Answers cut out of a text by a head: which tokens stand for it, what they learn, and which part is the likeliest.

Every token of the text may be where the answer starts and where it ends; the last token of a document stands for "not in
here".

Shapes: T tokens, D width, K tokens of the text and the last.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lushan.backbones.encoding import LengthLimit, Window, characters_read, encode_rendered
from lushan.backbones.heads import token_logits
from lushan.backbones.load import Backbone
from lushan.backbones.tokenizer import Tokenizer
from lushan.data.squad import ANSWER
from lushan.records import Batch, Example, Features, LossSum, Prediction, Rendered, Span

Place = tuple[int, int]

NOWHERE: Place = (0, 0)


class Found(NamedTuple):
    """The best answer of one window."""

    place: Place
    """Characters of the text; (0, 0) where the window holds none of it."""
    log_odds: float
    """Logarithm of how much likelier it is than that the answer is not in the window."""
    log_likelihood: float
    log_absence: float
    """Logarithm of the probability that the answer is not in the window."""


class Part(NamedTuple):
    """Where an answer stands in what a model reads."""

    before: str
    """What is read before the text that answers are cut out of."""
    spans: Sequence[Span]
    """The right answers in that text; the first is learned, and none says that there is none."""


def encode_parts(
    rendered: Sequence[Rendered],
    examples: Sequence[Example],
    parts: Sequence[Part],
    tokenizer: Tokenizer,
    *,
    limit: LengthLimit,
    with_target: bool,
) -> list[Features]:
    """Token ids of every window, with the characters of its tokens, and where the answer starts and ends.

    An answer that was cut off with the end of its text has no weight: that it is not in here is not what the row says.

    Raises:
        DataError: If a text is too long and the policy is `error`.
    """
    places = [each.place for each in examples]
    encoded = encode_rendered(rendered, tokenizer, limit=limit, places=places, overlapping=True)
    features: list[Features] = []
    for index, (example, part, windows) in enumerate(zip(examples, parts, encoded, strict=True)):
        start = len(part.before)
        units = [characters_of(each, example.text, start=start) for each in windows]
        spans = part.spans
        if with_target and windows[0].num_cut_tokens:
            spans = spans_within(spans, characters_read(rendered[index], windows[0]))
        is_cut_off = bool(part.spans) and not spans
        targets = learned_places(spans, units) if with_target else [-1] * len(units)
        features += [
            Features(
                token_ids=window.token_ids,
                place=example.place,
                example_index=index,
                target=target,
                units=characters,
                num_cut_tokens=window.num_cut_tokens,
                num_cut_items=int(is_cut_off),
                weight=0.0 if is_cut_off else 1 / len(windows),
            )
            for window, characters, target in zip(windows, units, targets, strict=True)
        ]
    return features


def spans_within(spans: Sequence[Span], num_characters: int) -> list[Span]:
    """Give the spans that the first characters of a text hold whole."""
    return [each for each in spans if each.end <= num_characters]


def as_read(example: Example, num_characters: int) -> Example:
    """Give the example as who reads no more than the first characters of its text knows it.

    The right answers that are whole there come first, as the first is learned; where none is, the truth is not known. Answers
    without a place stay as they are.
    """
    part = replace(example, text=example.text[:num_characters])
    spans = [each for each in example.target or () if isinstance(each, Span)]
    if not spans:
        return part
    kept = spans_within(spans, num_characters)
    cut = [each for each in spans if each not in kept]
    return replace(part, target=(*kept, *cut) if kept else None)


def characters_of(window: Window, text: str, *, start: int) -> tuple[Place, ...]:
    """The characters of the text that each token stands for, without space around them; the last for none.

    Args:
        window: Tokens of what the model reads.
        text: What is asked about.
        start: Where it begins in what the model reads.
    """
    found = [_trimmed(text, first - start, end - start) for first, end in window.offsets]
    return (*found[:-1], NOWHERE)


def _trimmed(text: str, start: int, end: int) -> Place:
    start, end = max(start, 0), min(end, len(text))
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return (start, end) if start < end else NOWHERE


def _candidates(units: Sequence[Place]) -> list[int]:
    """Tokens of the text, by their index."""
    return [index for index, place in enumerate(units) if place != NOWHERE]


def learned_places(
    spans: Sequence[Span], windows: Sequence[Sequence[Place]]
) -> list[tuple[int, int]]:
    """For each window: the numbers of a first and a last candidate, or twice that behind the last: not in here.

    The windows with most of the first span learn it.
    """
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


def place_logits(backbone: Backbone, batch: Batch, *, dropout: float = 0.0) -> list[Tensor]:
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


def part_loss(backbone: Backbone, batch: Batch, *, dropout: float) -> LossSum:
    """Cross-entropy of the token where the answer starts, and of that where it ends: their mean."""
    total = torch.zeros((), device=backbone.device)
    for logits_K2, each in zip(
        place_logits(backbone, batch, dropout=dropout), batch.features, strict=True
    ):
        targets_2 = torch.tensor(each.target, device=logits_K2.device)
        total = total + each.weight * functional.cross_entropy(logits_K2.T, targets_2)
    return LossSum(total, sum(each.weight for each in batch.features))


def decode_parts(
    outputs: Sequence[np.ndarray],
    features: Sequence[Features],
    examples: Sequence[Example],
    *,
    threshold: float | None,
    may_abstain: bool,
) -> list[Prediction]:
    """One prediction per example, from all its windows; see `cut_prediction`."""
    found: list[list[Found]] = [[] for _ in examples]
    for scores_K2, each in zip(outputs, features, strict=True):
        found[each.example_index].append(likeliest(scores_K2, each))
    return [
        cut_prediction(example, windows, threshold=threshold, may_abstain=may_abstain)
        for example, windows in zip(examples, found, strict=True)
    ]


def likeliest(scores_K2: np.ndarray, features: Features) -> Found:
    """The likeliest start and end of one window, the end not before the start."""
    logs_K2 = scores_K2.astype(np.float64)
    logs_K2 = logs_K2 - logs_K2.max(axis=0)
    logs_K2 = logs_K2 - np.log(np.exp(logs_K2).sum(axis=0))
    log_absence = float(logs_K2[-1].sum())
    starts, ends = logs_K2[:-1].T
    if not len(starts):
        return Found(NOWHERE, -np.inf, -np.inf, log_absence)
    best_end_from = np.maximum.accumulate(ends[::-1])[::-1]
    first = int((starts + best_end_from).argmax())
    last = first + int(ends[first:].argmax())
    tokens = _candidates(features.units)
    place = (features.units[tokens[first]][0], features.units[tokens[last]][1])
    log_likelihood = float(starts[first] + ends[last])
    return Found(place, log_likelihood - log_absence, log_likelihood, log_absence)


def cut_prediction(
    example: Example, windows: Sequence[Found], *, threshold: float | None, may_abstain: bool
) -> Prediction:
    """Give the answer of the window that is surest of its own, or none.

    Args:
        example: What was asked.
        windows: The best answer of each.
        threshold: No answer is given where the probability that there is none is above; None takes a half, and
            leaves the probability out.
        may_abstain: Whether no answer may be given at all.
    """
    from scipy.special import expit  # slow to import, and no training needs it

    best = max(windows, key=lambda each: each.log_odds)
    absence = float(expit(-best.log_odds))
    told = None if threshold is None else absence
    if best.place == NOWHERE or (
        may_abstain and absence > (0.5 if threshold is None else threshold)
    ):
        absent = sum(each.log_absence for each in windows)
        return Prediction(
            example.id, (), log_likelihood=min(0.0, absent), no_answer_probability=told
        )
    start, end = best.place
    likelihood = min(0.0, best.log_likelihood)
    span = Span(start, end, ANSWER, example.text[start:end], float(np.exp(likelihood)))
    return Prediction(example.id, (span,), log_likelihood=likelihood, no_answer_probability=told)
