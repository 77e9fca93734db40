"""Settings: what is refused, and how the message says it."""

import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import Field

from lushan.errors import SettingError
from lushan.settings import (
    Settings,
    build,
    load_yaml,
    merged,
    nested,
    parse_assignments,
    read_yaml,
    written_yaml,
)


class Inner(Settings):
    """A part."""

    rate: float = Field(default=0.5, gt=0)
    """How fast."""
    epochs: int = 3
    """How long."""


class Outer(Settings):
    """A recipe."""

    name: str = "a"
    """What it is called."""
    inner: Inner = Inner()
    """The part."""


def test_nothing_given_gives_the_defaults() -> None:
    assert build(Outer, {}, source="a.yaml") == Outer(name="a", inner=Inner(rate=0.5, epochs=3))


def test_line_below_a_setting_is_its_description() -> None:
    assert Inner.model_fields["rate"].description == "How fast."


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nam": "b"}, r"a\.yaml: unknown setting `nam`\. Known there: name, inner\."),
        ({"inner": {"rat": 1.0}}, r"unknown setting `inner\.rat`\. Known there: rate, epochs\."),
        ({"inner": {"epoch": 3}}, r"`inner\.epoch`\. .*\. Did you mean `inner\.epochs`\?$"),
        ({"iner": {"epochs": 3}}, r"`iner`\. .*\. Did you mean `inner`\?$"),
        ({"epochs": 3}, r"`epochs`\. .*\. Did you mean `inner\.epochs`\?$"),
        ({"unlike": 3}, r"`unlike`\. Known there: name, inner\.$"),
        ({"inner": {"rate": -1.0}}, r"`inner\.rate` is wrong: .*greater than 0\. Got -1\.0\."),
        ({"inner": {"epochs": "3"}}, r"`inner\.epochs` is wrong: .*integer\. Got '3'\."),
        ({"inner": {"epochs": 2.5}}, r"`inner\.epochs` is wrong: .*Got 2\.5\."),
        ({"inner": {"rate": "1e-3"}}, r"`inner\.rate` is wrong: .*Got '1e-3'\. Write 1\.0e-03"),
        ({"inner": {"rate": float("inf")}}, r"`inner\.rate` is wrong: .*finite number\. Got inf\."),
        ({"inner": 3}, r"`inner` is wrong: .* such as `inner\.NAME=VALUE`\. Got 3\."),
    ],
)
def test_wrong_setting_is_refused_with_its_place_and_value(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        build(Outer, values, source="a.yaml")


def test_text_that_was_read_as_something_else_needs_quotes_of_its_own() -> None:
    with pytest.raises(
        SettingError, match=r"`name` is wrong: .*Got True\. .* quotes of its own: `N"
    ):
        build(Outer, parse_assignments(["name=yes"]), source="--set")
    assert build(Outer, parse_assignments(['name="yes"']), source="--set").name == "yes"


def test_whole_number_is_a_fair_way_to_write_a_float() -> None:
    assert build(Outer, {"inner": {"rate": 1}}, source="--set").inner.rate == 1.0


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        (["name=b"], {"name": "b"}),
        (["inner.rate=1e-3"], {"inner": {"rate": 0.001}}),
        (["inner.rate=2", "inner.epochs=4"], {"inner": {"rate": 2, "epochs": 4}}),
        (["inner.epochs=1", "inner.epochs=2"], {"inner": {"epochs": 2}}),
        (["name=a=b"], {"name": "a=b"}),
        (["name="], {"name": None}),
        (["a=true", "b=[1, 2]"], {"a": True, "b": [1, 2]}),
        (['a="1"', "b='1e-3'", "c=1e-3 # small"], {"a": "1", "b": "1e-3", "c": 0.001}),
    ],
)
def test_assignments_become_nested_values(assignments: list[str], expected: dict[str, Any]) -> None:
    assert parse_assignments(assignments) == expected


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("name", r"`--set name`: expected `part\.name=value`"),
        ("=3", r"`--set =3`: expected"),
        ("inner..rate=3", r"`--set inner\.\.rate=3`: expected"),
        ("name=2026-02-31", r"`2026-02-31` is no YAML value"),
        ("name=[1", r"`--set name=\[1`: `\[1` is no YAML value"),
    ],
)
def test_assignment_that_is_none_is_refused(assignment: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        parse_assignments([assignment])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"b: 1\na: [1",
            r"recipe\.yaml` is not valid YAML: line 2, column 6: expected ',' or ']'.*\.$",
        ),
        (b"- a\n- b\n", r"recipe\.yaml` must hold `name: value` lines; got list\.$"),
        (b"a: \xff\xfe", r"recipe\.yaml` is not valid YAML"),
        (b"a: \x00", r"recipe\.yaml` is not valid YAML: unacceptable character.*\.$"),
        (b"a: 1\nb: {c: 1, d: 2,\n  c: 1}\n", r"YAML: line 3, column 3: `c` stands there twice\.$"),
        (b"[" * 5000, r"recipe\.yaml` is not valid YAML: .*recursion.*\.$"),
    ],
)
def test_file_that_holds_no_settings_is_refused(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(SettingError, match=message):
        read_yaml(tmp_path / "recipe.yaml")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"`.*nowhere\.yaml` does not exist"):
        read_yaml(tmp_path / "nowhere.yaml")
    with pytest.raises(SettingError, match=r"is a folder\. Name a YAML file\."):
        read_yaml(tmp_path)


def test_file_may_be_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writing = partial((tmp_path / "pipe").write_text, "a: 1\n", encoding="utf-8")
    threading.Thread(target=writing, daemon=True).start()
    assert read_yaml(tmp_path / "pipe") == {"a": 1}


def test_settings_survive_yaml(tmp_path: Path) -> None:
    made = Outer(name="b", inner=Inner(rate=1e-5, epochs=7))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(made.model_dump()), encoding="utf-8")
    assert build(Outer, read_yaml(tmp_path / "recipe.yaml"), source="recipe.yaml") == made


def test_empty_file_gives_nothing(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("", encoding="utf-8")
    assert read_yaml(tmp_path / "recipe.yaml") == {}


def test_merging_keeps_what_is_not_overwritten_and_changes_nothing_in_place() -> None:
    base = {"inner": {"rate": 1.0, "epochs": 3}}
    assert merged(base, {"inner": {"epochs": 4}}) == {"inner": {"rate": 1.0, "epochs": 4}}
    assert base == {"inner": {"rate": 1.0, "epochs": 3}}


def test_names_with_dots_become_nested_values() -> None:
    flat = {"training.epochs": 3, "seed": 1, "data.columns.text": "body", "training.patience": 2}
    assert nested(flat) == {
        "training": {"epochs": 3, "patience": 2},
        "seed": 1,
        "data": {"columns": {"text": "body"}},
    }


@pytest.mark.parametrize("nothing", ["null", "None", "~", ""])
def test_nothing_is_written_as_in_yaml_or_python(nothing: str) -> None:
    assert parse_assignments([f"task.instruction={nothing}"]) == {"task": {"instruction": None}}
    assert parse_assignments(["task.instruction=None of it"])["task"]["instruction"] == "None of it"


@pytest.mark.parametrize(
    "text", ["None", "null", "~", "", "true", "1e-3", "2026-02-31", "None of it", "a\x85b\u2028"]
)
def test_text_is_written_so_that_it_is_read_as_the_same_text(text: str) -> None:
    values = {"name": text, text: [text, None]}
    assert load_yaml(written_yaml(values)) == values
