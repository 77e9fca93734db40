"""Run known documents through the frozen layers once, and keep what comes out on disk, memory-mapped.

An entry is made for one list of documents, so that equal runs read equal bits, whatever other runs left behind.

Shapes: T tokens, D width, R kept rows.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor

from lushan.backbones.frozen import FrozenStates, Position
from lushan.backbones.load import Backbone
from lushan.data.batching import MAX_BATCH_TOKENS, pack, split_by_tokens
from lushan.records import Features

Tell = Callable[[str], None]

_LAYOUT = 1
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
    """What decides the states beside that: the digest of the weights, the fingerprint of the tokenizer."""


@dataclass(frozen=True, slots=True)
class FrozenCache:
    """A folder of hidden states, and how large it may grow."""

    folder: Path
    limit_bytes: float

    def states(
        self, backbone: Backbone, part: FrozenPart, features: Sequence[Features], *, tell: Tell
    ) -> FrozenStates | None:
        """Give the states of documents, computing them if they are not there; None if they have no room.

        Args:
            backbone: A model whose first layers are frozen.
            part: Which.
            features: Documents that will be asked for many times; equal ones are kept once.
            tell: Takes one line for a person.
        """
        documents = {each.token_ids: each for each in sorted(features, key=_length)}
        kept_tokens = [len(each) if part.position == "all" else 1 for each in documents]
        ends = torch.tensor(kept_tokens).cumsum(0).tolist()
        first_rows = dict(zip(documents, [0, *ends[:-1]], strict=True))
        width, dtype = backbone.facts.width, backbone.core.dtype
        num_bytes = ends[-1] * width * dtype.itemsize
        path = self.folder / f"{_name(backbone, part, list(documents))}.bin"
        what = f"{len(documents):,} documents behind {part.depth} frozen layers"
        if path.is_file() and path.stat().st_size == num_bytes:
            os.utime(path)
            tell(f"Reading {what} from `{path}`.")
        else:
            why = self._lack_of_room(num_bytes, path)
            if why is None:
                tell(f"Computing {what} once: {num_bytes / 1e6:,.1f} MB in `{path}`.")
                why = _write(path, backbone, part, list(documents.values()))
            if why is not None:
                tell(f"Computing the {part.depth} frozen layers anew in every pass: {why}.")
                return None
        states_R = torch.from_file(str(path), size=ends[-1] * width, dtype=dtype)
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
        entries = sorted(self.folder.glob("*.bin"), key=lambda each: each.stat().st_mtime)
        taken = sum(each.stat().st_size for each in entries)
        while entries and taken + num_bytes > self.limit_bytes:
            taken -= entries[0].stat().st_size
            entries.pop(0).unlink()
        free_bytes = shutil.disk_usage(self.folder).free - _SPARE_BYTES
        if num_bytes > free_bytes:
            return (
                f"their states would take {num_bytes / 1e9:,.2f} GB, and `{self.folder}` has "
                f"{max(free_bytes, 0) / 1e9:,.2f} GB to spare"
            )
        return None


def _length(features: Features) -> int:
    return len(features.token_ids)


def _name(backbone: Backbone, part: FrozenPart, documents: Sequence[tuple[int, ...]]) -> str:
    """Name an entry after everything that decides a bit of it."""
    about = (
        *(_LAYOUT, part.depth, part.position, *part.identity),
        *(str(backbone.core.dtype), backbone.packing_mode, str(backbone.device)),
        *(torch.get_num_threads(), torch.__version__, transformers.__version__),
    )
    digest = hashlib.sha256(json.dumps(about).encode())
    for each in documents:
        digest.update(array("q", (len(each), *each)).tobytes())
    return digest.hexdigest()[:32]


def _write(
    path: Path, backbone: Backbone, part: FrozenPart, documents: Sequence[Features]
) -> str | None:
    """Compute and write an entry, beside and then renamed; says why if the disk refused it."""
    beside = path.with_name(f"{uuid.uuid4().hex}.unfinished")
    try:
        with beside.open("wb") as file, torch.inference_mode():
            for each in split_by_tokens(documents, MAX_BATCH_TOKENS):
                states_RD = _kept_states(backbone, part, each)
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


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed runs left unfinished."""
    for each in folder.glob("*.unfinished"):
        if time.time() - each.stat().st_mtime > _ABANDONED_SECONDS:
            each.unlink(missing_ok=True)
