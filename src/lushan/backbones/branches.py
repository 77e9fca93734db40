"""A question with its choices as one document: the question once, and behind it a branch for each choice.

Each choice is tokenised with the question before it, as it would be by itself; what all of these begin with is kept once.
"""

from collections.abc import Sequence
from typing import NamedTuple

from lushan.backbones.encoding import LengthLimit, Window, encode_rendered
from lushan.backbones.tokenizer import Tokenizer
from lushan.errors import DataError, TooLongError
from lushan.records import Rendered


class Branched(NamedTuple):
    """A question with its choices behind it."""

    token_ids: tuple[int, ...]
    positions: tuple[int, ...]
    """Tokens after which a scored one follows."""
    units: tuple[tuple[int, int], ...]
    """Of each position: the number of its choice, and the token that follows."""
    branches: tuple[tuple[int, int], ...]
    """First token and characters of each choice."""


def join_branches(paths: Sequence[Window], choices: Sequence[str], *, place: str) -> Branched:
    """Put what all paths start with once, and then the rest of each.

    Args:
        paths: The question with each of its choices, of which the choice alone is supervised.
        choices: Their texts, in the same order.
        place: Where the row stands, for messages.

    Raises:
        DataError: If no token parts the question from a choice.
    """
    first = paths[0].token_ids
    shared = min(each.targets_from for each in paths)
    while any(each.token_ids[:shared] != first[:shared] for each in paths):
        shared -= 1
    tokens = list(first[:shared])
    positions: list[int] = []
    units: list[tuple[int, int]] = []
    branches: list[tuple[int, int]] = []
    for number, (path, choice) in enumerate(zip(paths, choices, strict=True)):
        if shared < 1 or path.targets_from >= len(path.token_ids):
            raise DataError(
                f"{place}: this tokenizer joins the question and the choice {choice!r} to one token. "
                "Use another model."
            )
        start = len(tokens)
        branches.append((start, len(choice)))
        tokens += path.token_ids[shared:]
        for index in range(path.targets_from, len(path.token_ids)):
            positions.append(start + index - shared - 1 if index > shared else shared - 1)
            units.append((number, path.token_ids[index]))
    return Branched(tuple(tokens), tuple(positions), tuple(units), tuple(branches))


def cut_alike(
    paths: Sequence[Window],
    rendered: Sequence[Rendered],
    tokenizer: Tokenizer,
    *,
    excess: int,
    limit: LengthLimit,
    place: str,
) -> list[list[Window]]:
    """Shorten the question by the same tokens before every choice; gives the paths of each window.

    Args:
        paths: The question with each of its choices, whole.
        rendered: Their texts, in the same order.
        tokenizer: The model's.
        excess: By how many tokens the document of all is too long.
        limit: Its longest, and the policy.
        place: Where the row stands, for messages.

    Raises:
        TooLongError: If the policy is `error`, or a choice is too long by itself.
    """
    if limit.policy == "error":
        num_tokens = limit.max_tokens + excess
        raise TooLongError(
            f"{place}: the question and its choices have {num_tokens} tokens, but at most {limit.max_tokens} fit. Choose "
            "`--set data.over_length=truncate` or `window`, or raise `model.max_length`.",
            place,
            num_tokens,
        )
    cut = [
        encode_rendered(
            [one],
            tokenizer,
            limit=LengthLimit(len(path.token_ids) - excess, limit.policy),
            places=[place],
        )[0]
        for path, one in zip(paths, rendered, strict=True)
    ]
    return [list(each) for each in zip(*cut, strict=True)]
