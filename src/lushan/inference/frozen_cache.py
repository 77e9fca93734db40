"""Run known documents through the frozen layers once, and keep what comes out on disk, memory-mapped.

An entry is made for one list of documents, so that equal runs read equal bits, whatever other runs left behind.

Shapes: T tokens, D width, R kept rows.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

import lushan
from lushan.backbones import native
from lushan.backbones.frozen import FrozenStates, Position
from lushan.backbones.load import Backbone, is_causal
from lushan.data.batching import MAX_BATCH_TOKENS, pack, split_lengths
from lushan.errors import RunError
from lushan.records import Features

Tell = Callable[[str], None]

_DIGEST = np.dtype("S16")
_LAYOUT = 2
"""Changes whenever files of before must not be read any more."""
_ABANDONED_SECONDS = 86_400.0
_SPARE_BYTES = 1 << 30
"""Room on the disk that is left to others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenPart:
    """What is kept of a model's pass."""

    depth: int
    """How many layers are frozen."""
    position: Position
    """Which tokens of a document are read later."""
    identity: tuple[str, ...]
    """What decides the states beside that: the digests of weights and configuration, the fingerprint of the tokenizer."""


@dataclass(frozen=True, slots=True)
class FrozenCache:
    """A folder of hidden states, and how large it may grow."""

    folder: Path
    limit_bytes: float

    def states(
        self,
        backbone: Backbone,
        part: FrozenPart,
        features: Sequence[Features],
        *,
        is_needed: bool = False,
        tell: Tell,
    ) -> FrozenStates | None:
        """Give the states of documents, computing them if they are not there; None if they have no room.

        Args:
            backbone: A model whose first layers are frozen.
            part: Which.
            features: Documents that will be asked for many times; equal ones are kept once.
            is_needed: Whether nothing else will do.
            tell: Takes one line for a person.

        Raises:
            RunError: If they are needed and have no room; says what is in the way.
        """
        documents = _Documents(features)
        kept_tokens = (
            documents.lengths if part.position == "all" else np.ones_like(documents.lengths)
        )
        ends = np.cumsum(kept_tokens)
        num_rows = int(ends[-1])
        width, dtype = backbone.facts.width, backbone.core.dtype
        num_bytes = num_rows * width * dtype.itemsize
        path = self.folder / f"{_name(backbone, part, documents)}.bin"
        what = f"{len(documents):,} documents behind {part.depth} frozen layers"
        if path.is_file() and path.stat().st_size == num_bytes:
            with contextlib.suppress(OSError):  # of somebody else, who lets it be read
                os.utime(path)
            tell(f"Reading {what} from `{path}`.")
        else:
            try:
                why = self._lack_of_room(num_bytes, path)
            except OSError as error:
                why = f"`{self.folder}` cannot be written: {error.strerror}"
            if why is None:
                tell(f"Computing {what} once: {num_bytes / 1e6:,.1f} MB in `{path}`.")
                why = _write(path, backbone, part, documents)
            if why is not None and is_needed:
                raise RunError(
                    f"This run reads what its {part.depth} frozen layers make of its rows, and that cannot be kept now: "
                    f"{why}. Computed anew it would round otherwise. Make room, then go on with `--resume`, or start "
                    "again with `--overwrite`."
                )
            if why is not None:
                tell(f"Computing the {part.depth} frozen layers anew in every pass: {why}.")
                return None
        states_R = torch.from_file(str(path), size=num_rows * width, dtype=dtype)
        first_rows = _FirstRows(documents, ends - kept_tokens)
        return FrozenStates(part.depth, part.position, first_rows, states_R.view(-1, width))

    def _lack_of_room(self, num_bytes: int, path: Path) -> str | None:
        """Make room by removing what was not used for longest; says why if that is not enough."""
        if num_bytes > self.limit_bytes:
            return (
                f"their states would take {num_bytes / 1e9:,.2f} GB, more than `adapter.cache_gigabytes` = "
                f"{self.limit_bytes / 1e9:g}"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        _remove_abandoned(self.folder)
        entries = sorted(_entries(self.folder, "*.bin"))
        taken = sum(size for _, size, _ in entries)
        while entries and taken + num_bytes > self.limit_bytes:
            _, size, oldest = entries.pop(0)
            oldest.unlink(missing_ok=True)
            taken -= size
        free_bytes = shutil.disk_usage(self.folder).free - _SPARE_BYTES
        if num_bytes > free_bytes:
            return (
                f"their states would take {num_bytes / 1e9:,.2f} GB, and `{self.folder}` has "
                f"{max(free_bytes, 0) / 1e9:,.2f} GB to spare"
            )
        return None


class _Documents(Sequence[Features]):
    """The different ones among many documents, shortest first; takes some 40 bytes for each."""

    def __init__(self, features: Sequence[Features]) -> None:
        self._features = features
        digests, lengths = bytearray(), array("q")
        for each in features:
            digests += _digest(each.content)
            lengths.append(len(each.token_ids))
        all_lengths = np.array(lengths, dtype=np.int64)
        order = np.argsort(all_lengths, kind="stable")
        in_order = np.frombuffer(bytes(digests), dtype=_DIGEST)[order]
        _, firsts = np.unique(in_order, return_index=True)
        firsts.sort()
        self._places = order[firsts]
        self.digests = in_order[firsts]
        self.lengths = all_lengths[self._places]

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Features: ...
    @overload
    def __getitem__(self, index: slice) -> list[Features]: ...
    def __getitem__(self, index: int | slice) -> Features | list[Features]:
        if isinstance(index, slice):
            return [self._features[place] for place in self._places[index].tolist()]
        return self._features[int(self._places[index])]


class _FirstRows(Mapping[tuple[int, ...], int]):
    """Row of the first kept token of each document, by its content."""

    def __init__(self, documents: _Documents, rows: NDArray[np.int64]) -> None:
        order = np.argsort(documents.digests)
        self._documents = documents
        self._digests, self._rows = documents.digests[order], rows[order]

    def __len__(self) -> int:
        return len(self._documents)

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return (each.content for each in self._documents)

    def __getitem__(self, content: tuple[int, ...]) -> int:
        digest = np.frombuffer(_digest(content), dtype=_DIGEST)
        place = int(np.searchsorted(self._digests, digest)[0])
        if place == len(self) or self._digests[place] != digest[0]:
            raise KeyError(content)
        return int(self._rows[place])


def _digest(content: tuple[int, ...]) -> bytes:
    return hashlib.blake2b(array("q", content).tobytes(), digest_size=16).digest()


def _name(backbone: Backbone, part: FrozenPart, documents: _Documents) -> str:
    """Name an entry after everything that decides a bit of it."""
    about = (
        *(_LAYOUT, part.depth, part.position, *part.identity),
        *(str(backbone.core.dtype), backbone.packing_mode, str(backbone.device)),
        *(is_causal(backbone), native.identity(), lushan.__version__),
        *(torch.get_num_threads(), torch.__version__, transformers.__version__),
    )
    digest = hashlib.sha256(json.dumps(about).encode())
    digest.update(documents.digests.tobytes())
    return digest.hexdigest()[:32]


def _write(path: Path, backbone: Backbone, part: FrozenPart, documents: _Documents) -> str | None:
    """Compute and write an entry, beside and then renamed; says why if the disk refused it."""
    beside = path.with_name(f"{uuid.uuid4().hex}.unfinished")
    try:
        with beside.open("wb") as file, torch.inference_mode():
            for start, end in split_lengths(documents.lengths.tolist(), MAX_BATCH_TOKENS):
                states_RD = _kept_states(backbone, part, documents[start:end])
                file.write(states_RD.contiguous().view(torch.uint8).numpy().data)
        beside.replace(path)
    except OSError as error:
        return f"`{path}` cannot be written: {error.strerror}"
    finally:
        beside.unlink(missing_ok=True)
    return None


def _kept_states(backbone: Backbone, part: FrozenPart, documents: Sequence[Features]) -> Tensor:
    batch = pack(documents, device=backbone.device)
    states_TD = backbone.states_at(part.depth, batch)
    if part.position == "all":
        return states_TD.cpu()
    return states_TD[batch.last_N if part.position == "last" else batch.first_N].cpu()


def _entries(folder: Path, pattern: str) -> Iterator[tuple[float, int, Path]]:
    """Tell when each was used last, its bytes and its place; another process may remove some meanwhile."""
    for each in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            found = each.stat()
            yield found.st_mtime, found.st_size, each


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed runs left unfinished."""
    for used, _, each in _entries(folder, "*.unfinished"):
        if time.time() - used > _ABANDONED_SECONDS:
            each.unlink(missing_ok=True)
