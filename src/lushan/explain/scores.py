"""How sure a model is of an answer, as a number that has a gradient: the log-probability of each document's target.

What a document asks shows in the form of its features; `explain/questions.py` makes them.

Shapes: N documents, T tokens, D width, C classes or tags, K chosen positions.
"""

import torch
from torch import Tensor
from torch.nn import functional

from lushan.backbones.heads import class_logits, token_log_likelihoods, token_logits
from lushan.backbones.load import AnswerLayer, Backbone
from lushan.records import Batch, Features


def answer_scores(backbone: Backbone, batch: Batch, layer: AnswerLayer) -> Tensor:
    """Give the natural logarithm of the probability of each document's target; (N,), float32.

    A target is the tokens behind `targets_from`, a class number, one tag number for each of `positions`, or the numbers of a
    first and a last candidate token (with the sum of both logarithms).

    Args:
        backbone: The model.
        batch: Documents of one form.
        layer: What answers.
    """
    hidden_TD = backbone.hidden_states(batch)
    if layer.purpose == "language":
        return _written(backbone, hidden_TD, batch)
    if layer.purpose == "classify":
        logits_NC = class_logits(backbone.plain_model, hidden_TD, batch)
        logs_NC = (
            functional.logsigmoid(logits_NC) if layer.multi_label else logits_NC.log_softmax(dim=1)
        )
        targets_N = torch.tensor([each.target for each in batch.features], device=logs_NC.device)
        return logs_NC.gather(1, targets_N[:, None])[:, 0]
    if batch.features[0].positions is not None:
        return _tags(backbone, hidden_TD, batch)
    return _spans(backbone, hidden_TD, batch)


def _written(backbone: Backbone, hidden_TD: Tensor, batch: Batch) -> Tensor:
    ranges = [range(each.targets_from, len(each.token_ids)) for each in batch.features]
    targets_K = _on_token_axis(batch, ranges)
    logs_K = token_log_likelihoods(
        backbone.plain_model, hidden_TD[targets_K - 1], batch.token_ids_1T[0, targets_K]
    )
    return _sums(logs_K, ranges)


def _tags(backbone: Backbone, hidden_TD: Tensor, batch: Batch) -> Tensor:
    positions = [each.positions or () for each in batch.features]
    logits_KC = token_logits(backbone.plain_model, hidden_TD[_on_token_axis(batch, positions)])
    tags_K = torch.tensor([tag for each in batch.features for tag in targets_of(each)])
    logs_KC = logits_KC.log_softmax(dim=1)
    return _sums(logs_KC.gather(1, tags_K.to(logs_KC.device)[:, None])[:, 0], positions)


def _spans(backbone: Backbone, hidden_TD: Tensor, batch: Batch) -> Tensor:
    chosen = [[*candidates(each), len(each.token_ids) - 1] for each in batch.features]
    logits_K2 = token_logits(backbone.plain_model, hidden_TD[_on_token_axis(batch, chosen)])
    scores: list[Tensor] = []
    for part_K2, each in zip(
        logits_K2.split([len(each) for each in chosen]), batch.features, strict=True
    ):
        first, last = targets_of(each)
        logs_K2 = part_K2.log_softmax(dim=0)
        scores.append(logs_K2[first, 0] + logs_K2[last, 1])
    return torch.stack(scores)


def candidates(features: Features) -> list[int]:
    """Give the tokens at which an answer may start or end; the last token, beside them, stands for no answer."""
    return [index for index, place in enumerate(features.units) if place != (0, 0)]


def targets_of(features: Features) -> tuple[int, ...]:
    """Give the target numbers of a document, of which there may be one."""
    return features.target if isinstance(features.target, tuple) else (features.target,)


def _on_token_axis(
    batch: Batch, positions: "list[range] | list[tuple[int, ...]] | list[list[int]]"
) -> Tensor:
    flat = [
        start + position
        for start, each in zip(batch.first_N.tolist(), positions, strict=True)
        for position in each
    ]
    return torch.tensor(flat, dtype=torch.long, device=batch.token_ids_1T.device)


def _sums(logs_K: Tensor, parts: "list[range] | list[tuple[int, ...]]") -> Tensor:
    return torch.stack([part.sum() for part in logs_K.split([len(each) for each in parts])])
