"""What a comparison found, kept in the cache: it takes a while, and its outcome stays until one of its sides changes."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from lushan.backbones.inspect import read_json
from lushan.backbones.sources import cache_folder
from lushan.errors import ModelError


def remembered(kind: str, sides: Sequence[str], compare: Callable[[], Any]) -> Any:  # noqa: ANN401 - what JSON holds
    """Give what an earlier comparison of the same sides found, else compare now and keep it.

    Args:
        kind: Folder inside of the cache.
        sides: All that the outcome depends on: contents, versions.
        compare: Gives what JSON can hold; what it raises is not kept.
    """
    key = hashlib.sha256(json.dumps(list(sides)).encode()).hexdigest()[:32]
    file = cache_folder() / kind / f"{key}.json"
    with contextlib.suppress(ModelError, KeyError, OSError):  # broken, as by a loss of power
        return read_json(file)["found"]
    found = compare()
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.part")
        partial.write_text(json.dumps({"found": found}), encoding="utf-8")
        partial.replace(file)
    return found
