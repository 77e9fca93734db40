"""One answer while it is being written.

Shapes: V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from lushan.inference.grammar import GrammarState
from lushan.inference.scores import Scores
from lushan.inference.text_stream import TextStream

End = Literal["stop", "length", "stop_string"]
"""Why an answer ended: a stop token, `max_new_tokens`, or one of the stop strings."""


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One token of an answer, told as soon as it is certain."""

    prompt_index: int
    """Which prompt it answers."""
    answer_index: int
    """Which of the answers to that prompt."""
    token_id: int
    log_probability: float
    """Natural logarithm of the model's own probability, before penalty, temperature, filters and constraint."""
    text: str
    """The text that is certain with this token, and was not before; may be empty."""
    ended: End | None
    """Why this is the last token; None where it is not."""
    alternatives: "Alternatives" = ()
    """The most likely tokens at this place, as many as were asked for."""
    num_reused_tokens: int = 0
    """Tokens of the prompt that were known from earlier texts, and not read again."""


Alternatives = tuple[tuple[int, float], ...]
"""Tokens and the natural logarithm of their probability, the most likely first."""


class Advance(NamedTuple):
    """What a step of one request led to."""

    rows: list[tuple[int, int]]
    """What the model reads next: the row that each draft continues, and its new token. Empty at the end."""
    events: list[TokenEvent]
    finished: Sequence[int] = ()
    """Rows that hold a finished answer, all but its last token."""


class Search(Protocol):
    """A way of choosing tokens for one request."""

    def advance(self, scores: Scores) -> Advance:
        """Choose the next tokens; scores follow each of the rows that were asked for, at the start the prompt."""
        ...


@dataclass(frozen=True, slots=True)
class Ends:
    """What ends an answer, besides its stop strings."""

    stop_ids: frozenset[int]
    max_new_tokens: int


@dataclass(slots=True)
class Draft:
    """An answer so far."""

    prompt_index: int
    prompt_ids: tuple[int, ...]
    ends: Ends
    text: TextStream
    grammar: GrammarState | None = None
    token_ids: list[int] = field(default_factory=list[int])
    log_probabilities: list[float] = field(default_factory=list[float])
    pieces: list[str] = field(default_factory=list[str])
    ended: End | None = None
    num_alternatives: int = 0
    """How many of the most likely tokens are told at each place."""
    num_reused_tokens: int = 0
    """Tokens of the prompt that were known from earlier texts."""
    alternatives: list[Alternatives] = field(default_factory=list[Alternatives])

    @property
    def all_ids(self) -> list[int]:
        """Prompt and answer."""
        return [*self.prompt_ids, *self.token_ids]

    def copy(self) -> "Draft":
        """Give a second draft that goes its own way from here."""
        return Draft(
            self.prompt_index,
            self.prompt_ids,
            self.ends,
            self.text.copy(),
            self.grammar and self.grammar.copy(),
            list(self.token_ids),
            list(self.log_probabilities),
            list(self.pieces),
            self.ended,
            self.num_alternatives,
            self.num_reused_tokens,
            list(self.alternatives),
        )

    def allowed_only(self, scores_V: Tensor) -> Tensor:
        """Put the scores of tokens that the grammar forbids to -inf; (V,)."""
        if self.grammar is None:
            return scores_V
        allowed_V = self.grammar.allowed(len(scores_V)).to(scores_V.device)
        return scores_V.masked_fill(~allowed_V, -torch.inf)

    def add(self, token_id: int, log_probability: float, alternatives: Alternatives = ()) -> None:
        """Append a token, and see whether it ends the answer."""
        self.token_ids.append(token_id)
        self.log_probabilities.append(log_probability)
        self.alternatives.append(alternatives)
        is_stop = token_id in self.ends.stop_ids
        piece = "" if is_stop else self.text.push(token_id)
        if is_stop:
            self.ended = "stop"
        elif len(self.token_ids) == self.ends.max_new_tokens:
            self.ended = "length"
        if self.ended:
            piece += self.text.finish()
        elif self.grammar:
            self.grammar.push(token_id)
        if self.text.stopped:
            self.ended = "stop_string"
        self.pieces.append(piece)

    def event(self, answer_index: int, place: int = -1) -> TokenEvent:
        """Tell one token of this draft, the newest if nothing else is said."""
        is_last = place in (-1, len(self.token_ids) - 1)
        return TokenEvent(
            self.prompt_index,
            answer_index,
            self.token_ids[place],
            self.log_probabilities[place],
            self.pieces[place],
            self.ended if is_last else None,
            self.alternatives[place],
            self.num_reused_tokens,
        )
