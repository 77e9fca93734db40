"""The form of a task: which fields a person fills in, and the row that they make.

Everything is taken from the task itself: its columns, and the kinds of values in its sample rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lushan.errors import DataError
from lushan.tasks import Task

Kind = Literal["text", "list", "part", "messages"]


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a form."""

    column: str
    """The task's name of it."""
    kind: Kind
    """`list` has one value a line; a `part` is some words of the first field; `messages` takes one of a user."""
    is_required: bool
    sample: str
    """What an example has there, as a person would write it."""


def fields_of(task: Task, *, length_control: bool = False) -> list[Field]:
    """List what is asked for when a task answers one row; what must be filled in comes first.

    Args:
        task: Whose columns.
        length_control: Whether the model learned to keep to a length that is wanted.
    """
    columns = task.columns if length_control else task.columns.without_lengths()
    asked = columns.asked
    sample = task.sample_rows()[0].values
    first = str(sample.get(asked.required[0], ""))
    fields: list[Field] = []
    for name in asked.names:
        kind = _kind_of(sample.get(name))
        text = _as_written(sample.get(name), kind, first)
        fields.append(Field(name, kind, is_required=name in asked.required, sample=text))
    return fields


def values_of(fields: Sequence[Field], written: Sequence[str]) -> dict[str, Any]:
    """Make the values of a row from what was written; fields that were left empty are left out.

    Raises:
        DataError: If a part is not in the text.
    """
    by_name = {
        field.column: text for field, text in zip(fields, written, strict=True) if text.strip()
    }
    first = by_name.get(fields[0].column, "")
    return {
        field.column: _as_value(by_name[field.column], field, first)
        for field in fields
        if field.column in by_name
    }


def _kind_of(value: object) -> Kind:
    if isinstance(value, Mapping):
        return "part"
    if isinstance(value, list) and value:
        return "messages" if isinstance(value[0], Mapping) else "list"
    return "text"


def _as_written(value: Any, kind: Kind, first: str) -> str:  # noqa: ANN401 - any value of a row
    match kind:
        case "part":
            return first[value["start"] : value["end"]]
        case "list":
            return "\n".join(value)
        case "messages":
            return next(each["content"] for each in reversed(value) if each["role"] == "user")
        case _:
            return "" if value is None else str(value)


def _as_value(text: str, field: Field, first: str) -> Any:  # noqa: ANN401 - any value of a row
    match field.kind:
        case "part":
            start = first.find(part := text.strip())
            if start < 0:
                raise DataError(
                    f"`{field.column}`: {part!r} does not stand in the text. Copy it from there."
                )
            return {"start": start, "end": start + len(part)}
        case "list":
            return [line.strip() for line in text.splitlines() if line.strip()]
        case "messages":
            return [{"role": "user", "content": text}]
        case _:
            return text
