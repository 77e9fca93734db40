"""What a certificate asks, and what of the answers must be equal: fixed texts, renderer, labels, numbers, written tokens.

Shapes: V vocabulary.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from lushan.backbones.heads import vocabulary_logits
from lushan.data.batching import pack
from lushan.errors import CertificateError
from lushan.inference.generate import Generated, generate, stop_ids
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.predict import Predictor
from lushan.label_answers import THRESHOLD
from lushan.records import Answer, Example, Features, Prediction, Span, plain_answer

NUM_PROBES = 32
NUM_WRITTEN_PROBES = 8
"""Probes that are answered where a model writes, which takes long; the tokens of the others are compared as they are asked."""
NUM_WRITTEN_TOKENS = 32
"""Greedy tokens of each answer that are compared."""

RENDERER = (
    *("labels", "threshold", "stop_tokens", "stop_strings", "chat_template", "tokenizer"),
    "length_limit",
)
"""What must be equal whatever is asked."""
NUMBERS = ("probabilities", "log_likelihoods")
"""What may differ by a tolerance, in the order of its fields."""
OF_EACH_PROBE = ("token_ids", "answers", "written_ids", *NUMBERS)
_MOST_SHOWN = 300


class Tolerance(NamedTuple):
    """How far numbers may be from those that were certified."""

    probability: float
    log_likelihood: float
    """Of one token, or of one answer; of a value beyond 1, as a share of it."""
    reason: str


SAME_ARITHMETIC = Tolerance(
    1e-5, 1e-5, "the same machine adds in the same order: measured, it is 0"
)
"""What a fresh process is held to, right after a model was saved."""

TOLERANCES: Mapping[str, Tolerance] = {
    "fp32": Tolerance(
        1e-4,
        1e-3,
        "other processors and numbers of threads add in another order: measured, 5e-7 with AVX2 in place of AMX",
    ),
    "bf16": Tolerance(
        0.05,
        0.3,
        "bf16 keeps 8 bits, and what is added in another order is rounded to a neighbour: measured, 0.12 of the "
        "log-likelihood of a token with AVX2 in place of AMX",
    ),
    "int8": Tolerance(0.1, 0.5, "weights are rounded to 8 bits, on top of what bf16 does"),
    "int4": Tolerance(0.25, 1.5, "weights are rounded to 4 bits, on top of what bf16 does"),
}
"""By the arithmetic that a form answers with: that of its training, or, of one whose weights were rounded, theirs."""

IsTie = Callable[[int, Sequence[int], int, int], bool]


def describe_answers(
    predictor: Predictor, probes: Sequence[Example], *, writes: bool | None = None
) -> dict[str, Any]:
    """Tell everything that must be equal, as JSON has it.

    Args:
        predictor: The model.
        probes: What it is asked.
        writes: Whether the tokens that it writes are told, and not what it chooses; None: as its task does.
    """
    features = predictor.encode(probes)
    return {
        **describe_renderer(predictor, features),
        **(
            describe_written(predictor, features)
            if (predictor.writes if writes is None else writes)
            else describe_chosen(predictor.predict(probes, features=features))
        ),
    }


def describe_renderer(predictor: Predictor, features: Sequence[Features]) -> dict[str, Any]:
    """Tell what stands around every text and answer, and what becomes of the probes; reads no weights."""
    backbone, state = predictor.backbone, predictor.state
    template = backbone.tokenizer.chat.text.encode()
    return {
        "labels": list(state.labels),
        "threshold": THRESHOLD if state.multi_label else state.no_answer_threshold,
        "stop_tokens": sorted(stop_ids(backbone)),
        "stop_strings": [*predictor.generation.stop_strings, *state.stop_strings],
        "chat_template": hashlib.sha256(template).hexdigest(),
        "tokenizer": backbone.tokenizer.fingerprint,
        "length_limit": [predictor.limit.max_tokens, predictor.limit.policy],
        "token_ids": [list(each.token_ids) for each in features],
    }


def describe_chosen(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Tell answers that are chosen, and how sure the model is of them."""
    parts = [() if isinstance(each.answer, str) else each.answer for each in predictions]
    return {
        "answers": [_without_numbers(each.answer) for each in predictions],
        "probabilities": [
            [
                *each.probabilities.values(),
                *(x.probability for x in spans if isinstance(x, Span)),
                *(() if each.no_answer_probability is None else (each.no_answer_probability,)),
            ]
            for each, spans in zip(predictions, parts, strict=True)
        ],
        "log_likelihoods": [
            [each.log_likelihood, *each.log_likelihoods.values()] for each in predictions
        ],
    }


def _without_numbers(answer: Answer) -> Any:  # noqa: ANN401 - any JSON value
    """The answer as JSON has it; how sure the model is of its parts is compared as a number."""
    if isinstance(answer, str):
        return answer
    bare = [x if isinstance(x, str) else replace(x, probability=None) for x in answer]
    return plain_answer(tuple(bare))  # pyright: ignore[reportArgumentType] - all are of one kind


def prompts_of(features: Sequence[Features]) -> list[list[int]]:
    """Give what a model reads before it writes, of the probes that are answered so."""
    ends = [each.branch_starts[0] if each.branches else None for each in features]
    return [
        list(each.token_ids[:end])
        for each, end in zip(features[:NUM_WRITTEN_PROBES], ends, strict=False)
    ]


def written_questions(
    predictor: Predictor, features: Sequence[Features]
) -> tuple[list[list[int]], GenerationSettings]:
    """Give the prompts of which the first greedy tokens are compared, and how they are answered.

    The form that a probe asks for is left out: it would hide what the model prefers.
    """
    stop_strings = (*predictor.generation.stop_strings, *predictor.state.stop_strings)
    most = min(NUM_WRITTEN_TOKENS, predictor.generation.max_new_tokens)
    settings = GenerationSettings(max_new_tokens=most, stop_strings=stop_strings)
    return prompts_of(features), settings


def describe_written(predictor: Predictor, features: Sequence[Features]) -> dict[str, Any]:
    """Tell the first greedy tokens of some probes."""
    prompts, settings = written_questions(predictor, features)
    return describe_generated(generate(predictor.backbone, prompts, settings))


def describe_generated(written: Sequence[Generated]) -> dict[str, Any]:
    """Tell what was written for them."""
    return {
        "written_ids": [each.token_ids for each in written],
        "log_likelihoods": [each.log_probabilities for each in written],
    }


def never(*_: object) -> bool:
    """Take no two tokens for equally likely."""
    return False


def compare(
    expected: Mapping[str, Any],
    found: Mapping[str, Any],
    *,
    tolerance: Tolerance = SAME_ARITHMETIC,
    is_tie: IsTie = never,
) -> float:
    """Hold two descriptions against each other; gives the largest difference of a number.

    Answers may differ only where numbers do, within the tolerance: then two were as good as equally likely.

    Args:
        expected: What `describe_answers` told of the model that was trained; of an older version, what it knew.
        found: The same of the model in question.
        tolerance: How far numbers may be apart.
        is_tie: Whether, after a probe and what was written so far, the found token and the expected one are equally
            likely: then what follows is not compared.

    Raises:
        CertificateError: If something else differs; names it and the probe, what was expected, and what was found.
    """
    for name in RENDERER:
        if name in expected:
            _check_equal(_words(name), expected[name], found[name])
    _check_equal("Number of probes", len(expected["token_ids"]), len(found["token_ids"]))
    largest = 0.0
    for number in range(len(expected["token_ids"])):
        ours, theirs = _probe(expected, number), _probe(found, number)
        place = f"Probe {number + 1}, "
        _check_equal(f"{place}token ids", ours["token_ids"], theirs["token_ids"])
        if "written_ids" in ours:
            _cut_at_tie(ours, theirs, place=place, is_tie=partial(is_tie, number))
        difference = _difference_of_numbers(ours, theirs, place=place, tolerance=tolerance)
        if difference <= SAME_ARITHMETIC.probability and "answers" in ours:
            _check_equal(
                f"{place}answer, from the same numbers", ours["answers"], theirs["answers"]
            )
        largest = max(largest, difference)
    return largest


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _check_equal(what: str, expected: object, found: object) -> None:
    if expected != found:
        raise CertificateError(f"{what}: expected {_short(expected)}, got {_short(found)}.")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]} ..."


def _probe(described: Mapping[str, Any], number: int) -> dict[str, Any]:
    """What is told of one probe."""
    return {
        name: described[name][number]
        for name in OF_EACH_PROBE
        if number < len(described.get(name, ()))
    }


def _cut_at_tie(
    ours: dict[str, Any],
    theirs: dict[str, Any],
    *,
    place: str,
    is_tie: Callable[[Sequence[int], int, int], bool],
) -> None:
    """Leave out what was written behind two tokens that were equally likely.

    Raises:
        CertificateError: If other tokens were written.
    """
    expected, found = ours["written_ids"], theirs.get("written_ids", [])
    pairs = enumerate(zip(expected, found, strict=False))
    end = next((place for place, pair in pairs if pair[0] != pair[1]), None)
    if end is None or not is_tie(found[:end], found[end], expected[end]):
        _check_equal(f"{place}written tokens", expected, found)
        return
    for each in (ours, theirs):
        each["log_likelihoods"] = each["log_likelihoods"][:end]


def _difference_of_numbers(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], *, place: str, tolerance: Tolerance
) -> float:
    """Largest difference of a number of one probe.

    Raises:
        CertificateError: If it is above the tolerance.
    """
    largest = 0.0
    for name, allowed in zip(NUMBERS, tolerance[:2], strict=True):
        if name not in ours:
            continue
        expected, found = (np.array(each.get(name, ()), np.float64) for each in (ours, theirs))
        if len(expected) != len(found):
            if ours.get("answers") != theirs.get("answers"):
                continue  # the probabilities of the parts of two answers
            _check_equal(f"{place}number of {name.replace('_', ' ')}", len(expected), len(found))
        differences = np.abs(expected - found) / np.maximum(1.0, np.abs(expected))
        if not (differences <= allowed).all():  # so that what is no number is refused
            worst = int(np.argmax(np.nan_to_num(differences, nan=np.inf)))
            raise CertificateError(
                f"{place}{name.replace('_', ' ')}: differ by up to {differences[worst]:.2g} (at most {allowed:g} is "
                f"allowed): expected {expected[worst]:.6g}, got {found[worst]:.6g}."
            )
        largest = max(largest, float(differences.max(initial=0.0)))
    return largest


def ties_of(
    predictor: Predictor, prompts: Sequence[Sequence[int]], *, tolerance: Tolerance
) -> IsTie:
    """Make the judge of two tokens: are they, after the same text, as likely as each other?"""

    def is_tie(number: int, written: Sequence[int], found: int, expected: int) -> bool:
        text = Features((*prompts[number], *written), "probe", 0)
        backbone = predictor.backbone
        with torch.inference_mode():
            hidden_TD = backbone.hidden_states(pack([text], device=backbone.device))
            logits_1V = vocabulary_logits(backbone.plain_model, hidden_TD[-1:])
        return abs(float(logits_1V[0, found] - logits_1V[0, expected])) <= tolerance.log_likelihood

    return is_tie
