"""The pre-flight: with and without a model."""

from pathlib import Path

import pytest

from lushan.errors import DataError, ModelError, SettingError
from lushan.workflows.check import check
from lushan.workflows.recipe import make_recipe
from tests.bad_inputs import good_rows, write_lines, write_splits
from tests.conftest import MakeTiny
from tests.tiny import write_class_model


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "data.jsonl", good_rows())


def test_without_a_model_rows_are_counted_and_the_missing_tokens_told(data: Path) -> None:
    told: list[str] = []
    findings = check(data, make_recipe(None, {}, []), tell=told.append)
    assert findings["num_examples"] == {"train": 34, "validation": 4, "test": 10}
    assert findings["ledger"]["splits"]["train"]["total"]["num_tokens"] == 0
    assert findings["has_model"] is False
    assert told == findings["notes"]
    assert "Tokens were not counted. Model `SmolLM2-135M-Instruct`" in told[-1]


def test_chinese_rows_for_the_default_model_are_told_also_where_it_is_missing(
    tmp_path: Path,
) -> None:
    rows = [{**row, "text": f"{'山' * 200} {row['text']}"} for row in good_rows()]
    data = write_lines(tmp_path / "data.jsonl", rows)
    notes = check(data, make_recipe(None, {}, ["data.overlap=keep"]), tell=lambda _: None)["notes"]
    assert [each for each in notes if "are Chinese, and `SmolLM2-135M-Instruct`" in each] == notes[
        -2:-1
    ]


def test_a_model_that_was_asked_for_must_be_there(data: Path) -> None:
    recipe = make_recipe(None, {"model": {"name": "SmolLM2-135M-Instruct"}}, [])
    with pytest.raises(ModelError, match="lushan models get SmolLM2-135M-Instruct"):
        check(data, recipe, tell=lambda _: None)


def test_with_a_model_every_token_is_counted(data: Path, tiny_folder: MakeTiny) -> None:
    recipe = make_recipe(None, {"model": {"name": str(tiny_folder("llama"))}}, [])
    findings = check(data, recipe, tell=lambda _: None)
    assert findings["has_model"] is True
    splits = findings["ledger"]["splits"]
    for split in splits.values():
        assert split["total"]["num_tokens"] > split["total"]["num_examples"]
        assert split["total"]["num_supervised"] == split["total"]["num_examples"]


def test_a_text_that_is_too_long_blocks_or_is_told_to_be_cut(
    data: Path, tiny_folder: MakeTiny
) -> None:
    model = {"name": str(tiny_folder("llama")), "max_length": 8}
    with pytest.raises(DataError, match="tokens"):
        check(data, make_recipe(None, {"model": model}, []), tell=lambda _: None)
    told: list[str] = []
    cut = make_recipe(None, {"model": model}, ["data.over_length=truncate"])
    check(data, cut, tell=told.append)
    assert "would be cut" in told[-1]


def test_truth_that_is_cut_off_is_told(tmp_path: Path, tiny_folder: MakeTiny) -> None:
    texts = [row["text"] for row in good_rows()]
    rows = [{"text": text, "entities": [[len(text) - 1, len(text), "x"]]} for text in texts]
    data = write_lines(tmp_path / "data.jsonl", rows)
    model = {"name": str(tiny_folder("llama")), "max_length": 8}
    recipe = make_recipe(None, {"task": "tagging", "model": model}, ["data.over_length=truncate"])
    found = check(data, recipe, tell=lambda _: None)
    for name in ("train", "test"):
        total = found["ledger"]["splits"][name]["total"]
        assert total["num_cut_truths"] == total["num_examples"] > 0
        line = f"{name}: of {total['num_examples']} rows the truth, or a part of it"
        assert any(each.startswith(line) for each in found["notes"])


def test_form_that_no_answer_can_have_blocks_by_its_row(tmp_path: Path) -> None:
    rows = [{"prompt": f"soup {n}", "completion": f"fox {n}"} for n in range(2)]
    bad = [rows[0], {**rows[1], "regex": "(?=a)b"}]
    data = write_splits(tmp_path, train=rows, validation=bad, test=rows)
    recipe = make_recipe(None, {"task": "completion", "data": {"overlap": "keep"}}, [])
    with pytest.raises(DataError, match=r"row 2: the form of the answer cannot be held"):
        check(data, recipe, tell=lambda _: None)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("adapter.method=lora", "`engine.spread_layers=true` does not work here: `--adapter lora`"),
        ("engine.compile=true", "`engine.compile=true` compiles whole layers"),
        ("task_settings.positive_label=lake", "is `lake`, but the training rows have the labels"),
    ],
)
def test_settings_that_no_run_takes_block_without_a_model(
    setting: str, message: str, data: Path
) -> None:
    recipe = make_recipe(None, {"engine": {"spread_layers": True}}, [setting])
    with pytest.raises(SettingError, match=message):
        check(data, recipe, tell=lambda _: None)


def test_tests_that_no_reference_passes_block(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"def f{n}():\n",
            "reference": f"    return {n}",
            "tests": f"assert f{n}() < {n}",
        }
        for n in range(12)
    ]
    data = write_lines(tmp_path / "data.jsonl", rows)
    recipe = make_recipe(None, {"task": "code", "task_settings": {"run_code": True}}, [])
    with pytest.raises(DataError, match="the reference does not pass its own tests: Assert"):
        check(data, recipe, tell=lambda _: None)


def test_spread_layers_are_told_to_need_processes_that_a_check_has_not(data: Path) -> None:
    recipe = make_recipe(None, {}, ["engine.spread_layers=true"])
    notes = check(data, recipe, tell=lambda _: None)["notes"]
    assert any("start the run with `torchrun" in each for each in notes)


def test_compiling_that_cannot_be_blocks(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "there is no compiler here"
    monkeypatch.setattr("lushan.workflows.resolve.why_impossible", lambda _: reason)
    with pytest.raises(SettingError, match=f"`engine.compile` is on, but {reason}"):
        check(data, make_recipe(None, {}, ["engine.compile=true"]), tell=lambda _: None)


def test_class_layer_is_told_of_and_one_in_the_place_of_output_weights_blocks_writing(
    data: Path, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    base = write_class_model(tiny_folder("llama"), tmp_path / "base", ("a", "b", "c"))
    recipe = make_recipe(None, {"model": {"name": str(base)}}, [])
    notes = check(data, recipe, tell=lambda _: None)["notes"]
    assert any("3 labels (`a`, `b`, `c`), which are not those" in each for each in notes)
    writing = make_recipe(None, {"model": {"name": str(base)}, "answer": "generate"}, [])
    with pytest.raises(SettingError, match="no weights that score the next token"):
        check(data, writing, tell=lambda _: None)


def test_encoder_whose_class_layer_is_not_known_blocks(data: Path, tiny_folder: MakeTiny) -> None:
    recipe = make_recipe(None, {"model": {"name": str(tiny_folder("deberta-v2"))}}, [])
    with pytest.raises(ModelError, match="class layer of `deberta-v2` is not supported"):
        check(data, recipe, tell=lambda _: None)
