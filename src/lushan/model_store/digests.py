"""The files that a model answers by, and their digests: a folder in which one was changed is found out by its name."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from lushan.errors import CertificateError

BASE_FILES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
)
"""What an adapter takes from the folder of its base, beside the weights, whose digest stands in `lushan.json`."""
WEIGHTS = ".safetensors"
_BOUND = (WEIGHTS, ".json", ".jinja", ".gguf", ".onnx", ".data", ".xml", ".bin")
_TOLD = ("certificate.json", "export.json")
"""What an export's folder holds about itself."""


def files_of_model(folder: Path) -> list[str]:
    """Name the files of a model folder, or of an export, that decide its answers, and its probes."""
    names = (file.name for file in folder.iterdir() if file.suffix in _BOUND)
    return sorted(name for name in names if name not in _TOLD)


def digests_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of each file that is there."""
    found: dict[str, str] = {}
    for name in names:
        if (folder / name).is_file():
            with (folder / name).open("rb") as stream:
                found[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def check_digests(folder: Path, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Refuse a folder whose files are others.

    Args:
        folder: Where they stand.
        expected: Name to digest, as certified.
        found: The same, now.

    Raises:
        CertificateError: If so; names the first file that is missing, was changed, or was not there.
    """
    for name in sorted({**expected, **found}):
        if name not in found:
            what = "is missing"
        elif name not in expected:
            what = "was not there when the model was certified"
        elif expected[name] != found[name]:
            what = f"was changed: expected SHA-256 {expected[name][:12]}, got {found[name][:12]}"
        else:
            continue
        raise CertificateError(f"`{folder / name}` {what}.")
