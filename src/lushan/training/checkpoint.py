"""Checkpoints that survive `kill -9`: written beside, then renamed; the last one is always whole.

Tensors are safetensors, everything else is JSON. A checkpoint holds the masters and moments of what is trained, the
position in the data, from which follows what is drawn, and the best weights so far.
"""

import json
import math
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lushan.atomic import new_folder
from lushan.errors import RunError

LEAST_INTERVAL_SECONDS = 10.0
"""Time from one checkpoint to the next, at least."""
SPENT_FRACTION = 0.05
"""Checkpoints may cost at most this share of the training time."""
_USUAL_BYTES_PER_SECOND = 500e6
"""Of writing a checkpoint, until one was written."""


@dataclass(slots=True)
class Progress:
    """Where a run stands, besides its weights."""

    source: dict[str, int] = field(default_factory=dict[str, int])
    validation: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    """One entry per evaluation: epoch, step, score, loss."""
    best_step: int = -1
    num_stale: int = 0
    """Evaluations since the best one, those within the warm-up left out."""
    num_tokens: int = 0
    seconds: float = 0.0
    """Training time so far, without evaluations."""

    @property
    def best(self) -> dict[str, float]:
        """The evaluation of `best_step`; before there is one, one that is worse than any."""
        worst = {"score": -math.inf, "loss": math.inf}
        return next((each for each in self.validation if each["step"] == self.best_step), worst)


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, which is made when the first checkpoint is written."""
        self._folder = folder
        self._last_write_seconds = 0.0
        self._last_written_at = time.monotonic()

    def expect(self, num_bytes: int) -> None:
        """Say how large the first checkpoint will be, so that it comes when it costs little, too."""
        self._last_write_seconds = num_bytes / _USUAL_BYTES_PER_SECOND

    @property
    def is_due(self) -> bool:
        """Whether enough time has passed that writing another costs little."""
        waited = time.monotonic() - self._last_written_at
        return waited > max(LEAST_INTERVAL_SECONDS, self._last_write_seconds / SPENT_FRACTION)

    def save(self, step: int, tensors: dict[str, Tensor], progress: Progress) -> None:
        """Write a checkpoint, then remove the older ones.

        Raises:
            RunError: If it cannot be written; the older ones are still there then.
        """
        started = time.monotonic()
        state = {
            "source": progress.source,
            "validation": progress.validation,
            "best_step": progress.best_step,
            "num_stale": progress.num_stale,
            "num_tokens": progress.num_tokens,
            "seconds": progress.seconds,
        }
        self._write(f"step-{step:08d}", tensors, state)
        self._remove_all_but("step-", f"step-{step:08d}")
        self._remove_all_but("best-", f"best-{progress.best_step:08d}")
        self._last_write_seconds = time.monotonic() - started
        self._last_written_at = time.monotonic()

    def save_best(self, step: int, weights: dict[str, Tensor]) -> None:
        """Keep the best weights; the older best stays until a checkpoint that knows the new one is written."""
        self._write(f"best-{step:08d}", weights, {})

    def load_best(self, step: int) -> dict[str, Tensor]:
        """Read the best weights.

        Raises:
            RunError: If they cannot be read.
        """
        folder = self._folder / f"best-{step:08d}"
        try:
            return load_file(folder / "tensors.safetensors")
        except (OSError, SafetensorError) as error:
            raise RunError(_broken(folder, error)) from None

    def last_step(self) -> int:
        """Step of the newest whole checkpoint; 0 if there is none."""
        found = sorted(self._folder.glob("step-*[0-9]")) if self._folder.is_dir() else []
        return int(found[-1].name.removeprefix("step-")) if found else 0

    def load_last(self) -> tuple[dict[str, Tensor], Progress] | None:
        """Read the newest whole checkpoint; None if there is none.

        Raises:
            RunError: If the newest checkpoint cannot be read.
        """
        if not self.last_step():
            return None
        folder = self._folder / f"step-{self.last_step():08d}"
        try:
            tensors = load_file(folder / "tensors.safetensors")
            state: dict[str, Any] = json.loads((folder / "state.json").read_text("utf-8"))
        except (OSError, ValueError, SafetensorError) as error:
            raise RunError(_broken(folder, error)) from None
        tensors.pop("random/torch", None)  # of earlier versions
        return tensors, Progress(**state)

    def remove(self) -> None:
        """Remove all checkpoints: the run is complete."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, name: str, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        folder = self._folder / name
        for found in self._folder.glob(".*-*"):  # what a kill has left
            shutil.rmtree(found, ignore_errors=True)
        plain = {key: value.detach().contiguous().cpu() for key, value in tensors.items()}
        with new_folder(folder) as beside:
            try:
                save_file(plain, beside / "tensors.safetensors")
            except SafetensorError as error:  # a full disk is no OSError there
                raise RunError(
                    f"Checkpoint `{folder}` cannot be written: {error}. Make room, then go on with `--resume`: "
                    "the checkpoint before it is whole."
                ) from None
            (beside / "state.json").write_text(json.dumps(state), encoding="utf-8")

    def _remove_all_but(self, prefix: str, name: str) -> None:
        for found in self._folder.glob(f"{prefix}*"):
            if found.name != name:
                shutil.rmtree(found, ignore_errors=True)


def _broken(folder: Path, error: Exception) -> str:
    return (
        f"Checkpoint `{folder}` is broken: {error}. Remove it, or start again with `--overwrite`."
    )
