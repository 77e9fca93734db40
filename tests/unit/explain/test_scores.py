"""Scores of answers, compared with the losses that training takes, and with what predictions say."""

from dataclasses import replace

import pytest
import torch

from lushan.backbones.heads import class_logits
from lushan.data.batching import pack
from lushan.explain.scores import answer_scores
from lushan.records import AnswerMode, Batch
from tests.unit.explain.conftest import Asked, AskModel


def told_batch(asked: Asked) -> Batch:
    model = asked.predictor
    return pack(
        model.task.encode(
            asked.examples,
            model.state,
            model.backbone.tokenizer,
            answer=model.answer,
            limit=model.limit,
            with_target=True,
        )
    )


def scores_of(asked: Asked, batch: Batch) -> torch.Tensor:
    model = asked.predictor
    layer = model.task.layer(model.state, answer=model.answer)
    return answer_scores(model.backbone, batch, layer)


@pytest.mark.parametrize(
    ("task", "answer", "factor"),
    [
        ("classification", "head", 1),
        ("classification", "generate", 1),
        ("relations", "head", 1),
        ("tagging", "head", 1),
        ("tagging", "generate", 1),
        ("answering", "head", 2),  # its loss is the mean of that of the start and that of the end
        ("answering", "generate", 1),
        ("translation", "generate", 1),
    ],
)
def test_scores_sum_to_the_negative_loss(
    task: str, answer: AnswerMode, factor: int, ask_model: AskModel
) -> None:
    asked = ask_model(task, answer)
    batch = told_batch(asked)
    loss = asked.predictor.task.loss(
        asked.predictor.backbone, batch, asked.predictor.state, dropout=0.0
    )
    found_N = scores_of(asked, batch)
    assert found_N.shape == (len(batch.features),)
    torch.testing.assert_close(found_N.sum(), -factor * loss.total, rtol=1e-4, atol=1e-4)


def test_one_of_several_labels_is_scored_by_its_own_probability(ask_model: AskModel) -> None:
    asked = ask_model(multi_label=True)
    model = asked.predictor
    batch = pack([replace(each, target=1) for each in model.encode(asked.examples)])
    hidden_TD = model.backbone.hidden_states(batch)
    expected_N = class_logits(model.backbone.plain_model, hidden_TD, batch).sigmoid()[:, 1].log()
    torch.testing.assert_close(scores_of(asked, batch), expected_N)
