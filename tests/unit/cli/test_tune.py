"""`lushan tune` as a command: whole runs of tiny models."""

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lushan.cli.main import run
from lushan.cli.tune import next_run
from tests.bad_inputs import good_rows, write_lines
from tests.conftest import MakeTiny
from tests.runs import QUICK, answers_of_this_process, read, read_steps, tune

NUM_EPOCHS = 8
FILES = {
    *("recipe.yaml", "ledger.json", "steps.jsonl", "results.json", "report.html", "README.md"),
    *("model", "certificate.json"),
}
PHASES = {
    *("check", "before_evaluation", "compile", "train", "validation", "after_evaluation"),
    *("baselines", "report"),
}
CHINESE = (
    *(
        "海浪拍打着礁石",
        "港口停满了渔船",
        "水手收起了船锚",
        "灯塔照亮海面",
        "海鸥追着风飞",
        "潮水慢慢退去",
    ),
    *(
        "山脊上落满了雪",
        "牧人走过草地",
        "峡谷里有回声",
        "山顶看得见日出",
        "巨石滚下斜坡",
        "小路通向松林",
    ),
)


@dataclass(frozen=True)
class Whole:
    """A run with everything, and what was printed."""

    path: Path
    data: Path
    printed: dict[str, Any]


@pytest.fixture(scope="module")
def whole(tiny_folder: MakeTiny, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Tune once by the real command, certified by a fresh process, with baselines and measured precision."""
    place = tmp_path_factory.mktemp("whole")
    data = write_lines(place / "data.jsonl", good_rows())
    options = [f"--set=training.{name}=0.01" for name in ("learning_rate", "head_learning_rate")]
    options += ["--model", str(tiny_folder("llama")), "--epochs", str(NUM_EPOCHS), "--json"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setenv("LUSHAN_CACHE", str(place / "cache"))
        assert tune(data, place / "run", "--task", "classification", *options) == 0
    return Whole(place / "run", data, json.loads(out.getvalue().splitlines()[-1]))


@pytest.fixture
def _without_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lushan.model_store.certificate._answers_of_fresh_process", answers_of_this_process
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "data.jsonl", good_rows())


def test_run_folder_has_every_file_and_no_checkpoints(whole: Whole) -> None:
    found = {path.name for path in whole.path.iterdir()}
    assert found >= FILES
    assert "checkpoints" not in found


def test_json_is_the_results_file_with_the_stable_fields(whole: Whole) -> None:
    assert whole.printed == read(whole.path / "results.json")
    assert whole.printed["run"] == str(whole.path)
    assert whole.printed["task"] == "classification"
    assert whole.printed["adapter"] == "full"
    assert whole.printed["main_metric"] == "accuracy"
    assert set(whole.printed["baselines"]) == {"majority", "tf_idf", "few_shot", "zero_shot"}


def test_every_score_stands_within_its_interval(whole: Whole) -> None:
    systems = [
        whole.printed["before"],
        whole.printed["after"],
        *whole.printed["baselines"].values(),
    ]
    scores = [score for system in systems for score in system.values()]
    assert all(set(score) == {"value", "low", "high"} for score in scores)
    assert all(0 <= score["low"] <= score["value"] <= score["high"] <= 1 for score in scores)


def test_seconds_tell_of_every_phase(whole: Whole) -> None:
    seconds = whole.printed["seconds"]
    assert set(seconds) == PHASES
    assert seconds["compile"] == 0.0
    assert all(value > 0 for name, value in seconds.items() if name != "compile")


def test_trained_tokens_are_those_of_the_ledger_once_per_epoch(whole: Whole) -> None:
    tokens = read(whole.path / "ledger.json")["splits"]["train"]["total"]["num_tokens"]
    assert whole.printed["num_train_tokens"] == NUM_EPOCHS * tokens
    assert sum(step["tokens"] for step in read_steps(whole.path)) == NUM_EPOCHS * tokens
    speed = whole.printed["num_train_tokens"] / whole.printed["seconds"]["train"]
    assert whole.printed["train_tokens_per_second"] == pytest.approx(speed)


def test_every_choice_has_its_reason(whole: Whole) -> None:
    reasons = {each["name"]: each["why"] for each in whole.printed["choices"]}
    assert set(reasons) == {
        *("model.precision", "model.max_length", "threads"),
        *("engine.batch_tokens", "engine.gradient_checkpointing", "engine.compile"),
    }
    assert all(reasons.values())
    assert "GFLOP/s" in reasons["model.precision"]


def test_steps_are_numbered_and_the_loss_falls(whole: Whole) -> None:
    steps = read_steps(whole.path)
    assert [step["step"] for step in steps] == list(range(1, 3 * NUM_EPOCHS + 1))
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert max(step["learning_rate"] for step in steps) == pytest.approx(0.01, rel=0.2)


def test_transformers_alone_gives_the_saved_answers_and_their_score(whole: Whole) -> None:
    tokenizer = AutoTokenizer.from_pretrained(whole.path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(whole.path / "model")
    labels = {row["text"]: row["label"] for row in good_rows()}
    texts = read(whole.path / "model" / "probes.json")["texts"]
    with torch.inference_mode():
        logits = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
    answers = [model.config.id2label[int(each.argmax())] for each in logits]
    lines = (whole.path / "predictions" / "after.jsonl").read_text(encoding="utf-8").splitlines()
    assert answers == [json.loads(line)["answer"] for line in lines]
    expected = accuracy_score([labels[text] for text in texts], answers)
    assert whole.printed["after"]["accuracy"]["value"] == pytest.approx(expected)


def test_a_run_is_kept_unless_it_is_to_be_replaced(
    whole: Whole, capsys: pytest.CaptureFixture[str], tiny_folder: MakeTiny
) -> None:
    before = (whole.path / "results.json").read_bytes()
    assert tune(whole.data, whole.path, "--model", str(tiny_folder("llama"))) == 2
    assert "holds a run already. Use `--resume`" in capsys.readouterr().err
    assert (whole.path / "results.json").read_bytes() == before


def test_resuming_a_finished_run_trains_nothing_and_gives_the_same_results(
    whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("asked or trained again")

    for name in ("fit", "answer_untuned", "certify", "save_model"):
        monkeypatch.setattr(f"lushan.workflows.tune.{name}", fail)
    assert tune(whole.data, whole.path, "--resume") == 0
    again = read(whole.path / "results.json")
    for changing in ("seconds", "peak_rss_bytes"):
        del again[changing]
    assert again == {name: whole.printed[name] for name in again}


@pytest.mark.usefixtures("_without_fresh_process")
def test_overwrite_replaces_the_run(data: Path, tmp_path: Path, tiny_folder: MakeTiny) -> None:
    options = ("--model", str(tiny_folder("llama")), *QUICK)
    assert tune(data, tmp_path / "run", *options) == 0
    (tmp_path / "run" / "mine.txt").write_text("old", encoding="utf-8")
    assert tune(data, tmp_path / "run", *options, "--adapter", "head", "--overwrite") == 0
    assert read(tmp_path / "run" / "results.json")["adapter"] == "head"
    assert not (tmp_path / "run" / "mine.txt").exists()


@pytest.mark.usefixtures("_without_fresh_process")
@pytest.mark.parametrize(
    ("model_type", "answer", "adapter"),
    [
        ("llama", "head", "head"),
        ("llama", "head", "lora"),
        ("gpt2", "head", "top:1"),
        ("llama", "generate", "full"),
        ("qwen2", "generate", "lora"),
        ("bert", "head", "lora"),
    ],
)
def test_every_adapter_and_answer_ends_in_a_certified_run(
    model_type: str,
    answer: str,
    adapter: str,
    *,
    data: Path,
    tmp_path: Path,
    tiny_folder: MakeTiny,
) -> None:
    options = ("--model", str(tiny_folder(model_type)), "--answer", answer, "--adapter", adapter)
    assert tune(data, tmp_path / "run", *QUICK, *options) == 0
    results = read(tmp_path / "run" / "results.json")
    assert (results["adapter"], results["answer"]) == (adapter, answer)
    assert (results["baselines"], results["seconds"]["baselines"]) == ({}, 0.0)
    assert read(tmp_path / "run" / "certificate.json")["largest_difference"] == 0.0


@pytest.mark.usefixtures("_without_fresh_process")
def test_texts_longer_than_the_limit_are_read_in_windows(
    data: Path, tmp_path: Path, tiny_folder: MakeTiny
) -> None:
    settings = ("--set", "data.over_length=window", "--set", "model.max_length=16")
    options = ("--model", str(tiny_folder("llama")), *settings)
    assert tune(data, tmp_path / "run", *QUICK, *options) == 0
    ledger = read(tmp_path / "run" / "ledger.json")["splits"]["train"]["total"]
    assert ledger["num_cut_tokens"] == 0
    assert ledger["num_tokens"] > 16 * ledger["num_examples"]


@pytest.mark.usefixtures("_without_fresh_process")
def test_top_trains_the_last_layer_and_leaves_the_first(
    data: Path, tmp_path: Path, tiny_folder: MakeTiny
) -> None:
    base = tiny_folder("llama")
    options = ("--adapter", "top:1", "--set", "training.learning_rate=0.01")
    assert tune(data, tmp_path / "run", "--model", str(base), *QUICK, *options) == 0
    before = load_file(base / "model.safetensors")
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    weight = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(before[weight.format(0)], after[weight.format(0)])
    assert not torch.equal(before[weight.format(1)], after[weight.format(1)])


@pytest.mark.usefixtures("_without_fresh_process")
@pytest.mark.parametrize("answer", ["head", "generate"])
def test_texts_with_several_labels_are_tuned_and_scored_by_f1(
    answer: str, tmp_path: Path, tiny_folder: MakeTiny
) -> None:
    rows = [
        {"text": row["text"], "label": [row["label"], "cold"] if number % 3 else [row["label"]]}
        for number, row in enumerate(good_rows())
    ]
    data = write_lines(tmp_path / "data.jsonl", rows)
    options = ("--model", str(tiny_folder("llama")), "--answer", answer)
    assert tune(data, tmp_path / "run", *QUICK, *options) == 0
    results = read(tmp_path / "run" / "results.json")
    assert results["main_metric"] == "micro_f1"
    assert results["labels"] == ["cold", "hill", "sea"]


@pytest.mark.usefixtures("_without_fresh_process")
def test_chinese_rows_and_labels_go_through_the_whole_run(
    tmp_path: Path, tiny_folder: MakeTiny
) -> None:
    rows = [{"text": text, "label": "海" if n < 6 else "山"} for n, text in enumerate(CHINESE)]
    data = write_lines(tmp_path / "data.jsonl", rows)
    assert tune(data, tmp_path / "run", "--model", str(tiny_folder("llama")), *QUICK) == 0
    results = read(tmp_path / "run" / "results.json")
    assert results["labels"] == ["山", "海"]
    assert "海" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert read(tmp_path / "run" / "model" / "config.json")["id2label"] == {"0": "山", "1": "海"}


@pytest.mark.usefixtures("_without_fresh_process")
def test_without_out_the_run_is_named_after_the_data(
    data: Path, tmp_path: Path, tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["tune", str(data), "--model", str(tiny_folder("llama")), *QUICK]) == 0
    assert Path("runs", "data-1", "results.json").is_file()
    assert next_run(data) == Path("runs", "data-2")
