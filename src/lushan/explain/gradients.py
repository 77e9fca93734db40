"""Integrated gradients over token embeddings (Sundararajan, Taly and Yan 2017, https://arxiv.org/abs/1703.01365).

On the straight line from a baseline b to the embeddings x of a document, what a token gets is (x - b) times the mean gradient
of the score. Deep models jump on that line, within a thousandth of it and at places that nobody knows before. So the
line is cut where the gradients of a step do not explain how far the score moves in it, again and again (the trapezoidal rule on
bisected steps). What is open of all lines runs together, packed.

Shapes: N documents of a batch, T tokens, D width, P points, K nodes of a line.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lushan.backbones.load import Backbone
from lushan.data.batching import MAX_BATCH_TOKENS, pack, split_lengths
from lushan.errors import ModelError
from lushan.explain.embeddings import embed, replaced_embeddings
from lushan.explain.settings import ExplainSettings
from lushan.records import Batch, Features

FIRST_STEPS = 16
"""Steps of equal length that every line begins with."""
_OPEN_SHARE = 0.5
"""In each round those steps are cut, the worst first, that have this share of what is not explained."""
MAX_GRADIENT_TOKENS = 512
"""Tokens that run with a gradient at once: what every layer keeps of them bounds the memory. Changes no result."""


class Point(NamedTuple):
    """One document with its words more or less there."""

    features: Features
    presence_T: np.ndarray
    """Of each token: 1 where it is as it is, 0 where it is the baseline, between them on the line."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """A model as a function of token embeddings."""

    backbone: Backbone
    score: Callable[[Batch], Tensor]
    """Scores of the documents of a batch, of which none sees another; (N,)."""
    baseline_D: Tensor

    def scores(self, points: Sequence[Point]) -> np.ndarray:
        """Give the score of every point; (P,), float64."""
        found = np.empty(len(points))
        for places, batch, presence_T in self._batches(points, MAX_BATCH_TOKENS):
            with torch.no_grad(), replaced_embeddings(self.backbone, self._at(batch, presence_T)):
                found[places] = self.score(batch).double().cpu().numpy()
        return found

    def slopes(self, points: Sequence[Point]) -> list[tuple[float, np.ndarray]]:
        """Give the score of every point, and its derivative along each token's line; (T,) each, float64."""
        found: list[tuple[float, np.ndarray]] = [(0.0, np.empty(0))] * len(points)
        for places, batch, presence_T in self._batches(points, MAX_GRADIENT_TOKENS):
            embedded_TD = self._at(batch, presence_T).requires_grad_()
            with torch.enable_grad(), replaced_embeddings(self.backbone, embedded_TD):
                scores_N = self.score(batch)
            (gradient_TD,) = torch.autograd.grad(scores_N.sum(), embedded_TD)
            lines_TD = embed(self.backbone, batch.token_ids_1T[0]) - self.baseline_D
            slopes_T = (gradient_TD * lines_TD).sum(dim=1).double().cpu().numpy()
            ends = np.cumsum([len(each.token_ids) for each in batch.features])
            parts = np.split(slopes_T, ends[:-1])
            for place, score, part_T in zip(places, scores_N.tolist(), parts, strict=True):
                found[place] = (score, part_T)
        return found

    def _at(self, batch: Batch, presence_T: Tensor) -> Tensor:
        """Give the embeddings at the points of a batch; (T, D)."""
        embedded_TD = embed(self.backbone, batch.token_ids_1T[0])
        return self.baseline_D + presence_T[:, None] * (embedded_TD - self.baseline_D)

    def _batches(
        self, points: Sequence[Point], max_tokens: int
    ) -> Iterator[tuple[list[int], Batch, Tensor]]:
        """Pack points of similar length; gives the places of a batch's documents, in its order, and how much is there."""
        lengths = [len(each.features.token_ids) for each in points]
        order = np.argsort(lengths, kind="stable").tolist()
        for start, end in split_lengths((lengths[place] for place in order), max_tokens):
            places = order[start:end]  # sorted by length already, as `pack` sorts
            device = self.backbone.device
            batch = pack([points[place].features for place in places], device=device)
            presence_T = np.concatenate([points[place].presence_T for place in places])
            yield places, batch, torch.from_numpy(presence_T).float().to(device)


@dataclass(frozen=True, slots=True)
class Integral:
    """What every token of a document adds to its score."""

    weights_T: np.ndarray
    """Their sum is the difference of the two scores, but for the gap; 0 for tokens that stay as they are."""
    score: float
    baseline_score: float
    """The score of the document whose input is all baseline."""
    num_steps: int

    @property
    def gap(self) -> float:
        """How far the sum of the weights is from the difference of the scores, as a share of the sizes of all weights."""
        return completeness_gap(self.weights_T, self.score - self.baseline_score)


def completeness_gap(weights_T: np.ndarray, difference: float) -> float:
    """Give |sum of weights - difference|, as a share of the summed sizes of the weights, or of the difference if larger."""
    error = abs(float(weights_T.sum()) - difference)
    size = max(float(np.abs(weights_T).sum()), abs(difference))
    return error / size if size else 0.0


def integrate(
    scorer: Scorer,
    documents: Sequence[Features],
    moves: Sequence[np.ndarray],
    settings: ExplainSettings,
) -> list[Integral]:
    """Integrate the gradient of every document's score, with more steps where they do not explain how the score moves.

    Args:
        scorer: The model.
        documents: Each with its target.
        moves: Which tokens of each come from the baseline; (T,) of bool. The others stay as they are.
        settings: `most_gap` and `most_steps`.

    Raises:
        ModelError: If a gradient is not finite.
    """
    lines = [_Line(*each) for each in zip(documents, moves, strict=True)]
    wanted = [np.linspace(0, 1, FIRST_STEPS + 1)] * len(lines)
    while any(map(len, wanted)):
        points = [
            _point(line.features, line.moves_T, float(node))
            for line, nodes_K in zip(lines, wanted, strict=True)
            for node in nodes_K
        ]
        found = iter(scorer.slopes(points))
        for line, nodes_K in zip(lines, wanted, strict=True):
            line.add(nodes_K, [next(found) for _ in nodes_K])
        if not all(np.isfinite(line.slopes_KT[1:]).all() for line in lines):
            raise ModelError(
                f"From the baseline `{settings.baseline}` the gradients of this model are not finite. Use another baseline."
            )
        wanted = [line.open_nodes(settings) for line in lines]
    return [
        Integral(
            line.weights().sum(axis=0),
            float(line.scores_K[-1]),
            float(line.scores_K[0]),
            len(line.nodes_K) - 1,
        )
        for line in lines
    ]


@dataclass(slots=True)
class _Line:
    """The way of one document from the baseline, 0, to what it is, 1."""

    features: Features
    moves_T: np.ndarray
    nodes_K: np.ndarray = field(default_factory=lambda: np.empty(0))
    scores_K: np.ndarray = field(default_factory=lambda: np.empty(0))
    slopes_KT: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))

    def add(self, nodes_K: np.ndarray, found: Sequence[tuple[float, np.ndarray]]) -> None:
        """Take what was found at new nodes."""
        if not len(nodes_K):
            return
        slopes_KT = np.stack([along_T * self.moves_T for _, along_T in found])
        if len(self.nodes_K):
            slopes_KT = np.concatenate([self.slopes_KT, slopes_KT])
        nodes_K = np.concatenate([self.nodes_K, nodes_K])
        scores_K = np.concatenate([self.scores_K, [score for score, _ in found]])
        order = np.argsort(nodes_K)
        self.nodes_K, self.scores_K = nodes_K[order], scores_K[order]
        self.slopes_KT = slopes_KT[order]

    def weights(self) -> np.ndarray:
        """Give what each token gets of each step; (K - 1, T)."""
        sizes_K = np.diff(self.nodes_K)[:, None]
        ends_KT, starts_KT = self.slopes_KT[1:], self.slopes_KT[:-1]
        if not np.isfinite(starts_KT[0]).all():
            # At zero embeddings the norms of all layers multiply to a slope that no float holds.
            starts_KT = np.concatenate([ends_KT[:1], starts_KT[1:]])
        return sizes_K * (ends_KT + starts_KT) / 2

    def open_nodes(self, settings: ExplainSettings) -> np.ndarray:
        """Give the middles of the steps that are to be cut; none where all is explained, or the steps are used up."""
        weights_KT = self.weights()
        errors_K = np.abs(weights_KT.sum(axis=1) - np.diff(self.scores_K))
        gap = completeness_gap(weights_KT.sum(axis=0), float(self.scores_K[-1] - self.scores_K[0]))
        # Errors of two steps could hide each other, so none may be large alone.
        size = float(np.abs(weights_KT.sum(axis=0)).sum())
        if max(gap * size, float(errors_K.max())) <= settings.most_gap * size:
            return np.empty(0)
        worst_K = np.argsort(-errors_K, kind="stable")
        shares_K = np.cumsum(errors_K[worst_K]) / errors_K.sum()
        num_cut = int(np.searchsorted(shares_K, _OPEN_SHARE)) + 1
        cut_K = worst_K[: min(num_cut, settings.most_steps - len(errors_K))]
        return (self.nodes_K[cut_K] + self.nodes_K[cut_K + 1]) / 2


def _point(features: Features, moves_T: np.ndarray, node: float) -> Point:
    return Point(features, np.where(moves_T, node, 1.0))
