"""Two marked parts of a text: `The <e1>fire</e1> was caused by <e2>lightning</e2>.`, as SemEval-2010 Task 8 writes them."""

from collections.abc import Mapping
from typing import Any

from lushan.data.columns import unpacked
from lushan.errors import DataError
from lushan.records import Row

Place = tuple[int, int]

HEAD_MARKS = ("<e1>", "</e1>")
TAIL_MARKS = ("<e2>", "</e2>")
_MARKS = (*HEAD_MARKS, *TAIL_MARKS)


def read_pair(row: Row) -> str:
    """Give the text of a row with its head and tail marked.

    The columns `head` and `tail` say where they are: objects with `start` and `end` (a `text` is compared), or
    lists of these two, in characters. Without both columns the text must have the marks in it.

    Raises:
        DataError: If the text is missing, or a span is empty, outside of it, or overlaps the other.
    """
    text = row.values.get("text")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{row.place}: column `text` must hold a text, got {text!r}.")
    given = {name: row.values.get(name) for name in ("head", "tail")}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == 2:
        _check_marks(text, row)
        return text
    if missing:
        raise DataError(f"{row.place}: column `{missing[0]}` is empty. Give every row both spans.")
    if found := [mark for mark in _MARKS if mark in text]:
        raise DataError(
            f"{row.place}: column `text` has the mark `{found[0]}`, but `head` and `tail` are given too. Give "
            "one of them: the spans, or the marks."
        )
    head, tail = (_span(row, name, value, text) for name, value in given.items())
    if head[0] < tail[1] and tail[0] < head[1]:
        raise DataError(
            f"{row.place}: `head` [{head[0]}, {head[1]}) and `tail` [{tail[0]}, {tail[1]}) overlap. Give two "
            "separate spans, or take the row out."
        )
    return _marked(text, head, tail)


def places_of(text: str) -> tuple[Place, Place] | None:
    """Give the characters between the marks of the head and of the tail; None where a text has no marks."""
    if HEAD_MARKS[0] not in text:
        return None
    head, tail = (
        (text.index(opening) + len(opening), text.index(closing))
        for opening, closing in (HEAD_MARKS, TAIL_MARKS)
    )
    return head, tail


def without_marks(text: str) -> str:
    """Give a text as it is without marks."""
    for mark in _MARKS:
        text = text.replace(mark, "")
    return text


def _marked(text: str, head: Place, tail: Place) -> str:
    for (start, end), (opening, closing) in sorted(
        ((head, HEAD_MARKS), (tail, TAIL_MARKS)), reverse=True
    ):
        text = f"{text[:start]}{opening}{text[start:end]}{closing}{text[end:]}"
    return text


def _check_marks(text: str, row: Row) -> None:
    for mark in _MARKS:
        if text.count(mark) != 1:
            raise DataError(
                f"{row.place}: column `text` has the mark `{mark}` {text.count(mark)} times, and there is no `head` "
                'and `tail`. Give both as {"start": 4, "end": 8}, in characters, or mark them once each: '
                "`<e1>...</e1>` and `<e2>...</e2>`."
            )
    found = sorted((text.index(mark), mark) for mark in _MARKS)
    order = tuple(mark for _, mark in found)
    if order not in {HEAD_MARKS + TAIL_MARKS, TAIL_MARKS + HEAD_MARKS}:
        raise DataError(
            f"{row.place}: column `text` has the marks in the order {' '.join(order)}: spans may not overlap."
        )
    for opening, closing in (HEAD_MARKS, TAIL_MARKS):
        inside = text[text.index(opening) + len(opening) : text.index(closing)]
        if not inside.strip():
            raise DataError(f"{row.place}: column `text`: {opening}{inside}{closing} is empty.")


def _span(row: Row, name: str, value: object, text: str) -> Place:
    where = f"{row.place}: column `{name}`"
    start, end, expected = _parts(value, where)
    if not 0 <= start < end <= len(text):
        what = "is empty" if 0 <= start == end <= len(text) else "is not inside its text"
        raise DataError(
            f"{where}: [{start}, {end}) {what} of {len(text)} characters. Spans count characters from 0, and `end` is "
            "excluded."
        )
    chosen = text[start:end]
    if not chosen.strip():
        raise DataError(f"{where}: [{start}, {end}) holds only spaces.")
    if expected is not None and expected != chosen:
        raise DataError(
            f"{where}: its `text` is {expected!r}, but [{start}, {end}) of the row's text is {chosen!r}. "
            "Spans count characters, not bytes or words."
        )
    return start, end


def _parts(value: object, where: str) -> tuple[int, int, Any]:
    """Give start, end, and the text that the row says is there, if it does."""
    shown, parts, expected = repr(value)[:80], list[Any](), None
    value = unpacked(value)
    if isinstance(value, Mapping):
        parts = [value.get("start"), value.get("end")]
        expected = value.get("text")
    elif isinstance(value, list | tuple):
        parts = list(value)
    whole = [each for each in parts if isinstance(each, int) and not isinstance(each, bool)]
    if len(parts) != 2 or len(whole) != 2:
        raise DataError(
            f'{where}: expected {{"start": 4, "end": 8}} or [4, 8], whole numbers of characters, got {shown}.'
        )
    return whole[0], whole[1], expected
