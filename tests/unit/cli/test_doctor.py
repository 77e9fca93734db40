"""What `lushan doctor` tells."""

import json
import platform
import shutil
from pathlib import Path

import pytest

from lushan.cli.main import run
from lushan.workflows.export import export
from tests.exported import ask_here


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LUSHAN_CACHE", str(tmp_path / "cache"))


def test_doctor_tells_machine_speed_and_choices_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["speed"]["fp32_gflops"] > 0
    names = [choice["name"] for choice in told["choices"]]
    assert names == ["device", "threads", "precision", "functions"]
    assert all(choice["why"] for choice in told["choices"])
    assert told["versions"]["python"] == platform.python_version()


def test_doctor_measures_once_and_keeps_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run(["doctor", "--json"])
    first = json.loads(capsys.readouterr().out)
    run(["doctor", "--json"])
    assert json.loads(capsys.readouterr().out)["speed"] == first["speed"]
    assert (tmp_path / "cache" / "machine.json").is_file()


def test_doctor_for_people_says_what_will_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    output = capsys.readouterr()
    assert output.out == ""
    assert "precision" in output.err
    assert "GFLOP/s" in output.err


def test_run_is_held_to_its_certificate(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    assert run(["doctor", str(copy), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["largest_difference"] == 0.0
    (copy / "model" / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert run(["doctor", str(copy)]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "run` is not what was certified" in told
    assert "chat_template.jinja` was not there when the model was certified" in told
    assert run(["doctor", str(copy), "--again"]) == 2
    capsys.readouterr()
    assert run(["doctor", "--weights", "int8"]) == 2
    assert "`--weights` has no effect without a run" in capsys.readouterr().err


def test_export_is_held_to_its_own_certificate(
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ask_here(monkeypatch)
    place = tmp_path / "mine"
    version = export(tiny_run, to="hf", out=place)["model_version"]
    assert run(["doctor", str(place), "--json"]) == 0
    output = capsys.readouterr()
    told = json.loads(output.out)
    assert (told["export"], told["form"]) == (str(place), "hf")
    assert (told["model_version"], told["largest_difference"]) == (version, 0.0)
    assert "mine` is what was certified, as `hf` of version" in " ".join(output.err.split())
    assert run(["doctor", str(place), "--weights", "int8"]) == 2
    assert "`--weights` has no effect with an export" in capsys.readouterr().err
    (place / "labels.json").write_text("[]", encoding="utf-8")
    assert run(["doctor", str(place)]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "mine` is not what was certified" in told
    assert "labels.json` was not there when the model was certified" in told
    (place / "certificate.json").unlink()
    assert run(["doctor", str(place)]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "mine` has no `certificate.json`" in told
    assert "`lushan export RUN --to FORM --overwrite`" in told
