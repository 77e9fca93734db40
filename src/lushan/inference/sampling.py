"""One token at a time: the most likely one, or one drawn after the filters of `transformers`.

Shapes: V vocabulary, R rows of one request, T tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lushan.inference.draft import Advance, Draft, TokenEvent
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.scores import Scores


class Filters:
    """What is done to scores before a token is chosen, in the order of `transformers`."""

    def __init__(self, settings: GenerationSettings) -> None:
        self._processors: list[LogitsProcessor] = []
        if settings.repetition_penalty != 1:
            self._processors.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
        if settings.temperature not in (0, 1):
            self._processors.append(TemperatureLogitsWarper(settings.temperature))
        if settings.top_k is not None:
            self._processors.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1:
            self._processors.append(TopPLogitsWarper(settings.top_p))
        if settings.min_p > 0:
            self._processors.append(MinPLogitsWarper(settings.min_p))

    @property
    def change_nothing(self) -> bool:
        """Whether scores stay as the model gives them."""
        return not self._processors

    def apply(self, token_ids: Sequence[int], scores_V: Tensor) -> Tensor:
        """Change the scores of what may follow `token_ids`, prompt and answer so far; (V,)."""
        if not self._processors:
            return scores_V
        scores_1V = scores_V[None]
        token_ids_1T = torch.tensor([list(token_ids)], device=scores_V.device)
        for process in self._processors:
            scores_1V = process(token_ids_1T, scores_1V)  # pyright: ignore[reportArgumentType]
        return scores_1V[0]


def draw(scores_V: Tensor, generator: torch.Generator) -> int:
    """Draw a token by its probability, with one number of the generator."""
    totals_V = scores_V.cpu().double().softmax(dim=-1).cumsum(dim=-1)
    place = torch.rand(1, generator=generator, dtype=torch.float64) * totals_V[-1]
    token = int(torch.searchsorted(totals_V, place, right=True))
    # Rounding may put the place at the very end, behind which there is nothing.
    return token if token < len(totals_V) else int(scores_V.isfinite().nonzero()[-1])


class Sampling:
    """Follow one draft for every answer that was asked for, each with its own draws."""

    def __init__(self, start: Draft, settings: GenerationSettings) -> None:
        self._settings = settings
        self._filters = Filters(settings)
        num_answers = settings.num_return_sequences
        self._drafts = {number: start.copy() for number in range(num_answers)}
        self._generators = [
            torch.Generator().manual_seed(settings.seed_of(number)) for number in range(num_answers)
        ]

    def advance(self, scores: Scores) -> Advance:
        """Choose the next token of every draft that has not ended.

        Args:
            scores: What the model gives after each; one row, the prompt's, at the start.
        """
        rows: list[tuple[int, int]] = []
        events: list[TokenEvent] = []
        finished: list[int] = []
        for place, (number, draft) in enumerate(list(self._drafts.items())):
            row = place if len(scores.likeliest) > 1 else 0
            token = self._choose(number, draft, scores, row)
            likeliest = scores.most_likely(row, draft.num_alternatives)
            draft.add(token, scores.log_probability(row, token), likeliest)
            events.append(draft.event(number))
            if draft.ended is None:
                rows.append((row, token))
            else:
                del self._drafts[number]
                finished.append(row)
        return Advance(rows, events, finished)

    def _choose(self, number: int, draft: Draft, scores: Scores, row: int) -> int:
        is_greedy = self._settings.temperature == 0
        if is_greedy and draft.grammar is None and self._filters.change_nothing:
            return scores.likeliest[row]
        allowed_V = draft.allowed_only(scores.logits_RV[row])
        scores_V = self._filters.apply(draft.all_ids, allowed_V)
        return int(scores_V.argmax()) if is_greedy else draw(scores_V, self._generators[number])
