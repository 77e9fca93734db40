"""From a rendered text to token ids: the one way, for training, evaluation, prediction and HTTP.

What is supervised is found through character offsets of one joint tokenisation, never by searching
token ids: a prompt that ends in a space is not a token prefix of prompt + answer. A token across the
place where a model is asked is parted there, as it is asked with the tokens of what is before alone.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import Literal

from lushan.backbones.tokenizer import Encoded, Tokenizer
from lushan.errors import DataError, TooLongError
from lushan.records import Rendered

LengthPolicy = Literal["error", "truncate", "window"]
_CONTEXTS = ("\n", "a")
"""What is put before a text that goes on: tokenizers join the one with space at most, the other with letters."""


@dataclass(frozen=True, slots=True)
class LengthLimit:
    """How long a document may be, and what happens to a longer one."""

    max_tokens: int
    policy: LengthPolicy = "error"


@dataclass(frozen=True, slots=True)
class Window:
    """Token ids of one document, or of one part of a document that was too long."""

    token_ids: tuple[int, ...]
    targets_from: int
    """Index of the first supervised token; -1 where nothing in the text is supervised."""
    num_cut_tokens: int = 0
    offsets: tuple[tuple[int, int], ...] = ()
    """Characters [start, end) of the rendered text per token; (0, 0) for tokens that were put around it."""


Encodings = list[tuple[Rendered, list[Window]]]
_watched: ContextVar[Encodings | None] = ContextVar("_watched", default=None)


@contextmanager
def watch_encoding() -> Iterator[Encodings]:
    """Collect every text that is tokenised meanwhile, with its windows: what a task makes of them keeps no characters."""
    found: Encodings = []
    token = _watched.set(found)
    try:
        yield found
    finally:
        _watched.reset(token)


def encode_rendered(
    rendered: Sequence[Rendered],
    tokenizer: Tokenizer,
    *,
    limit: LengthLimit,
    places: Sequence[str],
    overlapping: bool = False,
) -> list[list[Window]]:
    """Tokenise rendered texts; several windows for a text that is too long under the `window` policy.

    Args:
        rendered: What to encode.
        tokenizer: The model's tokenizer.
        limit: Longest document, and the policy for longer ones.
        places: Where each text came from, for messages.
        overlapping: Whether a window begins in the middle of the one before, so that what is no longer than half a
            window is whole in one of them.

    Raises:
        TooLongError: If texts are too long under the `error` policy, or what may not be cut is too long by itself; says
            how many.
        DataError: If a text has no token at all.
    """
    encoded = tokenizer.encode([each.text for each in rendered])
    windows: list[list[Window]] = []
    refused: TooLongError | None = None
    for one, text, place in zip(encoded, rendered, places, strict=True):
        try:
            found = _windows(
                one, text, tokenizer, limit=limit, place=place, overlapping=overlapping
            )
        except TooLongError as error:
            refused = error.behind(refused)
        else:
            windows.append(found)
    if refused is not None:
        raise refused
    if (watched := _watched.get()) is not None:
        watched += zip(rendered, windows, strict=True)
    return windows


def characters_read(rendered: Rendered, window: Window) -> int:
    """Give how many characters of what may be cut, from its start on, a window holds of which the end was cut."""
    start, end = rendered.cuttable
    return max((last for _, last in window.offsets if start < last <= end), default=start) - start


def _windows(
    encoded: Encoded,
    rendered: Rendered,
    tokenizer: Tokenizer,
    *,
    limit: LengthLimit,
    place: str,
    overlapping: bool,
) -> list[Window]:
    encoded = _parted(encoded, rendered, tokenizer)
    ids = list(encoded.ids)
    supervised = _first_supervised(encoded, rendered)
    if rendered.ends_with_stop:
        if tokenizer.stop_id is None:
            raise DataError(
                "This model's tokenizer has no stop token, so it cannot learn to stop. Use `--answer head`, or another model."
            )
        ids.append(tokenizer.stop_id)
    offsets = (*encoded.offsets, *[(0, 0)] * (len(ids) - len(encoded.ids)))
    if not ids:
        raise DataError(f"{place}: the text has no token that this model knows. Take the row out.")
    excess = len(ids) - limit.max_tokens
    if excess <= 0:
        return [Window(tuple(ids), supervised, offsets=offsets)]
    first, last = _token_range(encoded, rendered)
    room = limit.max_tokens - (len(ids) - (last - first))
    if limit.policy == "error" or room < 1:
        what_to_do = (
            "Choose `--set data.over_length=truncate` or `window`, or raise `model.max_length`."
            if room >= 1
            else f"{rendered.uncut} is too long by itself: raise `model.max_length`."
        )
        message = f"{place}: {len(ids)} tokens, but at most {limit.max_tokens} fit. {what_to_do}"
        raise TooLongError(message, place, len(ids))
    kept_from = last - room if rendered.cuts_start else first
    starts = range(first, last, room) if limit.policy == "window" else [kept_from]
    if limit.policy == "window" and overlapping:
        step = max(1, room // 2)
        starts = range(first, last - room + step, step)
    whole = Window(tuple(ids), supervised, offsets=offsets)
    return [
        _cut(whole, keep=(start, min(start + room, last)), of=(first, last), policy=limit.policy)
        for start in starts
    ]


def _cut(
    whole: Window, *, keep: tuple[int, int], of: tuple[int, int], policy: LengthPolicy
) -> Window:
    kept = [*range(of[0]), *range(*keep), *range(of[1], len(whole.token_ids))]
    num_removed = len(whole.token_ids) - len(kept)
    return Window(
        tuple(whole.token_ids[index] for index in kept),
        whole.targets_from - num_removed if whole.targets_from >= 0 else -1,
        num_removed if policy == "truncate" else 0,
        offsets=tuple(whole.offsets[index] for index in kept),
    )


def _token_range(encoded: Encoded, rendered: Rendered) -> tuple[int, int]:
    """Tokens of the characters that may be cut; special tokens (empty offsets) never are."""
    from_character, to_character = rendered.cuttable
    # A first word takes the space before it into its token, which therefore starts too early; a token
    # that takes anything else with it must stay.
    inside = [
        index
        for index, (start, end) in enumerate(encoded.offsets)
        if end > start
        and from_character < end <= to_character
        and not rendered.text[start:from_character].strip()
    ]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)


def _parted(encoded: Encoded, rendered: Rendered, tokenizer: Tokenizer) -> Encoded:
    """Part every token across a place where the model is asked into the end of what is before and the start of what follows."""
    asked_at = sorted({*rendered.asked_at, *(start for start, _ in rendered.supervised)})
    starts = [start for start in asked_at if _is_inside_token(start, encoded)]
    return _parted_at(starts, rendered.text, tokenizer) if starts else encoded


def _parted_at(starts: Sequence[int], text: str, tokenizer: Tokenizer) -> Encoded:
    """Part the tokens of a text at these characters, but where this tokenizer joins what follows with everything."""
    (parted,) = tokenizer.encode([text[: starts[0]] if starts else text])
    for start, end in pairwise((*starts, len(text))):
        following = _continued(text[start:end], tokenizer)
        if following is None:
            others = [each for each in starts if each != start]
            return _parted_at(others, text, tokenizer)
        offsets = [(start + first, start + last) for first, last in following.offsets]
        parted = Encoded(parted.ids + following.ids, parted.offsets + offsets)
    return parted


def _is_inside_token(character: int, encoded: Encoded) -> bool:
    index = _first_behind(character, encoded)
    return index < len(encoded.ids) and encoded.offsets[index][0] < character


def _continued(text: str, tokenizer: Tokenizer) -> Encoded | None:
    """Give the tokens of a text that goes on, without the space that some tokenizers put before the first word of all.

    Returns:
        None where this tokenizer joins the text with whatever it is put behind.
    """
    for context in _CONTEXTS:
        (whole,) = tokenizer.encode([context + text])
        if not _is_inside_token(len(context), whole):
            first = _first_behind(len(context), whole)
            offsets = [(start - len(context), end - len(context)) for start, end in whole.offsets]
            return Encoded(whole.ids[first:], offsets[first:])
    return None


def _first_supervised(encoded: Encoded, rendered: Rendered) -> int:
    if not rendered.supervised:
        return -1
    return _first_behind(rendered.supervised[0][0], encoded)


def _first_behind(character: int, encoded: Encoded) -> int:
    """Give the first token that ends behind a character; the number of tokens where none does."""
    return bisect_right(encoded.offsets, character, key=itemgetter(1))
