"""Packed batches in a deterministic order that can be left and taken up again at any step."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lushan.data.feature_store import example_indices_of
from lushan.records import Batch, Features

MAX_BATCH_TOKENS = 4096
"""Tokens that run through the model at once; bounds memory, changes no result."""


def pack(
    features: Sequence[Features],
    *,
    first_position: int | Sequence[int] = 0,
    device: str | torch.device = "cpu",
) -> Batch:
    """Put documents on one token axis, sorted by what they continue and by length.

    Args:
        features: At least one document.
        first_position: Position of the first token of all documents, or of each (the length of what it continues).
        device: Where the tensors go.
    """
    firsts = [first_position] * len(features) if isinstance(first_position, int) else first_position
    pairs = zip(firsts, features, strict=True)
    placed = sorted(pairs, key=lambda pair: (pair[0], len(pair[1].token_ids)))
    ordered = [each for _, each in placed]
    firsts_N = torch.tensor([first for first, _ in placed])
    lengths_N = torch.tensor([len(each.token_ids) for each in ordered])
    ends_N = lengths_N.cumsum(0)
    starts_N = ends_N - lengths_N
    document_ids_T = torch.arange(len(ordered)).repeat_interleave(lengths_N)
    positions_T = torch.arange(int(ends_N[-1])) + (firsts_N - starts_N)[document_ids_T]
    for start, (first_place, each) in zip(starts_N.tolist(), placed, strict=True):
        for first in each.branch_starts:
            # Every branch goes on where the start of its document ends; the last one decides about what follows it.
            end = start + len(each.token_ids)
            place = first_place + each.branch_starts[0]
            positions_T[start + first : end] = torch.arange(place, place + end - start - first)
    token_ids_T = torch.tensor([token for each in ordered for token in each.token_ids])
    return Batch(
        token_ids_1T=token_ids_T[None].to(device),
        position_ids_1T=positions_T[None].to(device),
        document_ids_1T=document_ids_T[None].to(device),
        first_N=starts_N.to(device),
        last_N=(ends_N - 1).to(device),
        features=tuple(ordered),
    )


def split_by_tokens(features: Sequence[Features], max_tokens: int) -> list[list[Features]]:
    """Cut a list of documents into parts of at most `max_tokens`; a longer document stands alone."""
    bounds = split_lengths([len(each.token_ids) for each in features], max_tokens)
    return [list(features[start:end]) for start, end in bounds]


def split_lengths(lengths: Iterable[int], max_tokens: int) -> Iterator[tuple[int, int]]:
    """Cut documents of these lengths into parts of at most `max_tokens`; gives [start, end) of each part."""
    start, end, size = 0, 0, 0
    for length in lengths:
        if end > start and size + length > max_tokens:
            yield start, end
            start, size = end, 0
        end += 1
        size += length
    if end > start:
        yield start, end


class Step(NamedTuple):
    """What one optimizer step sees."""

    micro_batches: list[Batch]
    """This process's share, in parts that fit the memory."""
    num_supervised: float
    """What is supervised in the whole step, over all processes; the loss is divided by it once."""
    num_tokens: int
    """Tokens of the whole step, over all processes."""
    seed: int
    """Of what is drawn in it, such as dropout; another for every step and process."""


class PackedSource:
    """Steps of `rows_per_step` rows, shuffled anew in every epoch.

    The order depends on the seed and the epoch alone, so two numbers (`state_dict`) are enough to go on
    exactly where a killed run stopped.
    """

    def __init__(
        self,
        features: Sequence[Features],
        *,
        rows_per_step: int,
        seed: int,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        process: tuple[int, int] = (0, 1),
        device: str | torch.device = "cpu",
        even: bool = False,
    ) -> None:
        """Group documents by row.

        Args:
            features: All documents; those of one row (windows, candidates) stay together.
            rows_per_step: Rows per optimizer step, over all processes.
            seed: Seed of the order.
            max_batch_tokens: Tokens of a micro-batch.
            process: This process's number, and how many there are.
            device: Where the batches go.
            even: Whether all processes must compute equally often; a document without weight fills in.
        """
        self._features = features
        self._rows = _Rows(example_indices_of(features))
        self._rows_per_step = rows_per_step
        self._seed = seed
        self._max_batch_tokens = max_batch_tokens
        self._rank, self._num_processes = process
        self._device = device
        self._even = even
        self.epoch = 0
        self.step_in_epoch = 0

    @property
    def num_steps_per_epoch(self) -> int:
        """Optimizer steps in one pass; the last may be short."""
        return -(-len(self._rows) // self._rows_per_step)

    def state_dict(self) -> dict[str, int]:
        """Where the next step begins."""
        return {"epoch": self.epoch, "step_in_epoch": self.step_in_epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to where `state_dict` was taken."""
        self.epoch, self.step_in_epoch = state["epoch"], state["step_in_epoch"]

    def rest_of_epoch(self) -> Iterator[Step]:
        """Yield the steps that are left of this epoch, then move to the next."""
        # As `permutation` gives them, in half of its memory.
        order = np.arange(len(self._rows), dtype=np.uint32)
        np.random.default_rng([self._seed, self.epoch]).shuffle(order)
        while self.step_in_epoch < self.num_steps_per_epoch:
            start = self.step_in_epoch * self._rows_per_step
            self.step_in_epoch += 1
            rows = order[start : start + self._rows_per_step]
            documents = [
                [self._features[document] for document in self._rows.documents(row)] for row in rows
            ]
            place = [self._seed, self.epoch, self.step_in_epoch, self._rank]
            (seed,) = np.random.SeedSequence(place).generate_state(1, np.uint64).tolist()
            yield self._step(documents, seed=seed)
        self.epoch, self.step_in_epoch = self.epoch + 1, 0

    def _step(self, rows: list[list[Features]], *, seed: int) -> Step:
        everything = [each for row in rows for each in row]
        shares = [
            split_by_tokens(
                [each for row in rows[rank :: self._num_processes] for each in row],
                self._max_batch_tokens,
            )
            for rank in (range(self._num_processes) if self._even else [self._rank])
        ]
        own = shares[self._rank if self._even else 0]
        own += [[replace(everything[0], weight=0.0)]] * (max(map(len, shares)) - len(own))
        return Step(
            [pack(part, device=self._device) for part in own],
            num_supervised=sum(each.weight * each.num_supervised for each in everything),
            num_tokens=sum(len(each.token_ids) for each in everything),
            seed=seed,
        )


class _Rows:
    """Which documents belong to one row; rows stand in the order of their first documents."""

    def __init__(self, example_indices: NDArray[np.int64]) -> None:
        self._num_single = 0
        if len(example_indices) and bool((np.diff(example_indices) > 0).all()):
            # One document a row, in order, as most data are: nothing to keep for each.
            self._num_single = len(example_indices)
            return
        _, firsts, inverse, sizes = np.unique(
            example_indices, return_index=True, return_inverse=True, return_counts=True
        )
        order = np.argsort(firsts)
        number_of = np.empty_like(order)
        number_of[order] = np.arange(len(order))
        self._documents = np.argsort(number_of[inverse], kind="stable")
        self._ends = np.cumsum(sizes[order])

    def __len__(self) -> int:
        return self._num_single or len(self._ends)

    def documents(self, row: int) -> list[int]:
        """Give the documents of a row, in order."""
        if self._num_single:
            return [int(row)]
        start = self._ends[row - 1] if row else 0
        return self._documents[start : self._ends[row]].tolist()
