"""New rows of a table, written by a decoder that is shown some of the table's own and held to their form."""

import json
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lushan.backbones.load import Backbone
from lushan.backbones.tokenizer import Tokenizer
from lushan.errors import DataError
from lushan.inference.generate import generate
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.grammar import Constraint

RowValues = Mapping[str, Any]

NUM_SHOTS = 6
"""Rows of the table in a prompt, where they fit."""
OPENING = "New rows of a table, as JSON:\n"
TEMPERATURE = 1.0
TOP_P = 0.9
"""Draws without the unlikely tail: a small model soon loses its thread in it."""
_ROOM = 1.25
"""Tokens that a new row may have, to those of the longest that is shown."""
_ONE_SPACE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON as `json.dumps` writes it; else a model may write spaces for ever."""


def write_rows(
    backbone: Backbone,
    rows: Sequence[RowValues],
    *,
    fixed: Sequence[str],
    num_rows: int,
    seed: int,
    advance: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """Write rows like these, as JSON; one that grew too long is cut and is then no JSON.

    Args:
        backbone: A causal language model.
        rows: What is shown, drawn anew for every prompt; values as JSON has them. See `rows_that_fit`.
        fixed: Columns whose values are not made up: each new row gets those of a row that there is, every value
            in turn, so that rare ones are written as often as others.
        num_rows: How many to write.
        seed: Of what is shown and of the draws.
        advance: Called with the number of rows that were written since the last call.

    Raises:
        DataError: If a row is too long.
        ModelError: If the model cannot write.
    """
    draw = random.Random(seed)
    prompts = _Prompts(rows, fixed, backbone.tokenizer, backbone.facts.context_tokens)
    keys = sorted(prompts.places)
    draw.shuffle(keys)
    turns = [keys[number % len(keys)] for number in range(num_rows)]
    answers = generate(
        backbone,
        [prompts.make(key, draw) for key in turns],
        GenerationSettings(
            max_new_tokens=prompts.max_new_tokens, temperature=TEMPERATURE, top_p=TOP_P, seed=seed
        ),
        constraint=[prompts.constraints[key] for key in turns],
        advance=advance,
    )
    return [each.text for each in answers]


def rows_that_fit(
    rows: Sequence[RowValues], tokenizer: Tokenizer, *, context_tokens: int
) -> list[RowValues]:
    """Give the rows that are short enough to be shown to a model that then writes one as long.

    Raises:
        DataError: If none is.
    """
    num_opening_tokens = len(tokenizer.encode([OPENING])[0].ids)
    most_tokens = int((context_tokens - num_opening_tokens - 1) / (1 + _ROOM))
    encoded = tokenizer.encode([_line(row) for row in rows])
    found = [row for row, each in zip(rows, encoded, strict=True) if len(each.ids) <= most_tokens]
    if not found:
        shortest = min(len(each.ids) for each in encoded)
        raise DataError(
            f"Every training row has {shortest} tokens or more as JSON; the model reads {context_tokens}, which is room "
            f"to show and to write rows of at most {most_tokens}. Choose a model that reads more."
        )
    return found


def _line(row: RowValues) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


class _Prompts:
    """Rows as lines of JSON, by the values of their fixed columns."""

    def __init__(
        self,
        rows: Sequence[RowValues],
        fixed: Sequence[str],
        tokenizer: Tokenizer,
        context_tokens: int,
    ) -> None:
        ordered = [_fixed_first(row, fixed) for row in rows]
        self._lines = [_line(row) for row in ordered]
        self._num_tokens = [len(each.ids) for each in tokenizer.encode(self._lines)]
        self.max_new_tokens = int(max(self._num_tokens) * _ROOM) + 1
        self._room = context_tokens - self.max_new_tokens - len(tokenizer.encode([OPENING])[0].ids)
        self.places: dict[str, list[int]] = defaultdict(list)
        """Fixed values, as JSON, to the rows that have them."""
        schema = schema_of(ordered)
        self.constraints: dict[str, Constraint] = {}
        for place, row in enumerate(ordered):
            values = {name: row[name] for name in fixed if name in row}
            key = json.dumps(values, ensure_ascii=False)
            self.places[key].append(place)
            if key not in self.constraints:
                known = {name: {"enum": [_plain(value)]} for name, value in values.items()}
                properties = {**schema["properties"], **known}
                self.constraints[key] = Constraint.json_schema({
                    **schema, "properties": properties, "x-guidance": _ONE_SPACE
                })  # fmt: skip

    def make(self, key: str, draw: random.Random) -> str:
        """Show rows with these fixed values; where there are few, behind some that have others."""
        members = self.places[key]
        chosen = draw.sample(members, min(NUM_SHOTS, len(members)))
        if len(chosen) < NUM_SHOTS:
            others = sorted(set(range(len(self._lines))) - set(members))
            chosen += draw.sample(others, min(NUM_SHOTS - len(chosen), len(others)))
        fitting, room = [], self._room
        for place in chosen:
            room -= self._num_tokens[place]
            if room < 0:
                break
            fitting.append(place)
        return OPENING + "".join(self._lines[place] for place in reversed(fitting))


def _fixed_first(row: RowValues, fixed: Sequence[str]) -> dict[str, Any]:
    """Order the columns so that what is fixed leads to what is written; leave out what has no value."""
    names = [*(name for name in fixed if name in row), *(name for name in row if name not in fixed)]
    return {name: row[name] for name in names if row[name] is not None}


def schema_of(values: Sequence[Any]) -> dict[str, Any]:
    """Give a JSON Schema of the form that these values have: their types, lengths of lists, and names in objects."""
    members: dict[type, list[Any]] = defaultdict(list)
    for each in map(_plain, values):
        members[type(each)].append(each)
    forms = [_form_of(kind, found) for kind, found in members.items()]
    return forms[0] if len(forms) == 1 else {"anyOf": forms}


def _plain(value: object) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def _form_of(kind: type, values: Sequence[Any]) -> dict[str, Any]:
    if kind is dict:
        names = dict.fromkeys(name for each in values for name in each)
        return {
            "type": "object",
            "properties": {
                name: schema_of([each[name] for each in values if name in each]) for name in names
            },
            "required": [name for name in names if all(name in each for each in values)],
            "additionalProperties": False,
        }
    if kind is list:
        sizes = [len(each) for each in values]
        items = [item for each in values for item in each]
        form = {"type": "array", "minItems": min(sizes), "maxItems": max(sizes)}
        return {**form, "items": schema_of(items)} if items else form
    if kind is str:
        return {"type": "string", "minLength": int(all(values))}
    names = {bool: "boolean", int: "integer", float: "number", type(None): "null"}
    return {"type": names[kind]}
