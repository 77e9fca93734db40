"""Zero-shot answers of an encoder: compared with means and cosines that plain transformers and NumPy give."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from lushan.backbones.encoding import LengthLimit
from lushan.backbones.load import Backbone, load_backbone
from lushan.inference.similarity import predict_by_similarity
from lushan.records import Example, Prediction, TaskState
from tests.unit.inference.conftest import MakeSharp

LABELS = ("cold_food", "great film", "slow")
TEXTS = ("the soup was cold again", "a film, 10 out of 10", "home", "the fox lived in the forest")
EXAMPLES = [Example(f"id{number}", text, None) for number, text in enumerate(TEXTS)]
LIMIT = LengthLimit(128, "error")


@pytest.fixture(scope="module")
def folder(sharp_folder: MakeSharp) -> Path:
    return sharp_folder("modernbert")


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return load_backbone(folder, purpose="embed")


@torch.inference_mode()
def cosines(folder: Path, backbone: Backbone, texts: tuple[str, ...]) -> np.ndarray:
    """Compare texts with the labels' names, each by itself in the plain model."""
    model = AutoModel.from_pretrained(folder).eval()

    def unit(text: str) -> np.ndarray:
        ids = backbone.tokenizer.encode([text])[0].ids
        mean_D = model(torch.tensor([ids])).last_hidden_state[0].double().numpy().mean(axis=0)
        return mean_D / math.sqrt((mean_D**2).sum())

    names_CD = np.array([unit(name) for name in ("cold food", "great film", "slow")])
    return np.array([unit(text) for text in texts]) @ names_CD.T


def values(found: list[Prediction]) -> np.ndarray:
    return np.array([[each.probabilities[label] for label in LABELS] for each in found])


def test_probabilities_are_the_softmax_of_20_times_the_cosines(
    folder: Path, backbone: Backbone
) -> None:
    found = predict_by_similarity(backbone, EXAMPLES, TaskState(LABELS), limit=LIMIT)
    weights = np.exp(20 * cosines(folder, backbone, TEXTS))
    expected = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(values(found), expected, atol=1e-4)
    assert np.ptp(expected, axis=0).max() > 0.1  # the texts make a difference


def test_answer_is_the_most_similar_label_with_its_likelihood_in_the_order_of_the_examples(
    folder: Path, backbone: Backbone
) -> None:
    found = predict_by_similarity(backbone, EXAMPLES, TaskState(LABELS), limit=LIMIT)
    best = cosines(folder, backbone, TEXTS).argmax(axis=1)
    assert [each.id for each in found] == [each.id for each in EXAMPLES]
    assert [each.answer for each in found] == [LABELS[index] for index in best]
    for each in found:
        assert isinstance(each.answer, str)
        assert math.exp(each.log_likelihood) == pytest.approx(each.probabilities[each.answer])


def test_labels_of_a_text_that_may_have_several_are_those_with_a_cosine_of_at_least_0_3(
    folder: Path, backbone: Backbone
) -> None:
    state = TaskState(LABELS, multi_label=True)
    found = predict_by_similarity(backbone, EXAMPLES, state, limit=LIMIT)
    cosines_EC = cosines(folder, backbone, TEXTS)
    expected = [
        tuple(label for label, cosine in zip(LABELS, row, strict=True) if cosine >= 0.3)
        for row in cosines_EC
    ]
    assert [each.answer for each in found] == expected
    assert len(set(expected)) > 1
    np.testing.assert_allclose(values(found), 1 / (1 + np.exp(-20 * (cosines_EC - 0.3))), atol=1e-4)


def test_likelihood_of_several_labels_is_that_of_all_their_decisions(backbone: Backbone) -> None:
    state = TaskState(LABELS, multi_label=True)
    for each in predict_by_similarity(backbone, EXAMPLES, state, limit=LIMIT):
        decisions = [max(value, 1 - value) for value in each.probabilities.values()]
        assert math.exp(each.log_likelihood) == pytest.approx(math.prod(decisions))


def test_text_that_is_too_long_is_cut_whatever_the_policy(backbone: Backbone) -> None:
    state = TaskState(LABELS)
    (long, start) = predict_by_similarity(
        backbone,
        [Example("a", "soup " * 400, None), Example("b", "soup " * 300, None)],
        state,
        limit=LIMIT,
    )
    assert long.probabilities == pytest.approx(dict(start.probabilities))


def test_text_that_is_too_long_is_cut_and_tells_it(backbone: Backbone) -> None:
    lengths = [len(each.ids) for each in backbone.tokenizer.encode(TEXTS)]
    limit = LengthLimit(max(lengths) - 2, "error")
    found = predict_by_similarity(backbone, EXAMPLES, TaskState(LABELS), limit=limit)
    assert [each.num_cut_tokens for each in found] == [
        max(0, each - limit.max_tokens) for each in lengths
    ]
