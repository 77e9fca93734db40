"""Token ids to text while they come: whole characters only, and nothing that may be the start of a stop string."""

from collections.abc import Sequence
from copy import copy
from typing import Self

from lushan.backbones.tokenizer import Tokenizer

_CONTEXT_TOKENS = 16
_BROKEN = "\ufffd"


class TextStream:
    """The text of one answer, token by token."""

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stop_strings: Sequence[str] = ()
    ) -> None:
        """Begin behind a prompt, whose last tokens decide whether the answer begins with a space."""
        self._tokenizer = tokenizer
        self._stop_strings = tuple(stop_strings)
        self._ids = _context(tokenizer, prompt_ids)
        self._num_told = len(self._ids)
        self._told = tokenizer.decode(self._ids)
        self._held = ""
        self.stopped = False
        """Whether a stop string has come; nothing more is given then."""

    def copy(self) -> Self:
        """Give a second stream that goes its own way from here."""
        other = copy(self)
        other._ids = list(self._ids)
        return other

    @property
    def pending(self) -> str:
        """What no push has given yet, as far as it can be read: a part of a character reads as broken."""
        return self._held + self._tokenizer.decode(self._ids)[len(self._told) :]

    def push(self, token_id: int) -> str:
        """Add a token; gives the text that is now certain, which may be none."""
        self._ids.append(token_id)
        # A character may be spread over several tokens; until the last one it reads as broken.
        text = self._tokenizer.decode(self._ids)
        new = text[len(self._told) :]
        if not new or text.endswith(_BROKEN):
            return ""
        # What was just told is the next context: it begins with a whole character, and stays short.
        self._ids = self._ids[self._num_told :]
        self._num_told = len(self._ids)
        self._told = self._tokenizer.decode(self._ids)
        return self._release(new)

    def _release(self, new: str) -> str:
        self._held += new
        found = [place for stop in self._stop_strings if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            given, self._held = self._held[: min(found)], ""
            return given
        num_kept = self._longest_possible_start()
        given = self._held[: len(self._held) - num_kept]
        self._held = self._held[len(given) :]
        return given

    def _longest_possible_start(self) -> int:
        """Characters at the end of what is held that a stop string may begin with."""
        return max(
            (
                length
                for stop in self._stop_strings
                for length in range(1, min(len(stop), len(self._held) + 1))
                if self._held.endswith(stop[:length])
            ),
            default=0,
        )

    def finish(self) -> str:
        """Give what is still held: no more tokens come."""
        if self.stopped:
            return ""
        text = self._tokenizer.decode(self._ids)
        rest = text[len(self._told) :] if text.startswith(self._told) else _BROKEN
        given, self._held = self._release(rest) + self._held, ""
        return given


def _context(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> list[int]:
    """Find the shortest end of a prompt that is text of whole characters."""
    for length in range(1, min(len(prompt_ids), _CONTEXT_TOKENS) + 1):
        context = list(prompt_ids[-length:])
        text = tokenizer.decode(context)
        if text and _BROKEN not in text:
            return context
    return []
