"""Answers from a closed list: how likely the model is to write each, if it may write nothing else.

The candidates form a tree of tokens. At every fork the model's probabilities are shared out among the
branches that lead to a candidate, so tokens after the last fork cost nothing and a long label
is not punished for its length. The result is the distribution of constrained sampling, and sums to 1.

Shapes: F all documents, R those that reach a fork, B branches of a fork, C candidates, T tokens, D width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from lushan.backbones.heads import vocabulary_logits
from lushan.backbones.load import Backbone
from lushan.backbones.packing import Prefix
from lushan.backbones.tokenizer import Tokenizer
from lushan.data.batching import MAX_BATCH_TOKENS, pack, split_by_tokens
from lushan.errors import ModelError
from lushan.inference.prefix_store import SHORTEST_PREFIX_TOKENS, num_equal
from lushan.records import Features

_NEGLIGIBLE = 1e-2


@dataclass(slots=True)
class Fork:
    """A place where candidates part: the tokens that lead to it and what may follow."""

    path: tuple[int, ...]
    branches: dict[int, list[int]]
    """Next token to the candidates behind it."""
    children: dict[int, "Fork | int"] = field(default_factory=dict)
    """Next token to the next fork, or to the only candidate behind it."""


def candidate_tokens(candidates: Sequence[str], tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """Tokens of each candidate as it follows a prompt, with the stop token.

    Raises:
        ModelError: If two candidates have the same tokens, or the tokenizer joins prompt and answer.
    """
    if tokenizer.stop_id is None:
        raise ModelError("This model's tokenizer has no stop token, so it cannot end an answer.")
    prompt, *whole = tokenizer.encode([_PROMPT_END, *(_PROMPT_END + each for each in candidates)])
    num_prompt_tokens = len(prompt.ids)
    tokens = [(*each.ids[num_prompt_tokens:], tokenizer.stop_id) for each in whole]
    if any(list(each.ids[:num_prompt_tokens]) != list(prompt.ids) for each in whole):
        raise ModelError(
            "This tokenizer joins the prompt's end with the answer. Use `--answer head`."
        )
    if len(set(tokens)) < len(tokens):
        raise ModelError("Two labels have the same tokens in this model. Rename one of them.")
    return tokens


_PROMPT_END = "Text: a\nLabel:"


def build_tree(candidates: Sequence[tuple[int, ...]]) -> Fork:
    """Arrange candidates by their tokens; only places where they part are kept."""
    root = _node(candidates, list(range(len(candidates))), ())
    if isinstance(root, int):
        raise ModelError("One candidate answer leaves nothing to choose from.")
    return root


def _node(
    candidates: Sequence[tuple[int, ...]], members: list[int], path: tuple[int, ...]
) -> Fork | int:
    while len(members) > 1:
        branches: dict[int, list[int]] = {}
        for member in members:
            branches.setdefault(candidates[member][len(path)], []).append(member)
        if len(branches) > 1:
            fork = Fork(path, branches)
            for token, behind in branches.items():
                fork.children[token] = _node(candidates, behind, (*path, token))
            return fork
        path = (*path, next(iter(branches)))
    return members[0]


def score_candidates(
    backbone: Backbone,
    features: Sequence[Features],
    candidates: Sequence[str],
    *,
    advance: Callable[[int], None],
) -> np.ndarray:
    """Log-probability of each candidate after each prompt.

    Args:
        backbone: A causal language model.
        features: Prompts, each ending where the answer begins.
        candidates: At least two answers.
        advance: Called with the number of prompts that were answered since the last call.

    Returns:
        (F, C), float64; every row's exponentials sum to 1. What stands behind a branch of less than 0.01
        is shared out evenly there, without running the model.

    Raises:
        ModelError: If the tokenizer cannot tell the candidates apart.
    """
    tree = build_tree(candidate_tokens(candidates, backbone.tokenizer))
    logs_FC = np.zeros((len(features), len(candidates)))
    prefix = shared_prefix(backbone, features)
    level = [_Reached(tree, list(range(len(features))))]
    while level:
        told = advance if level[0].fork is tree else lambda _: None  # a prompt counts once
        reached = _branch_logs(backbone, features, level, prefix=prefix, advance=told)
        pairs = zip(level, reached, strict=True)
        level = [each for fork, logs in pairs for each in _shared_out(fork, logs, logs_FC)]
    return logs_FC


class _Reached(NamedTuple):
    """A fork, and the prompts after which it has to be asked about."""

    fork: Fork
    rows: list[int]


def _shared_out(
    reached: _Reached, branch_logs_RB: np.ndarray, logs_FC: np.ndarray
) -> Iterator[_Reached]:
    """Add a fork's branches to the candidates behind them; gives the forks that follow."""
    fork, rows = reached
    for column, (token, members) in enumerate(fork.branches.items()):
        logs_FC[np.ix_(rows, members)] += branch_logs_RB[:, [column]]
        child = fork.children[token]
        if isinstance(child, int):
            continue
        is_likely = np.exp(logs_FC[rows, members[0]]) >= _NEGLIGIBLE
        skipped, likely = (np.array(rows)[chosen].tolist() for chosen in (~is_likely, is_likely))
        logs_FC[np.ix_(skipped, members)] -= np.log(len(members))
        if likely:
            yield _Reached(child, likely)


class _Asked(NamedTuple):
    """Where a fork's path ends in a document."""

    number: int
    """Of the fork in its level."""
    row: int
    """Number of the prompt among those of the fork."""
    last: int
    """Token of the document."""


def _branch_logs(
    backbone: Backbone,
    features: Sequence[Features],
    level: Sequence[_Reached],
    *,
    prefix: Prefix | None,
    advance: Callable[[int], None],
) -> list[np.ndarray]:
    """Log-probability of each branch of each fork, for each of its prompts; (R, branches) each.

    The paths to all forks of a level are branches of one document, so that a prompt is read once for a level.
    """
    num_prefix_tokens = prefix.num_tokens if prefix else 0
    documents: list[Features] = []
    asked: list[list[_Asked]] = []
    for prompt, forks in _forks_of_prompts(level, together=backbone.packing_mode == "packed"):
        tokens = list(features[prompt].token_ids[num_prefix_tokens:])
        starts: list[tuple[int, int]] = []
        ends: list[_Asked] = []
        for number, row in forks:
            path = level[number].fork.path
            starts.append((len(tokens), 0))
            tokens += path
            ends.append(_Asked(number, row, len(tokens) - 1))
        place = features[prompt].place
        branches = tuple(starts) if len(forks) > 1 else ()
        documents.append(Features(tuple(tokens), place, len(asked), branches=branches))
        asked.append(ends)
    documents.sort(key=lambda each: len(each.token_ids))
    logs = [np.empty((len(rows), len(fork.branches))) for fork, rows in level]
    for part in split_by_tokens(documents, MAX_BATCH_TOKENS):
        batch = pack(part, first_position=num_prefix_tokens, device=backbone.device)
        hidden_TD = backbone.hidden_states(batch, prefix=prefix)
        found: dict[int, list[tuple[int, int]]] = {}
        for first, each in zip(batch.first_N.tolist(), batch.features, strict=True):
            for number, row, last in asked[each.example_index]:
                found.setdefault(number, []).append((row, first + last))
        for number, places in found.items():
            rows, lasts = (list(each) for each in zip(*places, strict=True))
            tokens_B = torch.tensor(list(level[number].fork.branches), device=backbone.device)
            logits_RB = vocabulary_logits(backbone.plain_model, hidden_TD[lasts], tokens_B)
            logs[number][rows] = logits_RB.cpu().double().log_softmax(dim=-1).numpy()
        advance(len(part))
    return logs


def _forks_of_prompts(
    level: Sequence[_Reached], *, together: bool
) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Give each prompt with the forks asked about after it, by number and row; one at a time if not `together`."""
    forks: dict[int, list[tuple[int, int]]] = {}
    for number, (_, rows) in enumerate(level):
        for row, prompt in enumerate(rows):
            forks.setdefault(prompt, []).append((number, row))
    for prompt, each in forks.items():
        yield from [(prompt, each)] if together else ((prompt, [one]) for one in each)


def shared_prefix(
    backbone: Backbone, features: Sequence[Features], *, most_tokens: int | None = None
) -> Prefix | None:
    """Compute once what all documents start with, `most_tokens` of it; None where that is not worth it."""
    num_tokens = num_shared_tokens([each.token_ids for each in features])
    if most_tokens is not None:
        num_tokens = min(num_tokens, most_tokens)
    if (
        backbone.packing_mode != "packed"
        or len(features) < 2
        or num_tokens < SHORTEST_PREFIX_TOKENS
    ):
        return None
    prefix = Prefix(num_tokens)
    document = Features(features[0].token_ids[:num_tokens], place="", example_index=0)
    backbone.hidden_states(pack([document], device=backbone.device), record=prefix)
    return prefix


def num_shared_tokens(documents: Sequence[tuple[int, ...]]) -> int:
    """Tokens that all documents start with; at least one token is left to each."""
    # What the first and the last in order share, all those between them do.
    return min(num_equal(min(documents), max(documents)), min(map(len, documents)) - 1)
