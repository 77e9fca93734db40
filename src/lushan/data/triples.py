"""Triples of a row: what one part of its text is to another, each as `head`, `label`, `tail`."""

from collections.abc import Mapping, Sequence
from typing import Any

from lushan.data.columns import unpacked
from lushan.data.verbatim import Names, one_line
from lushan.errors import DataError
from lushan.records import Example, Mention, Row, Triple

_KEYS = (
    ("head", ("subject", "e1", "h")),
    ("label", ("relation", "predicate", "type", "r")),
    ("tail", ("object", "e2", "t")),
)
"""What an object calls the three parts; other names in brackets."""
_EXPECTED = '[{"head": "Ada", "label": "born in", "tail": "Ulm"}]'


def read_triples(row: Row, *, needs_triples: bool) -> tuple[str, tuple[Triple, ...] | None]:
    """Read the columns `text` and `triples`: objects with `head`, `label`, `tail`, or lists of these three.

    Head and tail are a text, which stands for its first place as whole words (else its first), or a place: `{"start": 0,
    "end": 3}`, whose `text` is compared if it is there, or `[0, 3]`.

    Raises:
        DataError: If the text is missing, or a head or tail is not in it, or there is no relation.
    """
    text = row.values.get("text")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{row.place}: column `text` must hold a text, got {text!r}.")
    found = row.values.get("triples")
    if found is None:
        if needs_triples:
            raise DataError(
                f"{row.place}: column `triples` is empty. Give every row a list; `[]` where there are none."
            )
        return text, None
    listed = unpacked(found)
    if not isinstance(listed, list | tuple):
        raise DataError(
            f"{row.place}: column `triples` must hold a list, got {repr(found)[:80]}. Expected such as {_EXPECTED}."
        )
    names = Names(Example("", text, None))
    triples = [_triple(row, number, value, names) for number, value in enumerate(listed, start=1)]
    return text, tuple(dict.fromkeys(triples))


def _triple(row: Row, number: int, value: object, names: Names) -> Triple:
    where = f"{row.place}: column `triples`, triple {number}"
    if isinstance(value, Mapping):
        parts = [_part(value, name, others, where) for name, others in _KEYS]
    else:
        parts = list(value) if isinstance(value, list | tuple) else []
    if len(parts) != len(_KEYS) or any(part is None for part in parts):
        raise DataError(
            f"{where}: expected `head`, `label` and `tail`, got {repr(value)[:80]}. Expected such as {_EXPECTED}."
        )
    head, label, tail = parts
    if not isinstance(label, str) or not label.strip():
        raise DataError(f"{where}: `label` must be the name of a relation, got {label!r}.")
    return Triple(
        _mention(head, names, f"{where}: `head`"),
        label.strip(),
        _mention(tail, names, f"{where}: `tail`"),
    )


def _part(value: Mapping[Any, Any], name: str, others: Sequence[str], where: str) -> object:
    given = [each for each in (name, *others) if value.get(each) is not None]
    if len(given) > 1:
        raise DataError(
            f"{where}: both `{given[0]}` and `{given[1]}` could be its {name}. Keep one of them."
        )
    return value[given[0]] if given else None


def _mention(value: Any, names: Names, where: str) -> Mention:  # noqa: ANN401 - any JSON value
    if isinstance(value, Mapping) and value.get("start") is None:
        value = value.get("text")
    if isinstance(value, str):
        return _found(one_line(value.strip()), names, where)
    expected = value.get("text") if isinstance(value, Mapping) else None
    start, end = _place(value, where)
    chosen = names.text[start:end]
    if not 0 <= start < end <= len(names.text) or chosen != chosen.strip():
        raise DataError(
            f"{where}: [{start}, {end}) {chosen!r} is no part of its text of {len(names.text)} characters, without "
            "spaces around it. Spans count characters from 0, and `end` is excluded."
        )
    if expected is not None and one_line(str(expected)) != chosen:
        raise DataError(
            f"{where}: its `text` is {expected!r}, but [{start}, {end}) of the row's text is {chosen!r}. "
            "Spans count characters, not bytes or words."
        )
    return Mention(chosen, start, end)


def _place(value: Any, where: str) -> tuple[int, int]:  # noqa: ANN401 - any JSON value
    place = [value.get("start"), value.get("end")] if isinstance(value, Mapping) else value
    parts = list(place) if isinstance(place, list | tuple) else []
    whole = [each for each in parts if isinstance(each, int) and not isinstance(each, bool)]
    if len(parts) != 2 or len(whole) != 2:
        raise DataError(
            f'{where}: expected a part of the text, {{"start": 4, "end": 8}} or [4, 8], got {repr(value)[:80]}.'
        )
    return whole[0], whole[1]


def _found(part: str, names: Names, where: str) -> Mention:
    start = next(names.places(part), names.text.find(part)) if part else -1
    if start < 0:
        raise DataError(
            f"{where}: {part!r} does not stand in the text, letter by letter. Write it as the text does, or take the "
            "triple out."
        )
    return Mention(part, start, start + len(part))
