"""An export appears whole, checked and told, or not at all."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lushan.atomic import lock_file
from lushan.errors import CertificateError, MissingExtraError, RunError, SettingError
from lushan.model_store.export_certificate import EXPORT_FILE
from lushan.model_store.export_program import Answers, Questions
from lushan.model_store.exports import hf
from lushan.workflows import export as export_module
from lushan.workflows import export_check
from lushan.workflows.export import export
from tests.conftest import MakeTiny
from tests.exported import ask_here
from tests.runs import read
from tests.saved import save_tuned


@pytest.fixture(autouse=True)
def _asked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    ask_here(monkeypatch)


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """Give a copy of a finished run, which a test may write to."""
    return shutil.copytree(tiny_run, tmp_path / "run")


def files_in(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


def test_export_is_scored_on_the_test_rows_of_the_run(run: Path) -> None:
    told = export(run, to="hf")
    folder = run / "exports" / "hf"
    assert Path(told.pop("out")) == folder
    assert read(folder / EXPORT_FILE) == json.loads(json.dumps(told))
    quality = told["quality"]
    results = read(run / "results.json")
    assert quality["rows"] == "the run's test rows"
    assert quality["seen_in_training"] is False
    assert quality["num_examples"] == results["num_examples"]["test"]
    assert quality["run"] == results["after"]
    assert told["model_version"] == results["model_version"]
    assert files_in(run / "exports") == {"hf"}


def test_files_are_told_with_their_digests(run: Path) -> None:
    told = export(run, to="hf")
    folder = Path(told["out"])
    assert set(told["files"]) == files_in(folder) - {EXPORT_FILE}
    size = (folder / "model.safetensors").stat().st_size
    assert told["files"]["model.safetensors"]["bytes"] == size
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o644}


def test_other_rows_are_taken_from_a_file(run: Path, tiny_run: Path) -> None:
    data = tiny_run.parent / "reviews.jsonl"
    told: list[str] = []
    quality = export(run, to="hf", data=data, tell=told.append)["quality"]
    assert quality["rows"] == str(data)
    assert quality["seen_in_training"] is True
    assert any("is what this run was tuned on" in line for line in told)
    assert quality["num_examples"] == len(data.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("change", ["gone", "changed"])
def test_run_whose_data_is_lost_is_compared_on_its_certificate(run: Path, change: str) -> None:
    status = read(run / "run.json")
    status["data" if change == "gone" else "fingerprint"] = "/nowhere"
    (run / "run.json").write_text(json.dumps(status), encoding="utf-8")
    told: list[str] = []
    quality = export(run, to="hf", tell=told.append)["quality"]
    assert quality["rows"] == "the texts of the certificate"
    assert "main_metric" not in quality
    assert any("gone or changed" in line and "`--data DATA`" in line for line in told)


def test_run_whose_data_no_longer_gives_its_test_rows_tells_why(run: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text("{", encoding="utf-8")
    status = read(run / "run.json")
    status["data"] = str(tmp_path / "broken.jsonl")
    (run / "run.json").write_text(json.dumps(status), encoding="utf-8")
    told: list[str] = []
    quality = export(run, to="hf", tell=told.append)["quality"]
    assert quality["rows"] == "the texts of the certificate"
    assert any("no longer gives its test rows: " in line and "broken" in line for line in told)


def test_run_with_neither_data_nor_texts_asks_for_rows(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    save_tuned(tmp_path / "run", tiny_folder("llama"))
    with pytest.raises(RunError, match="Name rows: `--data DATA`"):
        export(tmp_path / "run", to="hf")
    assert files_in(tmp_path / "run") == {"model"}


def test_export_is_replaced_only_on_request(run: Path) -> None:
    export(run, to="hf")
    marked = run / "exports" / "hf" / "mine.txt"
    marked.write_text("mine", encoding="utf-8")
    with pytest.raises(RunError, match="holds an export already"):
        export(run, to="hf")
    assert marked.is_file()
    export(run, to="hf", overwrite=True)
    assert not marked.is_file()
    assert files_in(run / "exports") == {"hf"}


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"to": "pickle"}, SettingError, "`--to pickle` is no form. Known: gguf, hf, onnx, openv"),
        ({"to": "hf", "quantise": "q8_0"}, SettingError, "none of `--to hf`. Known: none"),
        ({"to": "gguf", "quantise": "int8"}, SettingError, "Known: f16, q8_0, q4_0"),
    ],
)
def test_form_that_is_not_known_is_refused_with_those_that_are(
    options: dict[str, Any], error: type[Exception], told: str, run: Path
) -> None:
    with pytest.raises(error, match=told):
        export(run, **options)
    assert not (run / "exports").exists()


def test_folder_with_something_else_is_never_replaced(run: Path, tmp_path: Path) -> None:
    place = tmp_path / "thesis"
    place.mkdir()
    (place / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(RunError, match="holds files that are no export"):
        export(run, to="hf", out=place, overwrite=True)
    assert files_in(place) == {"thesis.txt"}


def test_missing_package_is_named_with_its_extra(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf.Form, "packages", ("no_such_package",))
    with pytest.raises(MissingExtraError, match=r"`--to hf` needs `no_such_package`.*\.\[export\]"):
        export(run, to="hf")


def plant(monkeypatch: pytest.MonkeyPatch, fault: Callable[[Path], None]) -> None:
    """Have a fault come into the files behind the writer's back."""
    write = hf.Form.write

    def write_and_spoil(form: hf.Form, merged: Any, folder: Path, *, quantise: str) -> list[str]:  # noqa: ANN401
        notes = write(form, merged, folder, quantise=quantise)
        fault(folder)
        return notes

    monkeypatch.setattr(hf.Form, "write", write_and_spoil)


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def swap_labels(folder: Path) -> None:
    config = read(folder / "config.json")
    names = config["id2label"]
    names["0"], names["1"] = names["1"], names["0"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("fault", "told"), [(cut_weights, "cannot be read back"), (swap_labels, "names its labels")]
)
def test_planted_fault_is_found_and_put_where_nobody_takes_it_for_good(
    fault: Callable[[Path], None], told: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, fault)
    with pytest.raises(CertificateError, match=told):
        export(run, to="hf")
    assert files_in(run / "exports") == {"hf-refused"}


def test_failed_program_leaves_nothing_but_what_was_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(questions: Questions) -> Answers:
        raise CertificateError(f"{questions.form} was killed")

    monkeypatch.setattr(export_check, "ask_program", dies)
    told: list[str] = []
    with pytest.raises(CertificateError, match="hf was killed"):
        export(run, to="hf", tell=told.append)
    assert files_in(run / "exports") == {"hf-refused"}
    assert any("hf-refused" in line for line in told)
    assert EXPORT_FILE not in files_in(run / "exports" / "hf-refused")


def test_older_export_stays_when_the_new_one_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(run, to="hf")
    before = read(run / "exports" / "hf" / EXPORT_FILE)
    plant(monkeypatch, swap_labels)
    with pytest.raises(CertificateError):
        export(run, to="hf", overwrite=True)
    assert read(run / "exports" / "hf" / EXPORT_FILE) == before


def leave(out: Path, *names: str) -> Path:
    """Give the folder that a killed export left beside `out`."""
    place = out.parent / f".{out.name}.k1ll3d__.part"
    for name in names:
        (place / name).mkdir(parents=True)
        (place / name / EXPORT_FILE).write_text(f'"{name}"', encoding="utf-8")
    return place


def test_what_a_killed_export_left_is_removed_unless_its_process_lives(run: Path) -> None:
    out = run / "exports" / "hf"
    place = leave(out, "new", "scratch")
    other = leave(out.with_name("hf.int8"), "new", "old")
    (place.parent / ".hf.mine.part").mkdir()
    kept = lock_file(place / ".lock")
    assert kept is not None
    export(run, to="hf")
    assert files_in(out.parent) == {"hf", place.name, other.name, ".hf.mine.part"}
    os.close(kept)
    export(run, to="hf", overwrite=True)
    assert files_in(out.parent) == {"hf", other.name, ".hf.mine.part"}


def test_export_that_a_killed_one_had_put_aside_comes_back(run: Path) -> None:
    out = run / "exports" / "hf"
    leave(out, "new", "old")
    with pytest.raises(RunError, match="holds an export already"):
        export(run, to="hf")
    assert (out / EXPORT_FILE).read_text(encoding="utf-8") == '"old"'
    leave(out, "old")
    export(run, to="hf", overwrite=True)
    assert read(out / EXPORT_FILE)["form"] == "hf"
    assert files_in(out.parent) == {"hf"}


def test_export_takes_the_place_of_the_folder_in_which_the_user_is(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    told: list[str] = []
    assert export(run, to="hf", out=Path(), tell=told.append)["out"] == "."
    assert EXPORT_FILE in files_in(tmp_path / "here")
    assert any(f"`cd {tmp_path / 'here'}`" in line for line in told)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(RunError, match=r"`--out \.` holds an export already"):
        export(run, to="hf", out=Path())


def test_export_behind_a_link_is_replaced_where_it_is(run: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk" / "export")
    export(run, to="hf", out=link)
    (link / "mine.txt").touch()
    export(run, to="hf", out=link, overwrite=True)
    assert link.is_symlink()
    assert files_in(tmp_path / "disk") == {"export"}
    assert "mine.txt" not in files_in(tmp_path / "disk" / "export")


def test_export_whose_folder_is_called_as_those_beside_it_is_replaced(
    run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "exports" / "old"
    for overwrite in (False, True):
        export(run, to="hf", out=out, overwrite=overwrite)
    assert files_in(out.parent) == {"old"}


def test_name_that_is_not_utf_8_is_refused_before_the_run_is_asked(
    run: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")) / "hf"
    with pytest.raises(RunError, match=r"the name `caf\\xe9` is not UTF-8.*Rename it"):
        export(run, to="hf", out=out, tell=told.append)
    assert told == []


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_run_of_the_command_line_is_exported_by_native_programs(run: Path, to: str) -> None:
    pytest.importorskip("onnxscript")
    assert export_module.export(run, to=to)["quality"]["agreement"]["value"] == 1
