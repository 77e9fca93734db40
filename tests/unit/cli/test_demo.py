"""`lushan demo` as a command, with a tiny model in place of the default one."""

import json
import shutil
from pathlib import Path

import pytest

from lushan.backbones import sources
from lushan.cli import demo
from lushan.cli.main import run
from lushan.model_store import certificate
from tests.bad_inputs import good_rows, write_lines
from tests.conftest import MakeTiny
from tests.runs import answers_of_this_process


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch, tiny_folder: MakeTiny) -> list[str]:
    """Let `get_model` put a tiny model into the cache; gives the names that were fetched."""
    names: list[str] = []

    def get_model(name: str, **_: object) -> Path:
        names.append(name)
        folder = Path(shutil.copytree(tiny_folder("llama"), sources.models_folder() / name))
        (folder / sources.RECORD_FILE).write_text("{}", encoding="utf-8")
        return folder

    monkeypatch.setattr(sources, "get_model", get_model)
    return names


def test_demo_fetches_the_missing_model_and_runs_to_the_report(
    fetched: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(certificate, "_answers_of_fresh_process", answers_of_this_process)
    quick = {"baselines": False, "training": {"epochs": 1}, "model": {"precision": "fp32"}}
    monkeypatch.setattr(demo, "SETTINGS", quick)
    monkeypatch.setattr(demo, "DATA", write_lines(tmp_path / "rows.jsonl", good_rows()))
    assert run(["demo", "--json"]) == 0
    output = capsys.readouterr()
    results = json.loads(output.out.splitlines()[-1])
    assert fetched == [sources.DEFAULT_MODEL]
    assert results["num_examples"]["test"] == 10
    assert Path(results["run"], "report.html").is_file()
    assert "report.html" in output.err


def test_a_second_demo_takes_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert demo._free_folder() == Path("lushan-demo")
    Path("lushan-demo").mkdir()
    Path("lushan-demo-2").mkdir()
    assert demo._free_folder() == Path("lushan-demo-3")


def test_a_folder_in_the_way_is_refused_before_anything_is_fetched(
    fetched: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").touch()
    assert run(["demo", "--out", str(tmp_path)]) == 2
    assert "holds files that are no run" in capsys.readouterr().err
    assert fetched == []


def test_the_demo_reads_the_rows_that_ship_with_the_package() -> None:
    assert {file.name for file in demo.DATA.iterdir()} >= {"train.jsonl", "test.jsonl"}


def test_a_demo_that_was_stopped_goes_on_with_its_seed_as_its_refusal_says(
    fetched: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    quick = {"baselines": False, "training": {"epochs": 1}, "model": {"precision": "fp32"}}
    monkeypatch.setattr(demo, "SETTINGS", quick)
    monkeypatch.setattr(demo, "DATA", write_lines(tmp_path / "rows.jsonl", good_rows()))
    monkeypatch.setattr(certificate, "_answers_of_fresh_process", answers_of_this_process)
    begun = ["demo", "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr("lushan.workflows.tune.certify", stop)
        assert run([*begun, "--seed", "3"]) == 130
    assert run(begun) == 2
    assert "Use `--resume` to go on with it, `--overwrite` to replace" in capsys.readouterr().err
    assert run([*begun, "--resume"]) == 0
    assert "seed: 3\n" in (tmp_path / "run" / "recipe.yaml").read_text(encoding="utf-8")
    assert run([*begun, "--overwrite"]) == 0
    assert "seed: 0\n" in (tmp_path / "run" / "recipe.yaml").read_text(encoding="utf-8")
    assert fetched == [sources.DEFAULT_MODEL]
