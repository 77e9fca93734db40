"""The folder of one run: what is written when, how it is found again, and who may write.

`recipe.yaml`, `run.json` (where the run stands), `ledger.json`, `steps.jsonl`, `predictions/` (one file per
system, written when it has answered), `checkpoints/`, `model/`, `certificate.json`, `results.json`, `report.html`,
`README.md`.
"""

import hashlib
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

from lushan.atomic import is_locked, lock_file, write_json, write_parts, write_text
from lushan.errors import RunError
from lushan.records import Call, Prediction, answer_from_plain, plain_answer
from lushan.settings import load_yaml, read_yaml, written_yaml

_RECIPE = "recipe.yaml"
_STATUS = "run.json"
_LOCK = ".lock"
_DIGEST = "recipe_digest"
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
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:  # a system's own folder, such as /proc
            raise RunError(
                f"`{path}` cannot be made: `{path.parent}` takes no folders. Choose another place."
            ) from None
        text = written_yaml(recipe)
        status = {**status, _DIGEST: _digest(load_yaml(text))}
        run = cls(path, status, _lock(path))  # refuses while an older run is still going
        try:
            check_is_free(path, overwrite=overwrite)
            if _is_run(path):
                _remove_run(path)
            run._save_status()
            # The recipe comes last: a folder with a recipe is a run that can be resumed.
            write_text(path / _RECIPE, text)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Take up a run that was begun.

        Raises:
            RunError: If there is none, it is broken, its recipe was changed, or another process writes to it.
            SettingError: If its recipe is no YAML.
        """
        for name in (_RECIPE, _STATUS):
            if not (path / name).is_file():
                raise RunError(f"`{path}` holds no run to resume: `{name}` is missing.")
        try:
            status = json.loads((path / _STATUS).read_text(encoding="utf-8"))
            if not isinstance(status, dict):
                raise ValueError(f"it holds a {type(status).__name__}, not an object")
        except (OSError, ValueError) as error:
            raise RunError(
                f"`{path / _STATUS}` is broken: {error}. Start again with `--overwrite`."
            ) from None
        # Runs of earlier versions do not know what their recipe was.
        if status.get(_DIGEST) not in (None, _digest(read_yaml(path / _RECIPE))):
            raise RunError(
                f"`{path / _RECIPE}` is not the recipe that the run began with: it was changed. Restore it, or start "
                "again with `--overwrite`."
            )
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
        write_json(self.path / _STATUS, self._status)


def _is_run(path: Path) -> bool:
    """Whether a folder holds a run; a recipe alone may be one that somebody wrote."""
    return (path / _RECIPE).is_file() and (path / _STATUS).is_file()


def _remove_run(path: Path) -> None:
    """Remove a run but its status and its lock, the recipe last: what a killed process leaves can be replaced."""
    for each in path.iterdir():
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        elif each.name not in (_RECIPE, _STATUS, _LOCK):
            each.unlink()
    (path / _RECIPE).unlink()


def _digest(recipe: Mapping[str, Any]) -> str:
    """SHA-256 of what a recipe says; neither spaces nor comments count."""
    text = json.dumps(recipe, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def read_correct(run: Path) -> dict[str, float]:
    """Tell of every test row of a finished run whether the tuned model was right, or how good, by the row's id.

    Raises:
        RunError: If there is no run, it is not finished, or its answers are missing or broken.
    """
    return _read_of_rows(run, "correct")


def read_truth_tokens(run: Path) -> dict[str, int]:
    """Tell of every test row of a finished run of how many tokens the truth is for the tuned model, by the row's id.

    Raises:
        RunError: As for `read_correct`.
    """
    return _read_of_rows(run, "num_truth_tokens")


def read_task(run: Path) -> str:
    """Name the task of a finished run.

    Raises:
        RunError: If its results do not say.
    """
    file = run / "results.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))["task"]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise _broken(file, error) from None


def _read_of_rows(run: Path, name: str) -> dict[str, Any]:
    if not run.is_dir():
        raise RunError(f"`{run}` does not exist. Name a folder that `lushan tune --out` wrote.")
    if not (run / "results.json").is_file():
        raise RunError(
            f"`{run}` holds no finished run: `results.json` is missing. Finish it with "
            "`lushan tune ... --resume`, or name rows to ask: `--data DATA`."
        )
    file = _predictions_file(run, "after")
    try:
        return {line["id"]: line[name] for line in _read_lines(file)}
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise _broken(file, error) from None


def _broken(file: Path, error: Exception) -> RunError:
    return RunError(
        f"`{file}` is missing or broken: {error}. Restore it, or name rows to ask: `--data DATA`."
    )


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
    if not _is_run(path):
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


def check_can_be_told(*paths: Path) -> None:
    """Refuse names that are not UTF-8, as all is that is written of a run.

    Raises:
        RunError: If there is one; says which part of the path it is.
    """
    for path in paths:
        wrong = [part for part in Path(os.path.realpath(path)).parts if _shown(part) != part]
        if wrong:
            raise RunError(
                f"`{_shown(str(path))}`: the name `{_shown(wrong[0])}` is not UTF-8, which all is that is written of a run. "
                "Rename it."
            )


def _shown(name: str) -> str:
    """Give a name with its bytes that are no UTF-8 as escapes."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _is_of_beginning(file: Path) -> bool:
    """Whether a run leaves this file when it is killed before its recipe is written."""
    return file.name in (_LOCK, _STATUS) or file.suffix == ".part"


def _lock(path: Path) -> int:
    """Let one process write at a time."""
    descriptor = lock_file(path / _LOCK)
    if descriptor is None:
        raise RunError(f"Another process is writing to `{path}`. Wait for it, or stop it.")
    return descriptor


def is_being_written(path: Path) -> bool:
    """Whether a process is writing to a run right now."""
    return is_locked(path / _LOCK)


def _plain(prediction: Prediction) -> dict[str, Any]:
    likely = sorted(prediction.probabilities.items(), key=lambda each: -each[1])
    # Choices of a row's own are few, and scored by what is read back; labels may be hundreds.
    num_kept = len(likely) if prediction.log_likelihoods else _MOST_PROBABILITIES
    return {
        "id": prediction.id,
        "answer": plain_answer(prediction.answer),
        "probabilities": dict(likely[:num_kept]),
        "log_likelihood": prediction.log_likelihood,
        "model_version": prediction.model_version,
        "log_likelihoods": dict(prediction.log_likelihoods),
        "truth_log_likelihood": prediction.truth_log_likelihood,
        "num_truth_tokens": prediction.num_truth_tokens,
        "samples": list(prediction.samples),
        "no_answer_probability": prediction.no_answer_probability,
        "tool_calls": [asdict(each) for each in prediction.tool_calls],
        **({"num_cut_tokens": prediction.num_cut_tokens} if prediction.num_cut_tokens else {}),
    }


def _prediction(values: dict[str, Any]) -> Prediction:
    values["answer"] = answer_from_plain(values["answer"])
    values["samples"] = tuple(values.get("samples", ()))
    values["tool_calls"] = tuple(Call(**each) for each in values.get("tool_calls", ()))
    values.pop("correct", None)
    return Prediction(**values)
