"""Files that were changed are found out by their names."""

import hashlib
from pathlib import Path

import pytest

from lushan.errors import CertificateError
from lushan.model_store.digests import check_digests, digests_of, files_of_model

CONTENTS = {"model.safetensors": "w", "lushan.json": "{}", "chat_template.jinja": "c"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in CONTENTS.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "README.md").touch()
    return tmp_path


def test_weights_settings_and_template_of_a_model_count_and_its_readme_does_not(
    folder: Path,
) -> None:
    for about_itself in ("certificate.json", "export.json"):
        (folder / about_itself).touch()
    names = files_of_model(folder)
    assert names == sorted(CONTENTS)
    expected = {name: hashlib.sha256(CONTENTS[name].encode()).hexdigest() for name in names}
    assert digests_of(folder, [*names, "gone.json"]) == expected


@pytest.mark.parametrize(
    "name", ["model.gguf", "model.onnx", "model.onnx.data", "model.xml", "model.bin"]
)
def test_weights_of_other_programs_count(name: str, folder: Path) -> None:
    (folder / name).touch()
    assert name in files_of_model(folder)


@pytest.mark.parametrize(
    ("expected", "found", "told"),
    [
        ({"a.json": "12"}, {}, r"a\.json` is missing"),
        ({}, {"a.json": "12"}, r"a\.json` was not there when the model was certified"),
        ({"b": "1", "a": "2"}, {"b": "1", "a": "3"}, "a` was changed: expected SHA-256 2, got 3"),
    ],
)
def test_first_file_that_differs_is_named(
    expected: dict[str, str], found: dict[str, str], told: str
) -> None:
    with pytest.raises(CertificateError, match=rf"model/{told}"):
        check_digests(Path("model"), expected, found)


def test_equal_files_pass(folder: Path) -> None:
    digests = digests_of(folder, files_of_model(folder))
    check_digests(folder, digests, dict(digests))
