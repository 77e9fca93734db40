"""Findings and errors of the data in Chinese: every one that the code can raise, with its values in their places."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import lushan
from lushan.catalog import load_task
from lushan.data.checks import check_parts
from lushan.data.splits import Parts
from lushan.errors import DataError
from lushan.records import Example
from lushan.serving.page.messages import translated
from lushan.workflows.check import check
from lushan.workflows.prepare import prepare
from lushan.workflows.recipe import make_recipe
from tests.bad_inputs import BAD_INPUTS, BadInput, good_rows, write_lines
from tests.conftest import MakeTiny

SOURCE = Path(lushan.__file__).parent
CHECKS = (
    *SOURCE.glob("data/*.py"),
    *SOURCE.glob("tasks/*.py"),
    *SOURCE.glob("*_answers.py"),
    SOURCE / "conversations.py",
    *(SOURCE / "backbones" / name for name in ("branches.py", "chat_encoding.py")),
    *(SOURCE / "workflows" / name for name in ("prepare.py", "check.py")),
    *(SOURCE / "serving" / "page").glob("*.py"),
)
TABLE: dict[str, str] = json.loads(
    (SOURCE / "serving" / "page" / "messages" / "zh.json").read_text(encoding="utf-8")
)
ERRORS = ("DataError", "TooLongError", "RunError")
NOT_OURS = {"{}: {}", "{}"}
"""Passes on what another error says."""


def templates(node: ast.AST) -> Iterator[str]:
    """Give the text of an f-string or a text, with `{}` for each value."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=parts):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts
            )
        case _:
            pass


def raised() -> Iterator[str]:
    for file in CHECKS:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id=name), args=[said, *_]) if name in ERRORS:
                    yield from templates(said)
                case _:
                    pass


def test_every_error_of_the_data_has_a_translation() -> None:
    known = set(raised())
    assert len(known) > 120
    assert known - NOT_OURS - TABLE.keys() == set()


def test_translation_has_places_for_values_that_are_there() -> None:
    for english, told in TABLE.items():
        places = {int(place) for place in re.findall(r"{(\d+)}", told)}
        assert places <= set(range(english.count("{}"))), english
        assert re.search("[\u4e00-\u9fff]", told), english


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            "a.csv, row 12: column `label` is empty. Give every row a label.",
            "a.csv \u7b2c 12 \u884c\uff1a`label` \u5217\u4e3a\u7a7a\u3002\u8bf7\u7ed9\u6bcf\u4e00\u884c\u4e00\u4e2a\u6807\u7b7e\u3002",
        ),
        (
            'a.jsonl, row 2: expected an object like {"text": ..., "label": ...}, found list. '
            "A list of objects belongs into a .json file.",
            'a.jsonl \u7b2c 2 \u884c\uff1a\u5e94\u4e3a {"text": ..., "label": ...} \u8fd9\u6837\u7684\u5bf9\u8c61\uff0c\u5374\u662f list\u3002'
            "\u5bf9\u8c61\u5217\u8868\u5e94\u653e\u5728 .json \u6587\u4ef6\u4e2d\u3002",
        ),
        (
            "Not read: `a.csv`. A split has one file, called `train`, `validation` or `test`, such as `test.csv`.",
            "\u6ca1\u6709\u8bfb\u53d6\uff1a`a.csv`\u3002\u6bcf\u4e2a\u90e8\u5206\u53ea\u6709\u4e00\u4e2a\u6587\u4ef6\uff0c\u540d\u4e3a `train`\u3001"
            "`validation` \u6216 `test`\uff0c\u4f8b\u5982 `test.csv`\u3002",
        ),
        (
            "Most letters of the training texts are Chinese, and `A` is for English alone. `--model B` reads Chinese; "
            "`lushan models get B` fetches it.",
            "\u8bad\u7ec3\u6587\u672c\u7684\u5b57\u5927\u591a\u662f\u4e2d\u6587\uff0c\u800c `A` \u53ea\u9002\u7528\u4e8e\u82f1\u6587\u3002`B` \u80fd\u8bfb\u4e2d\u6587\uff08`--model B`\uff09\uff0c\u7528 "
            "`lushan models get B` \u53d6\u5f97\u3002",
        ),
        ("Nobody has said this.", "Nobody has said this."),
    ],
)
def test_message_is_said_in_chinese_and_otherwise_as_it_is(message: str, told: str) -> None:
    assert translated(message, "zh") == told
    assert translated(message, "en") == message


@pytest.mark.parametrize("bad", BAD_INPUTS, ids=lambda bad: bad.name)
def test_bad_data_is_refused_in_chinese(bad: BadInput, tmp_path: Path) -> None:
    recipe = make_recipe(None, {}, bad.settings)
    with pytest.raises(DataError) as caught:
        prepare(bad.build(tmp_path), task=load_task(bad.task), recipe=recipe)
    told = translated(str(caught.value), "zh")
    assert told != str(caught.value)
    assert not re.search(r"[a-z]+ [a-z]+ [a-z]+\. ", told), told


def test_findings_of_a_check_are_all_in_chinese(tmp_path: Path, tiny_folder: MakeTiny) -> None:
    rows = [{**row, "label": f" {row['label']}"} for row in good_rows()]
    rows += [
        {"body": f"A text of its own, {word}.", "label": "Rare"} for word in ("a", "b", "c", "d")
    ]
    rows += [{"text": "", "label": ""}] * 2
    rows = [
        {"body": row.get("text", row.get("body")), "label": row["label"], "number": 1}
        for row in rows
    ]
    table = write_lines(
        tmp_path / "a.jsonl", [*rows, *rows[:3], {**rows[0], "label": rows[1]["label"]}]
    )
    options = {"task": "classification", "model": {"name": str(tiny_folder("llama"))}}
    options["data"] = {"columns": {"text": "body"}}
    found = check(table, make_recipe(None, options, []), tell=lambda _: None)
    assert len(found["notes"]) >= 5
    english = [each for each in found["notes"] if translated(each, "zh") == each]
    assert english == []


def test_warnings_about_labels_are_in_chinese() -> None:
    def examples(name: str, labels: str) -> list[Example]:
        return [
            Example(f"{name}{n}", f"{name} {n % 40}", each, f"{name}.csv, row {n}")
            for n, each in enumerate(labels)
        ]

    train = examples("train", "a" * 100 + "b" * 4 + "A" * 6)
    found = check_parts(Parts(train, examples("validation", "ab"), examples("test", "ab")))
    assert len(found.warnings) == 6
    assert [each for each in found.warnings if translated(each, "zh") == each] == []
    with pytest.raises(DataError) as caught:
        check_parts(Parts(train, examples("validation", "ab"), examples("test", "abc")))
    assert translated(str(caught.value), "zh").startswith(
        "test \u90e8\u5206\u6709 1 \u4e2a\u6807\u7b7e\u5728\u8bad\u7ec3\u6570\u636e\u4e2d\u4ece\u672a\u51fa\u73b0\uff1a`c` (1)\uff1b\u6700\u65e9\u89c1\u4e8e test.csv \u7b2c 2 \u884c\u3002"
    )
