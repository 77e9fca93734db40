"""What may follow texts that are being written: the scores of all tokens, and what every way of choosing asks of them.

Shapes: R rows, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lushan.backbones import native


class Scores(NamedTuple):
    """What may follow each of some texts."""

    logits_RV: Tensor
    """Float32."""
    likeliest: Sequence[int]
    """Token of each row; the first of several."""
    largest: Sequence[float]
    """Its logit."""
    totals: Sequence[float]
    """Natural logarithm of the sum of the exponentials of each row."""

    @classmethod
    def of(cls, logits_RV: Tensor) -> "Scores":
        """Look through all rows once.

        Args:
            logits_RV: What the model gives.
        """
        logits_RV = logits_RV.float().contiguous()
        if logits_RV.device.type == "cpu" and not native.why_missing():
            found = native.summarise(logits_RV)
        else:
            largest_R, likeliest_R = logits_RV.max(dim=-1)
            found = likeliest_R, largest_R, logits_RV.logsumexp(dim=-1)
        return cls(logits_RV, *(each.tolist() for each in found))

    def of_rows(self, rows: Sequence[int]) -> "Scores":
        """Give those of some rows; of neighbours nothing is copied."""
        first, end = rows[0], rows[0] + len(rows)
        are_neighbours = list(rows) == list(range(first, end))
        chosen_RV = self.logits_RV[first:end] if are_neighbours else self.logits_RV[list(rows)]
        return Scores(
            chosen_RV,
            [self.likeliest[row] for row in rows],
            [self.largest[row] for row in rows],
            [self.totals[row] for row in rows],
        )

    def log_probability(self, row: int, token: int) -> float:
        """Natural logarithm of the model's own probability of a token."""
        is_likeliest = token == self.likeliest[row]
        logit = self.largest[row] if is_likeliest else float(self.logits_RV[row, token])
        return logit - self.totals[row]

    def most_likely(self, row: int, num_tokens: int) -> tuple[tuple[int, float], ...]:
        """Give tokens and the natural logarithm of their probability, the most likely first."""
        if num_tokens == 0:
            return ()
        logits_V = self.logits_RV[row]
        values, tokens = torch.topk(logits_V, min(num_tokens, len(logits_V)))
        logs = (values - self.totals[row]).tolist()
        return tuple(zip(tokens.tolist(), logs, strict=True))
