"""`lushan export` prints what an export was held against, and where it is."""

import json
import shutil
from pathlib import Path

import pytest

from lushan.cli.main import run
from tests.exported import ask_here
from tests.runs import read


@pytest.fixture(autouse=True)
def _asked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    ask_here(monkeypatch)


def test_export_is_told_to_people_and_programs(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    place = tmp_path / "out"
    assert run(["export", str(folder), "--to", "hf", "--out", str(place), "--json"]) == 0
    output = capsys.readouterr()
    told = json.loads(output.out.splitlines()[-1])
    assert told == {**read(place / "export.json"), "out": str(place)}
    assert "transformers 5." in output.err
    assert "answers 100.0% of" in output.err
    assert "accuracy" in output.err
    assert f"Export: {place}" in output.err
    assert f"`lushan doctor {place}` asks again" in " ".join(output.err.split())


def test_form_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "run"]) == 2
    assert "Missing option '--to'" in capsys.readouterr().err


def test_what_a_model_that_writes_lost_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    from lushan.cli.export import show_export

    show_export({
        "quality": {
            "num_examples": 3,
            "lost_nats_per_token": {"value": 0.0123, "low": 0.01, "high": 0.02},
        },
        "program": {"name": "xllamacpp 1", "equal_tokens": 0.75},
        "files": {"model.gguf": {"bytes": 2_500_000}},
        "out": "place",
    })
    told = capsys.readouterr().err
    assert "75.0% of the tokens that it would write are those of Lushan" in told
    assert "less likely by 0.0123 per token (0.0100 to 0.0200 nats)" in told
    assert "Export: place (2.5 MB)" in told
