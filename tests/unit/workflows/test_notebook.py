"""The commands as Python functions."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import lushan
from lushan.errors import RunError, SettingError
from lushan.model_store import certificate, export_program
from lushan.workflows import export_check
from tests.bad_inputs import TOPICS, good_rows, write_lines
from tests.conftest import MakeTiny
from tests.runs import answers_of_this_process


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "data.jsonl", good_rows())


def test_a_model_is_tuned_loaded_scored_and_compared_by_plain_calls(
    data: Path, tmp_path: Path, tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "_answers_of_fresh_process", answers_of_this_process)
    runs = [tmp_path / "full", tmp_path / "head"]
    for run in runs:
        results = lushan.tune(
            data,
            out=run,
            model=tiny_folder("llama"),
            adapter=run.name,
            epochs=1,
            baselines=False,
            settings={"model.precision": "fp32", "training.rows_per_step": 8},
        )
        assert results["adapter"] == run.name
        assert results["validation"][-1]["step"] == 5  # 34 training rows, 8 a step
    before = torch.random.get_rng_state()
    (prediction,) = lushan.load(runs[0]).predict(["The boat sailed."])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert isinstance(prediction, lushan.Prediction)
    assert lushan.evaluate(runs[0], data)["num_examples"] == 48
    assert len(lushan.compare(runs)["comparisons"]) == 1
    assert lushan.compare(runs, data=data)["num_examples"] == 48


def test_data_is_checked_by_a_plain_call(data: Path, tiny_folder: MakeTiny) -> None:
    findings = lushan.check(data, model=tiny_folder("llama"), settings={"data.test_fraction": 0.5})
    assert findings["num_examples"]["test"] == 24


def test_new_rows_are_written_by_a_plain_call(tmp_path: Path, tiny_folder: MakeTiny) -> None:
    rows = [{"text": noun, "label": label} for label, nouns in TOPICS.items() for noun in nouns]
    data = write_lines(tmp_path / "nouns.jsonl", rows)
    found = lushan.augment(
        data,
        out=tmp_path / "new.jsonl",
        num_rows=3,
        keep=True,
        model=tiny_folder("llama"),
        epochs=1,
        settings={"model.precision": "fp32"},
    )
    assert found["num_asked"] == 3
    assert (tmp_path / "new.jsonl").exists() == found["written"]


def test_a_run_is_exported_by_a_plain_call(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_check, "ask_program", export_program.answer)
    told = lushan.export(tiny_run, to="hf", out=str(tmp_path / "hf"))
    assert told["quality"]["agreement"]["value"] == 1
    assert (tmp_path / "hf" / "model.safetensors").is_file()


def test_a_wrong_option_is_refused_like_on_the_command_line(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="`--adapter tiny`: expected `full`"):
        lushan.tune(data, out=tmp_path / "run", adapter="tiny")
    with pytest.raises(SettingError, match=r"unknown setting `training\.epoch`"):
        lushan.check(data, settings={"training.epoch": 3})


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        (
            "tune",
            {"learning_rate": 1e-4},
            r"Known: out, .*, seed\. .*`settings=\{\"training\.learning_rate\":",
        ),
        ("tune", {"epoch": 3}, r"has no option `epoch`\. .* Did you mean `epochs`\?"),
        ("check", {"no_baselines": True}, r"`lushan\.check` has .* Did you mean `baselines`\?"),
        ("augment", {"rows": 500}, r"`lushan\.augment` has .* Did you mean `num_rows`\?"),
    ],
)
def test_an_option_that_nothing_reads_is_refused_with_those_that_are(
    name: str, options: dict[str, Any], told: str, *, data: Path, tmp_path: Path
) -> None:
    place = {} if name == "check" else {"out": tmp_path / "out"}
    with pytest.raises(SettingError, match=told):
        getattr(lushan, name)(data, **place, **options)
    assert not (tmp_path / "out").exists()


def test_a_run_that_failed_can_go_on_while_a_notebook_keeps_what_failed(
    data: Path, tmp_path: Path, tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    options: dict[str, Any] = {"model": tiny_folder("llama"), "epochs": 1, "baselines": False}
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("lushan.workflows.tune.certify", stop)
        with pytest.raises(KeyboardInterrupt) as stopped:
            lushan.tune(data, out=run, settings={"model.precision": "fp32"}, **options)
    with pytest.raises(SettingError, match=r"`training\.epochs` \(the run has 1") as refused:
        lushan.tune(data, out=run, resume=True, epochs=2)
    monkeypatch.setattr(certificate, "_answers_of_fresh_process", answers_of_this_process)
    assert lushan.tune(data, out=run, resume=True)["run"] == str(run)
    assert stopped.tb  # frames with the run in them
    assert refused.tb


@pytest.mark.parametrize("wrong", ["data", "out", "model"])
def test_a_name_that_is_not_utf_8_is_refused_before_anything_is_read(
    wrong: str,
    *,
    data: Path,
    tmp_path: Path,
    tiny_folder: MakeTiny,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("nothing may be read")

    monkeypatch.setattr("lushan.workflows.tune.prepare", read)
    place = tmp_path / os.fsdecode(b"caf\xe9")
    place.mkdir()
    names = {"data": data, "out": tmp_path / "run", "model": tiny_folder("llama")}
    names[wrong] = place / "here"
    if wrong == "model":
        shutil.copytree(tiny_folder("llama"), place / "here")
    with pytest.raises(RunError, match=r"the name `caf\\xe9` is not UTF-8.*Rename it"):
        lushan.tune(names["data"], out=names["out"], model=names["model"])
    assert not (tmp_path / "run").exists()


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module `lushan` has no attribute `train`"):
        lushan.train  # noqa: B018 - the look-up is what is tested
