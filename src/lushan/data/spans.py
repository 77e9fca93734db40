"""Spans of a row, in either form that they are written in: characters of a text, or a tag for every token."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lushan.data.columns import looks_like_list, unpacked
from lushan.data.words import join_words, words_of
from lushan.errors import DataError
from lushan.records import Example, Row, Span

Place = tuple[int, int]

BEGIN, INSIDE, END, SINGLE = "B", "I", "E", "S"
_MARKS = {"B": BEGIN, "I": INSIDE, "E": END, "S": SINGLE, "L": END, "U": SINGLE}
"""BIO, BIOES, and BILOU's names for the last two."""


def read_spans(row: Row, *, needs_spans: bool) -> tuple[str, tuple[Span, ...] | None]:
    """Read the columns `text` and `entities`: objects with `start`, `end`, `label`, or lists of these three.

    The `text` of an object is compared with what stands at its place, if it is there.

    Raises:
        DataError: If the text is missing, or an entity is not inside it, is another text, overlaps another, or has no label.
    """
    text = row.values.get("text")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{row.place}: column `text` must hold a text, got {text!r}.")
    found = row.values.get("entities")
    if found is None:
        if needs_spans:
            raise DataError(
                f"{row.place}: column `entities` is empty. Give every row a list; `[]` where there are none."
            )
        return text, None
    listed = _listed(found)
    if listed is None:
        raise DataError(
            f"{row.place}: column `entities` must hold a list, got {_shown(found)}. Expected such as "
            '[{"start": 0, "end": 5, "label": "person"}], in characters.'
        )
    spans = sorted(
        (_span(row, number, value, text) for number, value in enumerate(listed, start=1)),
        key=lambda each: (each.start, each.end),
    )
    for one, other in itertools.pairwise(spans):
        if other.start < one.end:
            raise DataError(
                f"{row.place}: column `entities`: [{one.start}, {one.end}) `{one.label}` and [{other.start}, "
                f"{other.end}) `{other.label}` overlap. Keep one of them."
            )
    return text, tuple(spans)


def words_in(example: Example) -> list[Place]:
    """Give where the words of an example are: the tokens that its row gave, else those of its text."""
    given: Sequence[Sequence[int]] | None = example.extra.get("words")
    return words_of(example.text) if given is None else [(each[0], each[1]) for each in given]


def first_words(example: Example, num_characters: int) -> Example:
    """Give the example with those words alone that end within the first characters of its text; its truth stays."""
    words = [[start, end] for start, end in words_in(example) if end <= num_characters]
    text = example.text[: words[-1][1] if words else 0]
    return replace(example, text=text, extra={**example.extra, "words": words})


def _span(row: Row, number: int, value: object, text: str) -> Span:
    where = f"{row.place}: column `entities`, entity {number}"
    expected: Any = None
    if isinstance(value, Mapping):
        parts, expected = [value.get(name) for name in ("start", "end", "label")], value.get("text")
    else:
        parts = list(value) if isinstance(value, list | tuple) else []
    if len(parts) != 3:
        raise DataError(f"{where}: expected `start`, `end` and `label`, got {_shown(value)}.")
    start: Any
    end: Any
    start, end, label = parts
    if not _is_whole(start) or not _is_whole(end):
        raise DataError(
            f"{where}: `start` and `end` must be whole numbers, got {start!r} and {end!r}."
        )
    if not isinstance(label, str) or not label.strip():
        raise DataError(f"{where}: `label` must be a name, got {label!r}.")
    if not 0 <= start < end <= len(text):
        raise DataError(
            f"{where}: [{start}, {end}) is not inside its text of {len(text)} characters. Spans count "
            "characters from 0, and `end` is excluded."
        )
    chosen = text[start:end]
    if expected not in (None, "") and str(expected) != chosen:
        raise DataError(
            f"{where}: its `text` is {expected!r}, but [{start}, {end}) of the row's text is {chosen!r}. "
            "Spans count characters from 0, not bytes or words, and `end` is excluded."
        )
    if chosen != chosen.strip():
        raise DataError(f"{where}: [{start}, {end}) {chosen!r} begins or ends with a space.")
    return Span(start, end, label.strip(), chosen)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def read_tagged(row: Row, *, needs_tags: bool) -> tuple[str, list[Place], tuple[Span, ...] | None]:
    """Read the columns `tokens` and `tags`: lists, or texts cut at spaces.

    Returns:
        The tokens as one text, where each token is in it, and the entities.

    Raises:
        DataError: If a token is empty, or the tags are not as many as the tokens or make no sense.
    """
    tokens = _tokens(row)
    text, places = join_words(tokens)
    found = row.values.get("tags")
    if found is None:
        if needs_tags:
            raise DataError(f"{row.place}: column `tags` is empty. Give every token a tag.")
        return text, places, None
    tags = _cut(row, "tags")
    if tags is None:
        raise DataError(
            f"{row.place}: column `tags` must hold a list of tags, got {_shown(found)}."
        )
    if len(tags) != len(tokens):
        raise DataError(
            f"{row.place}: column `tags` has {len(tags)} tag(s) for {len(tokens)} token(s). Give each token one."
        )
    spans = [
        Span(places[first][0], places[last][1], label, text[places[first][0] : places[last][1]])
        for first, last, label in _entities(row, tags)
    ]
    return text, places, tuple(spans)


def _tokens(row: Row) -> list[str]:
    found = row.values.get("tokens")
    listed = _cut(row, "tokens")
    if not listed:
        raise DataError(
            f"{row.place}: column `tokens` must hold a list of tokens, got {_shown(found)}."
        )
    for number, token in enumerate(listed, start=1):
        if not isinstance(token, str) or not token or token != token.strip():
            raise DataError(
                f"{row.place}: column `tokens`, token {number}: expected a text without spaces around it, "
                f"got {token!r}."
            )
        if not _is_whole_text(token):
            raise DataError(
                f"{row.place}: column `tokens`, token {number} has half a character (a lone surrogate). Repair it."
            )
    return listed


def _is_whole_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _entities(row: Row, tags: Sequence[object]) -> Iterator[tuple[int, int, str]]:
    """Give the first and last token and the label of every entity."""
    first, label, is_open = 0, "", False
    for number, tag in enumerate(tags):
        mark, name = _parse(row, number, tag)
        continues = mark in (INSIDE, END)
        if continues and not (is_open and name == label):
            raise DataError(
                f"{row.place}: column `tags`, tag {number + 1}: `{tag}` does not follow `B-{name}` or `I-{name}`. "
                "Expected BIO (each entity begins with B-) or BIOES tags."
            )
        if is_open and not continues:
            yield first, number - 1, label
        if mark in (BEGIN, SINGLE):
            first, label = number, name
        is_open = mark in (BEGIN, INSIDE)
        if mark in (END, SINGLE):
            yield first, number, label
    if is_open:
        yield first, len(tags) - 1, label


def _parse(row: Row, number: int, tag: object) -> tuple[str, str]:
    """Give the mark and the name of a tag; both empty for `O`."""
    if tag == "O":
        return "", ""
    if isinstance(tag, str):
        mark, dash, name = tag.partition("-")
        if dash and name.strip() and mark in _MARKS:
            return _MARKS[mark], name.strip()
    raise DataError(
        f"{row.place}: column `tags`, tag {number + 1}: {tag!r} is no tag. Expected `O`, or `B-` or `I-` (or `E-`, "
        "`S-`) and the name of a type, such as `B-person`."
    )


def _listed(value: object) -> list[Any] | None:
    """Give a list: as it is, or as JSON; None if it is none."""
    found = unpacked(value)
    return list(found) if isinstance(found, list | tuple) else None


def _cut(row: Row, name: str) -> list[Any] | None:
    """Give the list of a column: as it is, as JSON, or a text cut at spaces; None if it is none."""
    value = row.values.get(name)
    listed = _listed(value)
    if listed is not None or not isinstance(value, str):
        return listed
    if looks_like_list(value):
        raise DataError(
            f"{row.place}: column `{name}` holds a list that is not JSON: {_shown(value)}. Write it with double "
            'quotes, such as ["a", "b"], or cut at spaces: a b.'
        )
    return value.split()


def _shown(value: object) -> str:
    return repr(value)[:80]
