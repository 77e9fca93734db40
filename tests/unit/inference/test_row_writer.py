"""New rows of a table: their form, whose labels they have, and what is shown to write them."""

import json
from collections import Counter
from itertools import permutations
from typing import Any

import pytest
from llguidance import LLMatcher

from lushan.backbones.load import Backbone, load_backbone
from lushan.errors import DataError, ModelError
from lushan.inference import row_writer
from lushan.inference.row_writer import rows_that_fit, schema_of, write_rows
from tests.conftest import MakeTiny

SWITCHES = [
    *({"on": True, "label": "hill"}, {"on": False, "label": "hill"}, {"on": True, "label": "hill"}),
    {"on": False, "label": "sea"},
]
"""Rows that end soon, whatever a random model writes."""


@pytest.fixture
def backbone(tiny_folder: MakeTiny) -> Backbone:
    return load_backbone(tiny_folder("llama"), purpose="language")


def test_new_rows_have_the_columns_of_the_others_and_every_label_as_often(
    backbone: Backbone,
) -> None:
    found = write_rows(backbone, SWITCHES, fixed=("label",), num_rows=8, seed=0)
    rows: list[dict[str, Any]] = [json.loads(each) for each in found]
    assert [list(row) for row in rows] == [["label", "on"]] * 8
    assert Counter(row["label"] for row in rows) == {"hill": 4, "sea": 4}
    assert {type(row["on"]) for row in rows} == {bool}


def test_draws_depend_on_the_seed_alone(backbone: Backbone) -> None:
    def drawn(seed: int) -> list[str]:
        return write_rows(backbone, SWITCHES, fixed=("label",), num_rows=16, seed=seed)

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_a_label_of_few_rows_is_shown_behind_rows_of_others(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def generate(_: object, prompts: list[str], *__: object, **___: object) -> list[object]:
        shown.extend(prompts)
        return []

    monkeypatch.setattr(row_writer, "generate", generate)
    write_rows(backbone, [SWITCHES[0], SWITCHES[3]], fixed=("label",), num_rows=2, seed=0)
    lines = {'{"label": "hill", "on": true}\n', '{"label": "sea", "on": false}\n'}
    assert set(shown) == {row_writer.OPENING + "".join(pair) for pair in permutations(lines)}


def test_rows_that_leave_no_room_to_write_are_not_shown(backbone: Backbone) -> None:
    rows = [{"text": "soup " * size, "label": "a"} for size in (2, 30, 3)]
    fitting = rows_that_fit(rows, backbone.tokenizer, context_tokens=128)
    assert fitting == [rows[0], rows[2]]
    assert len(write_rows(backbone, fitting, fixed=("label",), num_rows=3, seed=0)) == 3
    with pytest.raises(DataError, match=r"Every training row has 1.. tokens or more as JSON"):
        rows_that_fit(rows[1:2], backbone.tokenizer, context_tokens=128)


def test_an_encoder_cannot_write(tiny_folder: MakeTiny) -> None:
    backbone = load_backbone(tiny_folder("bert"), purpose="embed")
    with pytest.raises(ModelError, match="is an encoder"):
        write_rows(backbone, SWITCHES, fixed=("label",), num_rows=1, seed=0)


@pytest.mark.parametrize(
    ("accepted", "refused"),
    [
        ({"a": "x"}, {"a": 1}),
        ({"a": "x", "b": 3}, {"a": ""}),
        ({"a": "x", "b": 3}, {"a": "x", "b": 3.5}),
        ({"a": "x", "c": ["p", "q"]}, {"a": "x", "c": ["p", "q", "r", "s"]}),
        ({"a": "x", "c": [{"role": "user"}]}, {"a": "x", "c": [{"name": "user"}]}),
        ({"a": "x"}, {"a": "x", "d": True}),
    ],
)
def test_schema_accepts_rows_like_those_it_was_made_of(
    accepted: dict[str, Any], refused: dict[str, Any]
) -> None:
    rows = [{"a": "one"}, {"a": "two", "b": 2, "c": ["u", {"role": "v"}, "w"]}, {"a": "z", "c": []}]
    assert _accepts(schema_of(rows), accepted)
    assert not _accepts(schema_of(rows), refused)


def _accepts(schema: dict[str, Any], value: object) -> bool:
    """Ask llguidance about every byte."""
    from llguidance import LLTokenizer

    matcher = LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_json_schema(json.dumps(schema)))
    text = json.dumps(value).encode()
    return matcher.consume_tokens(list(text)) and matcher.is_accepting()


def test_rows_of_one_form_have_one_schema() -> None:
    assert schema_of([("a", "b"), ["c"]]) == {
        "type": "array",
        "minItems": 1,
        "maxItems": 2,
        "items": {"type": "string", "minLength": 1},
    }
    assert schema_of([1, None])["anyOf"] == [{"type": "integer"}, {"type": "null"}]
