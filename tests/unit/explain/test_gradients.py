"""Integrated gradients, compared with what they must be for a linear function and with a plain loop over transformers."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lushan.backbones.load import AnswerLayer, Backbone, Purpose, load_backbone
from lushan.errors import ModelError
from lushan.explain import gradients
from lushan.explain.embeddings import baseline_embedding, embed
from lushan.explain.gradients import FIRST_STEPS, Point, Scorer, completeness_gap, integrate
from lushan.explain.scores import answer_scores
from lushan.explain.settings import BaselineName, ExplainSettings
from lushan.records import Batch, Features
from tests.conftest import MakeTiny

ONE_PASS = ExplainSettings(most_steps=FIRST_STEPS)
LABELS = ("bad", "fine", "good")
DOCUMENTS = [
    Features(tuple(range(10, 10 + length)), "", 0, target=length % 3) for length in (5, 9, 9, 17)
]
assert_close = partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)


def sharpened(backbone: Backbone) -> Backbone:
    """Draw large weights, so that scores are far from linear."""
    generator = torch.Generator().manual_seed(3)
    for weight in backbone.model.parameters():
        if weight.ndim == 2:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.3
    return backbone


@pytest.fixture
def classifier(tiny_folder: MakeTiny) -> Backbone:
    return sharpened(load_backbone(tiny_folder("llama"), purpose="classify", labels=LABELS))


def scorer_of(
    backbone: Backbone, purpose: Purpose = "classify", baseline: BaselineName = "mean"
) -> Scorer:
    score = partial(answer_scores, backbone, layer=AnswerLayer(purpose, LABELS))
    return Scorer(backbone, score, baseline_embedding(backbone, baseline))


def all_tokens(documents: list[Features]) -> list[np.ndarray]:
    return [np.ones(len(each.token_ids), dtype=bool) for each in documents]


def linear(backbone: Backbone, direction_D: Tensor) -> Callable[[Batch], Tensor]:
    """Give a score that is linear in what enters the model: each token's part along one direction, times its place."""

    def score(batch: Batch) -> Tensor:
        embedded_TD = backbone.plain_model.get_input_embeddings()(batch.token_ids_1T)[0]
        along_T = embedded_TD @ direction_D * (batch.position_ids_1T[0] + 1)
        sums_N = torch.zeros(len(batch.features))
        return sums_N.index_add(0, batch.document_ids_1T[0], along_T)

    return score


@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_of_a_linear_score_they_are_gradient_times_input(
    baseline: BaselineName, classifier: Backbone
) -> None:
    direction_D = torch.linspace(-1, 1, classifier.facts.width)
    baseline_D = baseline_embedding(classifier, baseline)
    scorer = Scorer(classifier, linear(classifier, direction_D), baseline_D)
    found = integrate(scorer, DOCUMENTS, all_tokens(DOCUMENTS), ONE_PASS)
    for document, integral in zip(DOCUMENTS, found, strict=True):
        input_TD = embed(classifier, torch.tensor(document.token_ids)) - baseline_D
        gradient_TD = torch.arange(1, len(input_TD) + 1)[:, None] * direction_D
        assert_close(integral.weights_T, (input_TD * gradient_TD).sum(dim=1), rtol=1e-5)
        assert integral.gap < 1e-6


def reference(
    score: Callable[[Tensor], Tensor], embedded_TD: Tensor, start_TD: Tensor, num_steps: int
) -> Tensor:
    """Integrate along the line in the plainest way: one document, one step after another."""
    shares = np.full(num_steps + 1, 1 / num_steps)
    shares[[0, -1]] /= 2
    total_TD = torch.zeros_like(embedded_TD)
    for node, share in zip(np.linspace(0, 1, num_steps + 1), shares, strict=True):
        point_TD = (start_TD + float(node) * (embedded_TD - start_TD)).requires_grad_()
        (gradient_TD,) = torch.autograd.grad(score(point_TD), point_TD)
        total_TD += float(share) * gradient_TD
    return ((embedded_TD - start_TD) * total_TD).sum(dim=1)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text", "bert", "modernbert"])
def test_of_a_class_they_are_those_of_a_plain_loop_over_transformers(
    model_type: str, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    folder = tiny_folder(model_type)
    backbone = sharpened(load_backbone(folder, purpose="classify", labels=LABELS))
    backbone.plain_model.save_pretrained(tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, attn_implementation="eager"
    )
    scorer = scorer_of(backbone)
    found = integrate(scorer, DOCUMENTS, all_tokens(DOCUMENTS), ONE_PASS)
    rows = theirs.get_input_embeddings()
    for document, integral in zip(DOCUMENTS, found, strict=True):
        embedded_TD = rows(torch.tensor(document.token_ids)).detach()

        def score(point_TD: Tensor, document: Features = document) -> Tensor:
            return (
                theirs(inputs_embeds=point_TD[None]).logits[0].log_softmax(dim=0)[document.target]
            )

        start_TD = scorer.baseline_D.expand_as(embedded_TD)
        assert_close(integral.weights_T, reference(score, embedded_TD, start_TD, FIRST_STEPS))


def test_of_written_tokens_they_are_those_of_a_plain_loop_over_transformers(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    backbone = sharpened(load_backbone(tiny_folder("llama"), purpose="language"))
    backbone.plain_model.save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    scorer = scorer_of(backbone, "language")
    document = replace(DOCUMENTS[-1], targets_from=12)
    moves_T = np.arange(17) < 12
    (found,) = integrate(scorer, [document], [moves_T], ONE_PASS)
    ids = torch.tensor(document.token_ids)
    embedded_TD = theirs.get_input_embeddings()(ids).detach()
    start_TD = torch.where(torch.tensor(moves_T)[:, None], scorer.baseline_D, embedded_TD)

    def score(point_TD: Tensor) -> Tensor:
        logs_TV = theirs(inputs_embeds=point_TD[None]).logits[0].log_softmax(dim=1)
        return logs_TV[11:16].gather(1, ids[12:, None]).sum()

    assert_close(found.weights_T, reference(score, embedded_TD, start_TD, FIRST_STEPS))
    assert not found.weights_T[12:].any()


def test_batching_changes_nothing(classifier: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = scorer_of(classifier)
    together = integrate(scorer, DOCUMENTS, all_tokens(DOCUMENTS), ONE_PASS)
    monkeypatch.setattr(gradients, "MAX_GRADIENT_TOKENS", 40)
    alone = [integrate(scorer, [each], all_tokens([each]), ONE_PASS)[0] for each in DOCUMENTS]
    for one, other in zip(together, alone, strict=True):
        assert_close(one.weights_T, other.weights_T)
        assert one.score == pytest.approx(other.score, abs=1e-5)


def test_steps_run_packed_and_never_more_tokens_than_allowed(
    classifier: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def score(batch: Batch) -> Tensor:
        if torch.is_grad_enabled():
            sizes.append(batch.num_tokens)
        return answer_scores(classifier, batch, AnswerLayer("classify", LABELS))

    monkeypatch.setattr(gradients, "MAX_GRADIENT_TOKENS", 100)
    scorer = Scorer(classifier, score, baseline_embedding(classifier, "mean"))
    integrate(scorer, DOCUMENTS, all_tokens(DOCUMENTS), ONE_PASS)
    num_nodes = FIRST_STEPS + 1
    assert sum(sizes) == num_nodes * sum(len(each.token_ids) for each in DOCUMENTS)
    assert max(sizes) <= 100
    assert len(sizes) < FIRST_STEPS


def test_steps_are_cut_until_they_explain_how_the_score_moves(classifier: Backbone) -> None:
    scorer = scorer_of(classifier, baseline="zero")
    rough = integrate(scorer, DOCUMENTS, all_tokens(DOCUMENTS), ONE_PASS)
    assert max(each.gap for each in rough) > 0.01
    settings = ExplainSettings(most_gap=0.01, most_steps=1024)
    found = integrate(scorer, DOCUMENTS, all_tokens(DOCUMENTS), settings)
    assert max(each.gap for each in found) <= 0.01
    assert max(each.num_steps for each in found) < 1024
    assert {each.num_steps for each in rough} == {FIRST_STEPS}


def test_a_jump_that_is_narrower_than_a_step_is_found(classifier: Backbone) -> None:
    direction_D = torch.linspace(-1, 1, classifier.facts.width)
    along = linear(classifier, direction_D)
    baseline_D = baseline_embedding(classifier, "zero")
    (end,) = Scorer(classifier, along, baseline_D).scores([Point(DOCUMENTS[0], np.ones(5))])

    def score(batch: Batch) -> Tensor:
        return 5 * torch.sigmoid(3000 * (along(batch) / float(end) - 0.317))

    scorer = Scorer(classifier, score, baseline_D)
    (rough,) = integrate(scorer, DOCUMENTS[:1], all_tokens(DOCUMENTS[:1]), ONE_PASS)
    (found,) = integrate(scorer, DOCUMENTS[:1], all_tokens(DOCUMENTS[:1]), ExplainSettings())
    assert rough.gap > 0.9
    assert found.gap <= 0.02
    assert found.weights_T.sum() == pytest.approx(5, rel=0.1)
    assert found.num_steps < 64


def test_slope_at_the_baseline_that_is_not_finite_is_left_out(classifier: Backbone) -> None:
    direction_D = torch.linspace(-1, 1, classifier.facts.width)
    along = linear(classifier, direction_D)

    def score(batch: Batch) -> Tensor:
        return along(batch).abs().sqrt()  # rises without end at 0

    baseline_D = baseline_embedding(classifier, "zero")
    (found,) = integrate(
        Scorer(classifier, score, baseline_D),
        DOCUMENTS[:1],
        all_tokens(DOCUMENTS[:1]),
        ExplainSettings(),
    )
    assert np.isfinite(found.weights_T).all()
    assert found.gap <= 0.02


def test_gradients_that_are_not_finite_are_refused(classifier: Backbone) -> None:
    direction_D = torch.linspace(-1, 1, classifier.facts.width)
    along = linear(classifier, direction_D)
    baseline_D = baseline_embedding(classifier, "zero")
    scorer = Scorer(classifier, lambda batch: along(batch) * torch.inf, baseline_D)
    with pytest.raises(ModelError, match=r"From the baseline `mean` the gradients.*another"):
        integrate(scorer, DOCUMENTS, all_tokens(DOCUMENTS), ExplainSettings(baseline="mean"))


def test_gap_is_the_share_that_does_not_add_up() -> None:
    assert completeness_gap(np.array([1.0, -3.0]), -2.0) == 0.0
    assert completeness_gap(np.array([1.0, -3.0]), -1.0) == pytest.approx(0.25)
    assert completeness_gap(np.array([0.5]), 2.0) == pytest.approx(0.75)
    assert completeness_gap(np.zeros(2), 0.0) == 0.0
