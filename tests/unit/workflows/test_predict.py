"""Asking a tuned model: rows of files, and texts in memory."""

import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lushan.backbones.encoding import LengthLimit
from lushan.backbones.load import load_backbone
from lushan.catalog import load_task
from lushan.errors import DataError, RunError, SettingError
from lushan.inference.predict import Predictor
from lushan.records import TaskState
from lushan.workflows import predict as module
from lushan.workflows.predict import (
    Opened,
    check_input_stays,
    check_output,
    open_rows,
    open_run,
    predict,
    write_file,
)
from tests.bad_inputs import good_rows, write_lines, write_splits
from tests.conftest import MakeTiny


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "new.jsonl", [{"words": row["text"]} for row in good_rows()])


def ask(run: Path, data: Path, **options: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    lines: list[str] = []
    opened = open_run(run, options.pop("settings", None))
    predict(opened, data, write=lines.extend, **options)
    return [json.loads(line) for line in lines]


def test_rows_are_answered_in_order_by_the_column_that_the_run_was_tuned_on(
    tiny_run: Path, rows: Path
) -> None:
    answers = ask(tiny_run, rows)
    texts = [row["text"] for row in good_rows()]
    assert [each["row"] for each in answers] == list(range(1, len(texts) + 1))
    assert ask(tiny_run / "model", rows) == answers
    alone = [open_run(tiny_run).predict([text])[0] for text in texts[:5]]
    assert [each["answer"] for each in answers[:5]] == [each.answer for each in alone]


def test_chunks_change_nothing(tiny_run: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ask(tiny_run, rows)
    monkeypatch.setattr(module, "CHUNK_ROWS", 7)
    in_parts = ask(tiny_run, rows)
    assert [each["answer"] for each in in_parts] == [each["answer"] for each in whole]
    for one, other in zip(in_parts, whole, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)


def test_rows_that_were_answered_before_are_not_asked_again(
    tiny_run: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_ROWS", 7)
    whole = ask(tiny_run, rows)
    asked: list[int] = []
    facts: list[Any] = []

    def num_written(told: Any) -> int:  # noqa: ANN401
        facts.append(told)
        return 14

    rest = ask(tiny_run, rows, num_written=num_written, advance=asked.append)
    assert rest == whole[14:]
    assert (asked[0], sum(asked)) == (14, 48)
    assert (facts[0]["num_examples"], facts[0]["chunk_rows"]) == (48, 7)
    assert facts[0]["model_version"] == whole[0]["model_version"]


def test_lines_depend_on_the_rows_and_on_how_they_are_asked(
    tiny_run: Path, rows: Path, tmp_path: Path
) -> None:
    facts: list[Any] = []

    def stop(told: Any) -> int:  # noqa: ANN401
        facts.append(told)
        return told["num_examples"]

    other = write_lines(tmp_path / "other.jsonl", [{"words": "The boat."}])
    for data, policy in ((rows, "error"), (rows, "window"), (other, "error")):
        settings = {"data": {"over_length": policy}}
        assert ask(tiny_run, data, num_written=stop, settings=settings) == []
    assert facts[0]["rows"] == facts[1]["rows"] != facts[2]["rows"]
    assert [each["length_limit"]["policy"] for each in facts] == ["error", "window", "error"]


def test_a_file_without_labels_but_with_another_column_can_be_named(
    tiny_run: Path, tmp_path: Path
) -> None:
    data = write_lines(tmp_path / "new.jsonl", [{"body": "The boat sailed."}])
    with pytest.raises(DataError, match=r"says `words`, but there is no such column"):
        ask(tiny_run, data)
    assert len(ask(tiny_run, data, settings={"data": {"columns": {"text": "body"}}})) == 1


def test_empty_rows_are_left_out_and_told_and_the_others_keep_their_number(
    tiny_run: Path, tmp_path: Path
) -> None:
    data = write_lines(tmp_path / "new.jsonl", [{"words": "a"}, {"words": " "}, {"words": "b"}])
    told: list[str] = []
    assert [each["row"] for each in ask(tiny_run, data, tell=told.append)] == [1, 3]
    assert any("empty" in line for line in told)


def test_a_text_that_is_too_long_is_found_before_any_is_answered(
    tiny_run: Path, tmp_path: Path
) -> None:
    texts = ["short", "long " * 200]
    data = write_lines(tmp_path / "new.jsonl", [{"words": text} for text in texts])

    def never(lines: Iterable[str]) -> None:
        raise AssertionError(f"answered: {list(lines)}")

    with pytest.raises(DataError, match=r"new\.jsonl, row 2: \d+ tokens, but at most 128 fit"):
        predict(open_run(tiny_run), data, write=never)
    assert len(ask(tiny_run, data, settings={"data": {"over_length": "window"}})) == 2


def test_rows_that_are_cut_are_told_and_counted(tiny_run: Path, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "new.jsonl", [{"words": "short"}, {"words": "long " * 200}])
    told, lines = list[str](), list[str]()
    opened = open_run(tiny_run, {"data": {"over_length": "truncate"}})
    done = predict(opened, data, write=lines.extend, tell=told.append)
    assert done["num_cut_examples"] == 1
    assert [line for line in told if "cut" in line] == [
        "1 of 2 rows were longer than 128 tokens and were cut (`data.over_length=truncate`): the model answers from what is "
        "left of them."
    ]
    whole, cut = (json.loads(line) for line in lines)
    assert "num_cut_tokens" not in whole
    assert cut["num_cut_tokens"] > 0
    (found,) = opened.predict(["long " * 200])
    assert found.num_cut_tokens == cut["num_cut_tokens"]


def test_whole_rows_leave_nothing_to_tell(tiny_run: Path, rows: Path) -> None:
    told: list[str] = []
    done = predict(open_run(tiny_run), rows, write=list[str]().extend, tell=told.append)
    assert done["num_cut_examples"] == 0
    assert not any("cut" in line for line in told)


def test_progress_covers_every_row(tiny_run: Path, rows: Path) -> None:
    begun: list[int] = []
    done: list[int] = []
    ask(tiny_run, rows, begin=begun.append, advance=done.append)
    assert begun == [48]
    assert sum(done) == 48


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"training": {"epochs": 3}}, "training.epochs"),
        ({"data": {"overlap": "keep"}}, "data.overlap"),
        ({"seed": 3}, "seed"),
    ],
)
def test_a_setting_without_effect_is_refused(
    settings: dict[str, Any], name: str, tiny_run: Path
) -> None:
    with pytest.raises(SettingError, match=f"`{name}` has no effect here.*`data.columns`"):
        open_run(tiny_run, settings)


@pytest.fixture
def writing_run(tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Something that is taken for the folder of a run that writes its answers."""
    task = load_task("translation")
    backbone = load_backbone(tiny_folder("llama"), purpose="language")
    writer = Predictor(backbone, task, TaskState(), "generate", LengthLimit(128))
    monkeypatch.setattr(module, "read_meaning", lambda _: SimpleNamespace(task="translation"))
    monkeypatch.setattr(module, "load_predictor", lambda _, **__: writer)
    return Path("run")


@pytest.mark.parametrize(("given", "seed"), [({}, 7), ({"seed": 3}, 3)])
def test_seed_is_that_of_written_answers(
    given: dict[str, int], seed: int, writing_run: Path
) -> None:
    settings = {"generation": {"max_new_tokens": 5, **given}}
    opened = open_run(writing_run, settings, seed=7)
    assert opened.predictor.generation.seed == seed


def test_seed_changes_nothing_where_nothing_is_written(tiny_run: Path) -> None:
    assert open_run(tiny_run, seed=7).predictor.generation.seed == 0


def test_answers_as_long_as_the_context_are_refused(writing_run: Path) -> None:
    found = open_run(writing_run, {"generation": {"max_new_tokens": 127}}).predictor
    assert found.generation.max_new_tokens == 127
    with pytest.raises(SettingError, match=r"is 128, but the model's context is 128 tokens"):
        open_run(writing_run, {"generation": {"max_new_tokens": 128}})


@pytest.mark.parametrize(("lengths", "wanted"), [((), None), ((2, 4, 8), "long")])
def test_wanted_lengths_of_a_file_are_read_where_the_model_keeps_to_them(
    lengths: tuple[int, ...], wanted: str | None, tmp_path: Path
) -> None:
    predictor = SimpleNamespace(task=load_task("summarization"), state=TaskState(lengths=lengths))
    opened = Opened(None, cast("Predictor", predictor), "summarization", {}, {})
    file = write_lines(tmp_path / "new.jsonl", [{"document": "It rained.", "length": "long"}])
    rows = open_rows(opened, file, needs_target=False)
    assert [example.extra.get("length") for _, example in rows] == [wanted]
    assert any("`length` is not read" in note for note in rows.notes) == (not lengths)


def test_a_folder_without_a_test_file_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", [{"words": "a"}])
    with pytest.raises(DataError, match=r"no test file, only train\.jsonl"):
        open_rows(open_run(tiny_run), tmp_path, needs_target=False)


def test_texts_in_memory_are_answered_with_the_models_version(tiny_run: Path) -> None:
    model = open_run(tiny_run)
    (prediction,) = model.predict(["The boat sailed."])
    assert prediction.answer in model.labels == ("hill", "sea")
    assert prediction.model_version == model.version != ""
    assert sum(prediction.probabilities.values()) == pytest.approx(1.0)


def test_rows_in_memory_are_answered_as_texts_are(tiny_run: Path) -> None:
    opened = open_run(tiny_run)
    assert opened.predict([{"text": "a warm film"}]) == opened.predict(["a warm film"])
    with pytest.raises(DataError, match="text, row 2: column `text` must hold a text, got None"):
        opened.predict(["a warm film", {"body": "dull"}])


def test_one_text_in_place_of_a_list_is_refused(tiny_run: Path) -> None:
    with pytest.raises(DataError, match=r"Write `predict\(\['The boat'\]\)`"):
        open_run(tiny_run).predict("The boat")


def test_an_empty_text_is_refused_by_its_place(tiny_run: Path) -> None:
    with pytest.raises(DataError, match="text, row 2: column `text` must hold a text"):
        open_run(tiny_run).predict(["a", ""])


def test_output_that_is_there_is_refused_unless_it_may_be_replaced(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    check_output(file, overwrite=False)
    file.touch()
    with pytest.raises(RunError, match=r"answers\.jsonl` is there already"):
        check_output(file, overwrite=False)
    check_output(file, overwrite=True)
    with pytest.raises(RunError, match="is a folder"):
        check_output(tmp_path, overwrite=True)


def test_output_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RunError, match=r"notes\.txt` is a file\. Name a folder"):
        check_output(tmp_path / "notes.txt" / "answers.jsonl", overwrite=False)


def test_input_and_files_of_the_run_are_not_replaced(tmp_path: Path) -> None:
    run, data = tmp_path / "run", write_splits(tmp_path, train=[], validation=[], test=[])
    run.mkdir()
    for name in ("run/recipe.yaml", "answers.jsonl", "new.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "link.jsonl").symlink_to("new.jsonl")
    for out, source in (("link.jsonl", tmp_path / "new.jsonl"), ("test.jsonl", data)):
        with pytest.raises(RunError, match=rf"{out}` is the input itself"):
            check_input_stays(tmp_path / out, run=run, data=source)
    with pytest.raises(RunError, match=r"recipe\.yaml` is a file of the run"):
        check_input_stays(run / "recipe.yaml", run=run, data=data)
    for out in (None, tmp_path / "answers.jsonl", run / "answers.jsonl"):
        check_input_stays(out, run=run, data=data)


def test_a_failure_while_lines_are_made_leaves_no_file(tmp_path: Path) -> None:
    def lines() -> Iterable[str]:
        yield "first\n"
        raise DataError("row 2")

    with pytest.raises(DataError, match="row 2"):
        write_file(tmp_path / "new" / "answers.jsonl", lines())
    assert list((tmp_path / "new").iterdir()) == []
