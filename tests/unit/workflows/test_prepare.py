"""From files to checked parts with a ledger, for the real task."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from lushan.catalog import load_task
from lushan.data.splits import count_labels
from lushan.errors import DataError, SettingError
from lushan.records import SplitName
from lushan.workflows.prepare import Prepared, columns_for, draw, holds_lists, prepare
from lushan.workflows.recipe import TuneRecipe, make_recipe
from tests.bad_inputs import good_rows, write_lines, write_splits

TASK = load_task("classification")


def prepared(data: Path, *settings: str) -> Prepared:
    return prepare(data, task=TASK, recipe=make_recipe(None, {}, settings))


def splits(folder: Path, **changed: list[dict[str, Any]]) -> Path:
    parts = {
        name: good_rows(start=start, step=3)
        for start, name in enumerate(("train", "validation", "test"))
    }
    return write_splits(folder, **{**parts, **changed})


def test_given_splits_stay_as_they_are(tmp_path: Path) -> None:
    found = prepared(splits(tmp_path))
    assert [each.text for each in found.parts.test] == [
        row["text"] for row in good_rows(start=2, step=3)
    ]
    assert found.notes == []


def test_one_file_is_cut_into_three_and_told(tmp_path: Path) -> None:
    found = prepared(write_lines(tmp_path / "data.jsonl", good_rows()))
    sizes = {name: len(part) for name, part in found.parts.as_dict().items()}
    assert sizes == {"train": 34, "validation": 4, "test": 10}
    assert found.notes[0].startswith("No validation split: 4 of 48 rows were cut off for it")
    assert found.notes[1].startswith("No test split: 10 of 48 rows were cut off for it")


def test_split_that_gets_far_less_than_its_share_is_told(tmp_path: Path) -> None:
    enough = prepared(write_lines(tmp_path / "enough.jsonl", good_rows()))
    assert not any("belong together" in each for each in enough.notes)
    rows = [row for row in good_rows() if "wave" in row["text"] or "ridge" in row["text"]]
    rows += rows[:2] * 50
    found = prepared(write_lines(tmp_path / "data.jsonl", rows))
    told = [each for each in found.notes if "belong together" in each]
    assert told[0].startswith("The validation split has 2 rows in place of some 11: rows that")
    assert told[1].startswith("The test split has 2 rows in place of some 21: rows that")


def test_only_the_missing_split_is_cut_off(tmp_path: Path) -> None:
    data = splits(tmp_path)
    (data / "validation.jsonl").unlink()
    found = prepared(data)
    assert len(found.parts.test) == 16
    assert len(found.parts.train) + len(found.parts.validation) == 16


def test_a_given_validation_split_stays_where_the_test_split_is_missing(tmp_path: Path) -> None:
    data = splits(tmp_path)
    (data / "test.jsonl").unlink()
    found = prepared(data)
    assert len(found.parts.validation) == 16
    assert len(found.parts.train) + len(found.parts.test) == 16


@pytest.mark.parametrize("name", ["validation", "test"])
def test_share_of_a_split_that_has_a_file_is_refused(name: SplitName, tmp_path: Path) -> None:
    data = splits(tmp_path)
    message = rf"`data\.{name}_fraction` has no effect here: the data has a {name} file"
    with pytest.raises(SettingError, match=message):
        prepared(data, f"data.{name}_fraction=0.3")
    (data / f"{name}.jsonl").unlink()
    assert len(prepared(data, f"data.{name}_fraction=0.5").parts.as_dict()[name]) == 8


def test_usual_shares_are_no_mistake_where_each_split_has_a_file(tmp_path: Path) -> None:
    recipe = TuneRecipe.model_validate(TuneRecipe().model_dump())
    assert "test_fraction" in recipe.data.model_fields_set
    assert len(prepare(splits(tmp_path), task=TASK, recipe=recipe).parts.test) == 16


def test_the_seed_and_the_fractions_decide_the_cut(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "data.jsonl", good_rows())
    first, again, other = (
        [each.id for each in prepared(data, f"seed={seed}").parts.test] for seed in (0, 0, 1)
    )
    assert first == again != other
    assert len(prepared(data, "data.test_fraction=0.5").parts.test) == 24


def test_dropped_rows_stand_in_the_ledger_with_their_reason(tmp_path: Path) -> None:
    test = [
        *good_rows(start=2, step=3),
        *({"text": f"{n} more", "label": "sea"} for n in range(40)),
    ]
    train = [*good_rows(step=3), {"text": " ", "label": "sea"}, test[0], {**test[1]}]
    train[-1] = {**test[1], "text": test[1]["text"].replace(".", "!")}
    found = prepared(splits(tmp_path, train=train, test=test))
    ledger = found.ledger.splits["train"]
    assert ledger.num_dropped == {"empty": 1, "exact overlap": 1, "near overlap": 1}
    assert (ledger.num_read, ledger.total.num_examples) == (19, 16)
    assert sum(each.num_exact for each in found.ledger.overlap) == 1


def test_too_many_rows_are_drawn_per_label_told_and_counted(tmp_path: Path) -> None:
    found = prepared(splits(tmp_path), "data.max_train_rows=6")
    assert count_labels(found.parts.train) == {"sea": 3, "hill": 3}
    assert found.ledger.splits["train"].num_dropped == {"not drawn": 10}
    assert found.notes == [
        "6 of 16 training rows were drawn (`data.max_train_rows`).",
        "2 label(s) have fewer than 5 training rows: `hill`, `sea`.",
    ]


def test_warnings_are_those_of_the_rows_that_were_drawn(tmp_path: Path) -> None:
    rows = good_rows(step=3)
    found = prepared(splits(tmp_path, train=[*rows, *rows]))
    assert "train: 16 row(s) repeat a text of the same split; kept." in found.notes
    drawn = draw(found, 2, seed=0, why="a test")
    assert drawn.findings.labels["train"] == {"sea": 1, "hill": 1}
    assert list(drawn.findings.warnings) == drawn.notes[1:]
    assert not [each for each in drawn.notes if "repeat" in each]


def test_weights_are_advised_by_the_rows_that_were_drawn_where_the_task_has_some(
    tmp_path: Path,
) -> None:
    sea = [{"text": f"Text {number}.", "label": "sea"} for number in range(60)]
    hill = [row for row in good_rows(step=3) if row["label"] == "hill"]
    found = prepared(splits(tmp_path, train=[*sea, *hill[:2]]), "data.max_train_rows=40")
    assert found.notes[-1].startswith("The most frequent label has 39 training rows, the rarest 1;")
    unweighed = draw(replace(found, whole=None, weighs_classes=False), 30, seed=0, why="a test")
    assert not [each for each in unweighed.notes if "class_weights" in each]


def test_each_file_is_known_by_its_content(tmp_path: Path) -> None:
    new = [{**row, "text": f"{row['text']} Once more.", "augmented": True} for row in good_rows()]
    added = write_lines(tmp_path / "new.jsonl", new)
    (tmp_path / "data").mkdir()
    data = splits(tmp_path / "data")
    alone = prepared(data)
    both = prepared(data, f"data.added={added}", "data.overlap=keep")
    files = {name: data / f"{name}.jsonl" for name in alone.digests}
    assert list(files) == ["train", "validation", "test"]
    assert both.digests == {**alone.digests, "added": sha256(added.read_bytes()).hexdigest()}
    assert alone.digests == {
        name: sha256(file.read_bytes()).hexdigest() for name, file in files.items()
    }
    assert both.fingerprint != alone.fingerprint


def test_fewer_rows_are_drawn_of_all_and_not_of_those_that_were_drawn(tmp_path: Path) -> None:
    rows = good_rows(step=3)
    uneven = [row for row in rows if row["label"] == "hill"]
    uneven += [row for row in rows if row["label"] == "sea"][:4]
    data = splits(tmp_path, train=uneven)
    first = prepared(data, "data.max_train_rows=5")
    assert count_labels(first.parts.train) == {"hill": 3, "sea": 2}
    fewer = draw(first, 4, seed=0, why="a test")
    at_once = prepared(data, "data.max_train_rows=4")
    assert count_labels(fewer.parts.train) == {"hill": 3, "sea": 1}  # of 3 and 2, 2 and 2
    assert list(fewer.parts.train) == list(at_once.parts.train)
    assert fewer.ledger == at_once.ledger
    told = [each for each in fewer.notes if "drawn" in each]
    assert told == ["4 of 12 training rows were drawn (a test)."]


def test_a_draw_that_leaves_one_label_is_refused(tmp_path: Path) -> None:
    found = prepared(splits(tmp_path))
    message = r"1 of 16 training rows were to be drawn \(a test\): too few.*same label"
    with pytest.raises(DataError, match=message):
        draw(found, 1, seed=0, why="a test")


def test_label_whose_rows_were_all_taken_out_is_told_with_their_number(tmp_path: Path) -> None:
    rows = good_rows()
    gone = [{"text": "A text that stands in both.", "label": "Rare"}]
    data = write_splits(
        tmp_path, train=rows[:20] + gone, validation=rows[20:30] + gone, test=rows[30:]
    )
    message = (
        r"validation split has 1 label\(s\).* Before that, 1 training row\(s\) were .*\(1 exactly, 0 nearly\), such as "
        r"train\.jsonl, row 21 and validation\.jsonl, row 11\."
    )
    with pytest.raises(DataError, match=message):
        prepared(data)


def test_lists_of_labels_are_seen_and_told(tmp_path: Path) -> None:
    rows = [{**row, "label": [row["label"], "all"]} for row in good_rows()]
    found = prepared(write_lines(tmp_path / "data.jsonl", rows))
    assert found.multi_label
    assert {each.target for each in found.parts.train} == {("all", "sea"), ("all", "hill")}
    assert any("several labels" in note for note in found.notes)


def test_labels_joined_by_a_bar_are_several_unless_told_otherwise(tmp_path: Path) -> None:
    rows = [{**row, "label": f"{row['label']}|all"} for row in good_rows()]
    data = write_lines(tmp_path / "data.jsonl", rows)
    assert prepared(data).parts.train[0].target in {("all", "sea"), ("all", "hill")}
    assert any("cut into several labels at `|`" in note for note in prepared(data).notes)
    one = prepared(data, "task_settings.multi_label=false")
    assert one.parts.train[0].target in {"sea|all", "hill|all"}


def test_rows_have_several_labels_if_one_holds_a_list(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "bad"}, {"text": "b", "label": ["bad"]}]
    one, other = (write_lines(tmp_path / f"{n}.jsonl", rows[:n]) for n in (1, 2))
    assert not holds_lists(one, task=TASK, columns={})
    assert holds_lists(other, task=TASK, columns={})


def test_labels_that_are_a_list_as_json_are_several(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_text('text,label\na,bad\nb,"[""bad"", ""sad""]"\n', encoding="utf-8")
    assert holds_lists(file, task=TASK, columns={})


def test_labels_that_are_a_list_as_python_writes_it_are_refused_by_row(tmp_path: Path) -> None:
    rows = [{**row, "label": str([row["label"], "all"])} for row in good_rows()]
    data = write_lines(tmp_path / "data.jsonl", rows)
    with pytest.raises(
        DataError, match=r"data\.jsonl, row 1: `label` holds a list that is not JSON"
    ):
        prepared(data)
    bracketed = [{**row, "label": f"[{row['label']}]"} for row in good_rows()]
    found = prepared(write_lines(tmp_path / "data.jsonl", bracketed))
    assert {each.target for each in found.parts.train} == {"[sea]", "[hill]"}


def test_labels_joined_by_semicolons_are_several_only_when_asked(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "data.jsonl", [{"text": "a", "label": "x; y"}])
    assert not holds_lists(data, task=TASK, columns={})
    assert columns_for(TASK, multi_label=True).lists == ("label",)
    assert columns_for(TASK, multi_label=False).lists == ()


def test_a_column_named_length_means_a_wanted_one_only_where_lengths_are_kept_to(
    tmp_path: Path,
) -> None:
    rows = [
        {"document": f"Film {n} is long.", "summary": f"Long film {n}", "length": "1:37:05"}
        for n in range(20)
    ]
    data = write_lines(tmp_path / "data.jsonl", rows)
    task = load_task("summarization")
    found = prepare(data, task=task, recipe=make_recipe(None, {}, []))
    assert {each.extra.get("length") for each in found.parts.train} == {None}
    assert any("`length` is not read" in note and "length_control" in note for note in found.notes)
    controlled = make_recipe(None, {}, ["task_settings.length_control=true"])
    with pytest.raises(DataError, match=r"row 1: column `length` must hold `short`.*'1:37:05'"):
        prepare(data, task=task, recipe=controlled)


@pytest.mark.parametrize("form", ["messages", "conversations"])
def test_names_in_messages_that_are_not_read_are_told(form: str, tmp_path: Path) -> None:
    rows = [
        {
            form: [
                {"role": "user", "content": f"Where is fox {number}?", "id": number},
                {"role": "assistant", "content": f"Near tree {number}.", "audio": None},
            ]
        }
        for number in range(1, 13)
    ]
    rows[6][form][1] |= {"remark": "Far.", "weight": 1}
    data = write_lines(tmp_path / "talks.jsonl", rows)
    recipe = make_recipe(None, {}, ["data.overlap=keep"])
    found = prepare(data, task=load_task("dialogue"), recipe=recipe)
    assert [each for each in found.notes if "is not read" in each] == [
        f"talks.jsonl: `id` of a message in `{form}` is not read: 12 (first in row 1).",
        f"talks.jsonl: `remark` of a message in `{form}` is not read: 1 (first in row 7).",
    ]


def test_columns_are_mapped_by_a_setting(tmp_path: Path) -> None:
    rows = [{"body": row["text"], "kind": row["label"]} for row in good_rows()]
    data = write_lines(tmp_path / "data.jsonl", rows)
    found = prepared(data, "data.columns.text=body", "data.columns.label=kind")
    assert count_labels(found.parts.test) == {"sea": 5, "hill": 5}
