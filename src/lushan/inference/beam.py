"""Beam search with the scores, the order and the ends of `transformers`, for one request at a time.

Requests do not wait for each other: each has its drafts, and ends by itself. Compared token by token with
`GenerationMixin._beam_search` of transformers 5.23.

Shapes: R drafts that are followed, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lushan.inference.draft import Advance, Draft
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.sampling import Filters
from lushan.inference.scores import Scores


class _Scored(NamedTuple):
    score: float
    """Sum of the log-probabilities, after penalty; for a finished draft divided by its length's power."""
    draft: Draft
    row: int = 0
    """Row of the draft that this one continues."""


class BeamSearch:
    """Follow the `num_beams` best drafts of one request."""

    def __init__(self, start: Draft, settings: GenerationSettings) -> None:
        self._settings = settings
        self._filters = Filters(settings)
        self._running = [_Scored(0.0, start)]
        self._finished: list[_Scored] = []
        self._num_candidates = max(2, 1 + len(start.ends.stop_ids)) * settings.num_beams
        self._can_improve = True

    def advance(self, scores: Scores) -> Advance:
        """Continue the drafts by one token each.

        Args:
            scores: What the model gives after each draft; one row, the prompt's, at the start.
        """
        candidates = self._best_continuations(scores.logits_RV)
        open_ones = [each for each in candidates if each.draft.ended is None]
        num_beams = self._settings.num_beams
        self._finish([each for each in candidates[:num_beams] if each.draft.ended])
        self._running = open_ones[:num_beams]
        if self._running:
            self._can_improve = self._can_improve and self._may_improve()
        if not self._running or self._is_done():
            return Advance([], self._tell())
        rows = [(each.row, each.draft.token_ids[-1]) for each in self._running]
        return Advance(rows, [])

    def _best_continuations(self, logits_RV: Tensor) -> list[_Scored]:
        logs_RV = logits_RV.log_softmax(dim=-1)
        scores_RV = torch.stack([
            self._filters.apply(each.draft.all_ids, each.draft.allowed_only(logs_V)) + each.score
            for each, logs_V in zip(self._running, logs_RV, strict=True)
        ])
        num_candidates = min(self._num_candidates, int(scores_RV.isfinite().sum()))
        best = scores_RV.flatten().topk(num_candidates)
        continued: list[_Scored] = []
        for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            row, token = divmod(index, scores_RV.shape[1])
            draft = self._running[row].draft.copy()
            draft.add(token, float(logs_RV[row, token]))
            continued.append(_Scored(score, draft, row))
        return continued

    def _finish(self, ended: list[_Scored]) -> None:
        """Keep the best finished drafts, while that can still change."""
        is_full = len(self._finished) == self._settings.num_beams
        if not self._can_improve or (is_full and self._settings.early_stopping is True):
            return
        for score, draft, _ in ended:
            self._finished.append(_Scored(score / self._power(len(draft.token_ids)), draft))
        self._finished.sort(key=lambda each: -each.score)
        del self._finished[self._settings.num_beams :]

    def _power(self, length: int) -> float:
        return length**self._settings.length_penalty

    def _may_improve(self) -> bool:
        """Whether the best running draft may still beat the worst finished one."""
        settings = self._settings
        if len(self._finished) < settings.num_beams:
            return True
        best = self._running[0]
        length = len(best.draft.token_ids)
        if settings.early_stopping == "never" and settings.length_penalty > 0:
            length = settings.max_new_tokens
        return best.score / self._power(length) > self._finished[-1].score

    def _is_done(self) -> bool:
        is_full = len(self._finished) == self._settings.num_beams
        return not self._can_improve or (is_full and self._settings.early_stopping is True)

    def _tell(self) -> list:
        best = self._finished[: self._settings.num_return_sequences]
        return [
            draft.event(number, place)
            for number, (_, draft, _) in enumerate(best)
            for place in range(len(draft.token_ids))
        ]
