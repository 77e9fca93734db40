"""`steps.jsonl`: one line per optimizer step, kept whole over kills and resumes."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from lushan.atomic import naming_full_disk, write_parts
from lushan.training.loop import Evaluated, StepDone


class StepsFile:
    """A listener that appends every step."""

    def __init__(self, path: Path, *, first_step: int) -> None:
        """Drop the lines from `first_step` on: those steps are taken again."""
        self._path = path
        write_parts(path, _lines_before(first_step, path))
        self._stream = path.open("a", encoding="utf-8", buffering=1)

    def on_step(self, done: StepDone) -> None:
        """Append one line.

        Raises:
            FullDiskError: If there is no room.
        """
        line = {
            "step": done.step,
            "loss": done.loss,
            "learning_rate": done.learning_rate,
            "gradient_norm": done.gradient_norm,
            "tokens": done.tokens,
            "seconds": done.seconds,
        }
        with self._naming_full_disk():
            self._stream.write(json.dumps(line) + "\n")

    def on_evaluation(self, epoch: int, step: int, found: Evaluated) -> None:
        """Evaluations stand in `results.json`."""

    def close(self) -> None:
        """Finish the file.

        Raises:
            FullDiskError: If there is no room for what is still to be written.
        """
        with self._naming_full_disk():
            self._stream.close()

    def _naming_full_disk(self) -> AbstractContextManager[None]:
        remedy = "then go on with `--resume`"
        return naming_full_disk(self._path.parent, what=f"`{self._path.name}`", remedy=remedy)


def _lines_before(first_step: int, path: Path) -> Iterator[str]:
    """Give the lines of earlier steps, one by one: a long run has hundreds of thousands."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            if _number(line) < first_step:
                yield line.removesuffix("\n") + "\n"


def _number(line: str) -> float:
    """The step of a line; a line that a kill cut off counts as a step yet to come."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")
