"""Models are found without the network, and what is missing is told."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lushan.backbones.sources import (
    CATALOG,
    DEFAULT_MODEL,
    cache_folder,
    get_model,
    list_models,
    locate,
    models_folder,
    remove_model,
    show_model,
)
from lushan.errors import ModelError
from tests.conftest import MakeTiny


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("looking up must not touch the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def put_into_cache(model: Path, name: str, **record: object) -> Path:
    folder = models_folder() / name
    shutil.copytree(model, folder)
    (folder / "lushan.json").write_text(json.dumps({"name": name, **record}), encoding="utf-8")
    return folder


PLACES = [
    ("linux", "XDG_CACHE_HOME", "lushan"),
    ("win32", "LOCALAPPDATA", "lushan"),
    ("darwin", "HOME", "Library/Caches/lushan"),
]


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_cache_is_where_the_platform_keeps_caches(
    place: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    platform, variable, expected = place
    monkeypatch.delenv("LUSHAN_CACHE")
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv(variable, str(tmp_path))
    assert cache_folder() == tmp_path / expected


def test_cache_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUSHAN_CACHE", "~/here")
    assert cache_folder() == Path.home() / "here"


def test_path_is_found_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / DEFAULT_MODEL).mkdir()
    assert locate(DEFAULT_MODEL) == Path(DEFAULT_MODEL)


@pytest.mark.parametrize("spelling", [DEFAULT_MODEL, DEFAULT_MODEL.lower()])
def test_cached_model_is_found_by_name(spelling: str, tiny_folder: MakeTiny) -> None:
    folder = put_into_cache(tiny_folder("llama"), DEFAULT_MODEL)
    assert locate(spelling) == folder


def test_own_model_is_found_by_name(tiny_folder: MakeTiny) -> None:
    folder = put_into_cache(tiny_folder("llama"), "mine")
    assert locate("mine") == folder


def test_missing_model_names_the_command_that_gets_it() -> None:
    with pytest.raises(ModelError, match=f"`lushan models get {DEFAULT_MODEL}` \\(93 MB\\)"):
        locate(DEFAULT_MODEL)


def test_folder_without_a_record_is_not_taken_for_a_model() -> None:
    (models_folder() / DEFAULT_MODEL).mkdir(parents=True)
    with pytest.raises(ModelError, match="is not on this machine"):
        locate(DEFAULT_MODEL)


@pytest.mark.parametrize("name", ["gpt-9", "../models", "a/b", ".hidden"])
def test_unknown_model_lists_the_known_ones(name: str, tiny_folder: MakeTiny) -> None:
    put_into_cache(tiny_folder("llama"), "mine")
    with pytest.raises(ModelError, match=f"Unknown model .*{DEFAULT_MODEL}.*, mine"):
        locate(name)


def test_list_holds_the_catalogue_and_own_models(tiny_folder: MakeTiny) -> None:
    put_into_cache(tiny_folder("llama"), "mine", kind="decoder", source={"path": "/there"})
    models = {model.name: model for model in list_models()}
    assert set(models) == {*CATALOG, "mine"}
    assert models["mine"].is_here
    assert models["mine"].languages == ""
    assert models[DEFAULT_MODEL].languages == CATALOG[DEFAULT_MODEL].languages == "English"
    assert not models[DEFAULT_MODEL].is_here
    assert [name for name, model in models.items() if model.is_default] == [DEFAULT_MODEL]


def test_show_tells_path_and_facts(tiny_folder: MakeTiny) -> None:
    folder = put_into_cache(tiny_folder("llama"), "mine", licence="MIT")
    shown = show_model("mine")
    assert shown["path"] == str(folder.resolve())
    assert (shown["model_type"], shown["licence"]) == ("llama", "MIT")


def test_show_sees_changed_weights(tiny_folder: MakeTiny) -> None:
    put_into_cache(tiny_folder("llama"), "mine", weights_sha256="0" * 64)
    assert show_model("mine")["is_intact"] is False


def test_show_works_on_any_folder(tiny_folder: MakeTiny) -> None:
    assert show_model(str(tiny_folder("bert")))["family"] == "encoder"


def test_remove_deletes_a_cached_model(tiny_folder: MakeTiny) -> None:
    folder = put_into_cache(tiny_folder("llama"), "mine")
    assert remove_model("mine") == folder
    assert list(models_folder().iterdir()) == []


def test_remove_takes_the_link_to_a_folder_of_the_user_alone(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    own = put_into_cache(tiny_folder("llama"), "mine").rename(tmp_path / "own")
    (models_folder() / "mine").symlink_to(own)
    assert locate("mine") == models_folder() / "mine"
    remove_model("mine")
    assert list(models_folder().iterdir()) == []
    assert (own / "model.safetensors").is_file()


def test_model_whose_removal_was_cut_short_is_listed_no_more(tiny_folder: MakeTiny) -> None:
    put_into_cache(tiny_folder("llama"), ".mine.123.part")
    assert {model.name for model in list_models()} == {*CATALOG}
    with pytest.raises(ModelError, match=r"nothing was removed. It holds: nothing"):
        remove_model(".mine.123.part")


def test_remove_leaves_other_folders_alone(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    put_into_cache(tiny_folder("llama"), "mine")
    own = tmp_path / "own"
    shutil.copytree(tiny_folder("llama"), own)
    with pytest.raises(ModelError, match=r"nothing was removed. It holds: mine"):
        remove_model(str(own))
    assert own.is_dir()


def test_get_gives_a_cached_model_without_fetching(tiny_folder: MakeTiny) -> None:
    folder = put_into_cache(tiny_folder("llama"), "gemma-3-270m")
    told: list[str] = []
    assert get_model("gemma-3-270m", tell=told.append) == folder
    assert "already" in told[0]


def test_get_refuses_terms_that_are_not_accepted() -> None:
    with pytest.raises(
        ModelError, match=r"Gemma Terms of Use.*ai.google.dev/gemma/terms.*--accept"
    ):
        get_model("gemma-3-270m")
    assert not models_folder().exists()


def test_get_refuses_a_name_without_a_source() -> None:
    with pytest.raises(ModelError, match=f"Unknown model `mine`. Known: {DEFAULT_MODEL}"):
        get_model("mine")


@pytest.mark.parametrize("name", ["../mine", "a b", ".mine", ""])
def test_get_refuses_a_name_that_is_no_folder_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be a model's name"):
        get_model(name, source=tmp_path)


def test_get_refuses_another_source_for_a_taken_name(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    put_into_cache(tiny_folder("llama"), "mine", source={"type": "path", "path": "/other"})
    with pytest.raises(
        ModelError, match=r"from another source .*/other.*lushan models remove mine"
    ):
        get_model("mine", source=tmp_path)


def test_get_refuses_a_cached_model_that_is_damaged(tiny_folder: MakeTiny) -> None:
    put_into_cache(tiny_folder("llama"), DEFAULT_MODEL, weights_sha256="0" * 64)
    with pytest.raises(ModelError, match=f"damaged.*lushan models remove {DEFAULT_MODEL}"):
        get_model(DEFAULT_MODEL)


def test_get_refuses_a_cached_model_whose_weights_are_gone(tiny_folder: MakeTiny) -> None:
    folder = put_into_cache(tiny_folder("llama"), DEFAULT_MODEL, weights_sha256="0" * 64)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=f"damaged.*lushan models remove {DEFAULT_MODEL}"):
        get_model(DEFAULT_MODEL)


def test_get_refuses_retie_where_it_has_no_effect() -> None:
    with pytest.raises(ModelError, match="`--retie` only works on a GGUF file"):
        get_model(DEFAULT_MODEL, retie=True)


def test_looking_up_imports_nothing_heavy() -> None:
    code = (
        "import sys, lushan.backbones.sources; print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_catalogue_entries_are_complete() -> None:
    for model in CATALOG.values():
        assert len(model.sha256) == 64
        assert all("==" in package for package in model.packages)
        assert model.check_range[0] < model.check_range[1]
    assert not CATALOG[DEFAULT_MODEL].needs_terms
