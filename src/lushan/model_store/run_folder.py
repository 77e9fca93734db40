"""The folder of one run: what is written when, how it is found again, and who may write.

`recipe.yaml`, `run.json` (where the run stands), `ledger.json`, `steps.jsonl`, `predictions/` (one file per
system, written when it has answered), `checkpoints/`, `model/`, `certificate.json`, `results.json`, `report.html`,
`README.md`.
"""

import fcntl
import json
import os
import shutil
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from lushan.atomic import write_json, write_parts, write_text
from lushan.errors import RunError
from lushan.records import Call, Prediction, answer_from_plain, plain_answer
from lushan.settings import read_yaml

_RECIPE = "recipe.yaml"
_MOST_PROBABILITIES = 5


class RunFolder:
    """One run on disk. Make it with `create` or `open`."""

    def __init__(self, path: Path, status: dict[str, Any], lock: int) -> None:
        self.path = path
        self._status = status
        self._unlock = weakref.finalize(self, os.close, lock)

    def close(self) -> None:
        """Let others write to this run; happens by itself when nobody holds this object any more."""
        self._unlock()

    @classmethod
    def create(
        cls, path: Path, *, recipe: Mapping[str, Any], status: Mapping[str, Any], overwrite: bool
    ) -> "RunFolder":
        """Begin a run. An older run there is removed first if `overwrite`.

        Raises:
            RunError: If the folder cannot be used.
        """
        check_is_free(path, overwrite=overwrite)
        path = path.resolve() if path.is_symlink() else path
        if overwrite and (path / _RECIPE).is_file():
            os.close(_lock(path))  # refuses while the older run is still going
            shutil.rmtree(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:  # a system's own folder, such as /proc
            raise RunError(
                f"`{path}` cannot be made: `{path.parent}` takes no folders. Choose another place."
            ) from None
        run = cls(path, dict(status), _lock(path))
        run._save_status()
        # The recipe comes last: a folder with a recipe is a run that can be resumed.
        text = yaml.safe_dump(dict(recipe), allow_unicode=True, sort_keys=False)
        write_text(path / _RECIPE, text)
        return run

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Take up a run that was begun.

        Raises:
            RunError: If there is none, it is broken, or another process writes to it.
        """
        if not (path / _RECIPE).is_file():
            raise RunError(f"`{path}` holds no run to resume: `{_RECIPE}` is missing.")
        try:
            status = json.loads((path / "run.json").read_text(encoding="utf-8"))
            if not isinstance(status, dict):
                raise ValueError(f"it holds a {type(status).__name__}, not an object")
        except (OSError, ValueError) as error:
            raise RunError(
                f"`{path / 'run.json'}` is broken: {error}. Start again with `--overwrite`."
            ) from None
        return cls(path, status, _lock(path))

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go; removed when the model is saved."""
        return self.path / "checkpoints"

    def recipe(self) -> dict[str, Any]:
        """Give the resolved recipe as plain values.

        Raises:
            SettingError: If the file is broken.
        """
        return read_yaml(self.path / _RECIPE)

    def get(self, name: str) -> Any:  # noqa: ANN401 - any JSON value
        """Give a value of `run.json`; None where it is not known yet."""
        return self._status.get(name)

    def note(self, **values: Any) -> None:  # noqa: ANN401 - any JSON values
        """Put values into `run.json`."""
        self._status |= values
        self._save_status()

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """Add the seconds of the block to a phase; over all times that the run was resumed."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add_seconds(phase, time.perf_counter() - started)

    def add_seconds(self, phase: str, seconds: float) -> None:
        """Add seconds to a phase."""
        all_seconds = dict(self._status.get("seconds", {}))
        all_seconds[phase] = all_seconds.get(phase, 0.0) + seconds
        self.note(seconds=all_seconds)

    def save_predictions(
        self, system: str, predictions: Sequence[Prediction], *, correct: Sequence[float] = ()
    ) -> None:
        """Keep what a system answered on the test rows, and once that is known what of it was right, or how good."""
        file = _predictions_file(self.path, system)
        file.parent.mkdir(exist_ok=True)
        told = [{"correct": is_right} for is_right in correct] or [{}] * len(predictions)
        lines = ({**_plain(each), **more} for each, more in zip(predictions, told, strict=True))
        write_parts(file, (f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))

    def predictions(self, system: str) -> list[Prediction] | None:
        """Give what a system answered; None if it has not yet."""
        file = _predictions_file(self.path, system)
        if not file.is_file():
            return None
        return [_prediction(values) for values in _read_lines(file)]

    def _save_status(self) -> None:
        write_json(self.path / "run.json", self._status)


def read_correct(run: Path) -> dict[str, float]:
    """Tell of every test row of a finished run whether the tuned model was right, or how good, by the row's id.

    Raises:
        RunError: If there is no run, it is not finished, or its answers are missing or broken.
    """
    if not run.is_dir():
        raise RunError(f"`{run}` does not exist. Name a folder that `lushan tune --out` wrote.")
    if not (run / "results.json").is_file():
        raise RunError(
            f"`{run}` holds no finished run: `results.json` is missing. Finish it with "
            "`lushan tune ... --resume`, or name rows to ask: `--data DATA`."
        )
    file = _predictions_file(run, "after")
    try:
        return {line["id"]: line["correct"] for line in _read_lines(file)}
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"`{file}` is missing or broken: {error}. Restore it, or name rows to ask: `--data DATA`."
        ) from None


def _predictions_file(run: Path, system: str) -> Path:
    return run / "predictions" / f"{system}.jsonl"


def _read_lines(file: Path) -> list[dict[str, Any]]:
    # Not splitlines(): a label may hold one of the other characters that end a line.
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def check_is_free(path: Path, *, overwrite: bool) -> None:
    """Refuse a folder that a new run may not use; changes nothing.

    Raises:
        RunError: If it holds a run and `overwrite` is not set, or holds something else.
    """
    check_can_be_folder(path, out=path)
    if not path.is_dir() or all(_is_of_beginning(each) for each in path.iterdir()):
        return
    if not (path / _RECIPE).is_file():
        raise RunError(
            f"`--out {path}` holds files that are no run. Name an empty or a new folder."
        )
    if not overwrite:
        raise RunError(
            f"`--out {path}` holds a run already. Use `--resume` to go on with it, `--overwrite` to replace "
            "it, or another folder."
        )


def check_can_be_folder(folder: Path, *, out: Path) -> None:
    """Refuse a folder that cannot be made, because it or one above it is a file.

    Raises:
        RunError: If so; names `out`, which needs the folder, and the file.
    """
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise RunError(f"`--out {out}`: `{place}` is a file. Name a folder.")


def check_keeps(path: Path, *, needed: Sequence[Path]) -> None:
    """Refuse to replace a folder with something in it that the new run reads.

    Raises:
        RunError: If one of `needed` is the folder or lies in it.
    """
    for each in needed:
        if path.resolve() in (each.resolve(), *each.resolve().parents):
            raise RunError(
                f"`--out {path} --overwrite` would delete `{each}`, which the new run needs. Name another folder."
            )


def _is_of_beginning(file: Path) -> bool:
    """Whether a run leaves this file when it is killed before its recipe is written."""
    return file.name in (".lock", "run.json") or file.suffix == ".part"


def _lock(path: Path) -> int:
    """Let one process write at a time; the system frees the lock when the process ends, however it ends."""
    descriptor = os.open(path / ".lock", os.O_WRONLY | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RunError(
            f"Another process is writing to `{path}`. Wait for it, or stop it."
        ) from None
    return descriptor


def is_being_written(path: Path) -> bool:
    """Whether a process is writing to a run right now."""
    lock = path / ".lock"
    if not lock.is_file():
        return False
    with lock.open("rb") as stream:
        try:
            # Shared: two that look at once do not take each other for a writer.
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _plain(prediction: Prediction) -> dict[str, Any]:
    likely = sorted(prediction.probabilities.items(), key=lambda each: -each[1])
    return {
        "id": prediction.id,
        "answer": plain_answer(prediction.answer),
        "probabilities": dict(likely[:_MOST_PROBABILITIES]),
        "log_likelihood": prediction.log_likelihood,
        "model_version": prediction.model_version,
        "log_likelihoods": dict(prediction.log_likelihoods),
        "truth_log_likelihood": prediction.truth_log_likelihood,
        "num_truth_tokens": prediction.num_truth_tokens,
        "samples": list(prediction.samples),
        "no_answer_probability": prediction.no_answer_probability,
        "tool_calls": [asdict(each) for each in prediction.tool_calls],
    }


def _prediction(values: dict[str, Any]) -> Prediction:
    values["answer"] = answer_from_plain(values["answer"])
    values["samples"] = tuple(values.get("samples", ()))
    values["tool_calls"] = tuple(Call(**each) for each in values.get("tool_calls", ()))
    values.pop("correct", None)
    return Prediction(**values)
