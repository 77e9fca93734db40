"""Files that visitors bring: kept under a plain name in the store folder, and nowhere else."""

import re
import shutil
import unicodedata
from collections.abc import Container
from pathlib import Path

from lushan.data.formats import EXTENSIONS

FILE_TYPES = [*EXTENSIONS, ".gz"]
MOST_NAME_CHARACTERS = 60
UPLOADS = "uploads"


def safe_name(name: str, *, otherwise: str) -> str:
    """Make a name that is one plain part of a path: letters of any script, digits, `_`, `-` and inner dots.

    Args:
        name: What a visitor gave; folders in it are dropped.
        otherwise: The name where nothing is left.
    """
    last = unicodedata.normalize("NFC", name).replace("\\", "/").rpartition("/")[2]
    plain = re.sub(r"[^\w.-]+", "-", last)
    plain = re.sub(r"([.-])\1+", r"\1", plain).strip("-._")
    return plain[-MOST_NAME_CHARACTERS:].strip("-._") or otherwise


def keep_upload(upload: Path, store: Path) -> Path:
    """Copy a file into the store, under a name that is free there."""
    folder = store / UPLOADS
    folder.mkdir(parents=True, exist_ok=True)
    name = safe_name(upload.name, otherwise="table.csv")
    target = free_place(folder, name)
    shutil.copyfile(upload, target)
    return target


def free_place(folder: Path, name: str, *, taken: Container[str] = ()) -> Path:
    """Give a path in a folder that does not exist, and whose name is not taken: `reviews.csv`, `reviews-2.csv` ..."""
    stem, dot, extension = name.partition(".")
    target, number = folder / name, 1
    while target.exists() or target.name in taken:
        number += 1
        target = folder / f"{stem}-{number}{dot}{extension}"
    return target
