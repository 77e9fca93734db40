"""Answers from a closed list: how likely the model is to write each, if it may write nothing else.

The candidates form a tree of tokens. At every fork the model's probabilities are shared out among the
branches that lead to a candidate, so tokens after the last fork cost nothing and a long label
is not punished for its length. The result is the distribution of constrained sampling, and sums to 1.

Shapes: N documents of a batch, F all documents, C candidates, T tokens, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from lushan.backbones.attention import Prefix
from lushan.backbones.heads import vocabulary_logits
from lushan.backbones.load import Backbone
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
    prefix = _shared_prefix(backbone, features)
    waiting: list[tuple[Fork, list[int]]] = [(tree, list(range(len(features))))]
    while waiting:
        fork, rows = waiting.pop()
        branch_logs_FB = _branch_logs(
            backbone,
            [features[row] for row in rows],
            fork,
            prefix=prefix,
            advance=advance if fork is tree else None,
        )
        for column, (token, members) in enumerate(fork.branches.items()):
            logs_FC[np.ix_(rows, members)] += branch_logs_FB[:, [column]]
            child = fork.children[token]
            if isinstance(child, int):
                continue
            reached = np.exp(logs_FC[np.ix_(rows, members[:1])][:, 0]) >= _NEGLIGIBLE
            skipped = [row for row, ok in zip(rows, reached, strict=True) if not ok]
            logs_FC[np.ix_(skipped, members)] -= np.log(len(members))
            if any(reached):
                waiting.append((child, [r for r, ok in zip(rows, reached, strict=True) if ok]))
    return logs_FC


def _branch_logs(
    backbone: Backbone,
    features: Sequence[Features],
    fork: Fork,
    *,
    prefix: Prefix | None,
    advance: Callable[[int], None] | None,
) -> np.ndarray:
    """Log-probability of each branch of a fork, for each prompt; (F, branches)."""
    num_prefix_tokens = prefix.num_tokens if prefix else 0
    documents = [
        Features(
            token_ids=(*each.token_ids[num_prefix_tokens:], *fork.path),
            place=each.place,
            example_index=index,
        )
        for index, each in enumerate(features)
    ]
    documents.sort(key=lambda each: len(each.token_ids))
    tokens_B = torch.tensor(list(fork.branches), device=backbone.device)
    logs_FB = np.empty((len(features), len(fork.branches)))
    for part in split_by_tokens(documents, MAX_BATCH_TOKENS):
        batch = pack(part, first_position=num_prefix_tokens, device=backbone.device)
        hidden_TD = backbone.hidden_states(batch, prefix=prefix)
        logits_NB = vocabulary_logits(backbone.plain_model, hidden_TD[batch.last_N], tokens_B)
        rows = [each.example_index for each in batch.features]
        logs_FB[rows] = logits_NB.double().log_softmax(dim=-1).cpu().numpy()
        if advance is not None:
            advance(len(part))
    return logs_FB


def _shared_prefix(backbone: Backbone, features: Sequence[Features]) -> Prefix | None:
    """Compute once what all prompts start with; None where that is not worth it."""
    num_tokens = num_shared_tokens([each.token_ids for each in features])
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
