"""Whether the rows that are scored are those that a run was tuned on, so that their score says little."""

import json
from pathlib import Path

from lushan.data.readers import digests_of, find_files, fingerprint_of
from lushan.errors import DataError
from lushan.model_store.tuned_model import model_folder

SEEN = (
    "`{}` is what this run was tuned on: it has seen most of these rows with their answers, so their scores say little "
    "about other rows. Those of its test rows are in its `results.json`."
)
"""What is told then, with the file."""


def is_tuned_on(run: Path, file: Path) -> bool:
    """Say whether a file holds the rows that a run was trained on or chosen by, and not its test rows alone.

    It does if it is one of the files that the run read, but for a test file, or has the content of one, also of the rows
    that were added (`data.added`). A model folder without its run knows of none, and runs of earlier versions note one
    fingerprint for all files.

    Args:
        run: The run folder, or its `model` folder.
        file: What is scored.
    """
    try:
        text = (model_folder(run).parent / "run.json").read_text(encoding="utf-8")
        status = json.loads(text)
        data, fingerprint = Path(status["data"]), status["fingerprint"]
        digests: dict[str, str] = dict(status.get("digests") or {})
    except (OSError, ValueError, KeyError, TypeError):
        return False
    own = _digest(file)
    digests.pop("test", None)
    if own in digests.values() or fingerprint_of({"train": own}) == fingerprint:
        return True
    try:
        files, _ = find_files(data)
        return any(_is_same(file, each, own) for split, each in files.items() if split != "test")
    except (DataError, OSError):  # the data are gone, or others' to read
        return False


def _is_same(file: Path, other: Path, own: str) -> bool:
    if file.samefile(other):
        return True
    is_as_long = file.stat().st_size == other.stat().st_size
    return is_as_long and _digest(other) == own


def _digest(file: Path) -> str:
    return digests_of({"train": file})["train"]
