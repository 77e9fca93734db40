"""Questions about texts: the nested files of SQuAD, and the answers of a row."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lushan.data.columns import unpacked
from lushan.errors import DataError
from lushan.records import Row, Span

ANSWER = "answer"
"""Label of a span that answers the question."""
NO_ANSWER = "no answer"
"""Class of a question whose text does not answer it, and what a model then writes."""
_NUM_SHOWN_CHARACTERS = 40


def is_squad(value: object) -> bool:
    """Whether a JSON value has the form of SQuAD's files: `data`, a list of articles with `paragraphs`."""
    articles = value.get("data") if isinstance(value, Mapping) else None
    return (
        isinstance(articles, list)
        and bool(articles)
        and all(isinstance(each, Mapping) and "paragraphs" in each for each in articles)
    )


def flat_rows(content: Mapping[str, Any], *, source: str) -> Iterator[dict[str, Any]]:
    """Give one flat row per question of a nested file, in order.

    Raises:
        DataError: If a part is missing or of another kind; says which.
    """
    for number, article in enumerate(content["data"], start=1):
        place = f"{source}, article {number}"
        for number_inside, paragraph in enumerate(_part(article, "paragraphs", place), start=1):
            inside = f"{place}, paragraph {number_inside}"
            for number_asked, asked in enumerate(_part(paragraph, "qas", inside), start=1):
                yield _flat(article, paragraph, asked, f"{inside}, question {number_asked}")


def _flat(
    article: Mapping[str, Any], paragraph: Mapping[str, Any], asked: object, place: str
) -> dict[str, Any]:
    if not isinstance(asked, Mapping):
        raise DataError(f"{place}: expected an object, found {_shown(asked)}.")
    return {
        "id": asked.get("id"),
        "title": article.get("title"),
        "context": paragraph.get("context"),
        "question": asked.get("question"),
        "answers": [] if asked.get("is_impossible") is True else asked.get("answers"),
    }


def _part(value: object, name: str, place: str) -> Sequence[Any]:
    found = value.get(name) if isinstance(value, Mapping) else None
    if not isinstance(found, list):
        raise DataError(
            f"{place}: expected an object with a list `{name}`, as SQuAD's files have it, found {_shown(value)}."
        )
    return found


def read_answers(row: Row, context: str) -> list[Span] | list[str]:
    """Check the column `answers` of a row; each answer must stand at its place. Empty where there is none.

    Answers without any `answer_start` are texts of their own, which need not be in the context.

    Raises:
        DataError: If an answer does not fit its context; says which, and where it stands.
    """
    pairs = _pairs(row)
    if pairs and all(start is None for _, start in pairs):
        return [_read_free(row, number, text) for number, (text, _) in enumerate(pairs, start=1)]
    answers: list[Span] = []
    for number, (given, start) in enumerate(pairs, start=1):
        place = f"{row.place}: column `answers`, answer {number}"
        text = _checked_text(given, place)
        if isinstance(start, bool) or not isinstance(start, int) or start < 0:
            raise DataError(
                f"{place}: `answer_start` must be a number of characters from 0, got {_shown(start)}."
            )
        end = start + len(text)
        if context[start:end] != text:
            raise DataError(
                f"{place}: {_shown(text)} is not at character {start:,} of its context; there stands "
                f"{_shown(context[start:end])}. {_where(text, context)}"
            )
        answers.append(Span(start, end, ANSWER, text))
    return answers


def _read_free(row: Row, number: int, text: object) -> str:
    place = f"{row.place}: column `answers`, answer {number}"
    text = _checked_text(text, place).strip()
    if text.casefold() == NO_ANSWER:
        raise DataError(
            f"{place}: {_shown(text)} is what a model writes where there is none. Give an empty list."
        )
    return text


def _checked_text(text: object, place: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise DataError(
            f"{place}: expected a text, got {_shown(text)}. For a question without an answer give an empty list."
        )
    return text


def _pairs(row: Row) -> list[tuple[Any, Any]]:
    """The texts and starts of either form: lists of both, or a list of pairs; None where texts have no place."""
    value = unpacked(row.values.get("answers"))
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start")
        if isinstance(texts, list | tuple) and starts is None:
            return [(text, None) for text in texts]
        if isinstance(texts, list | tuple) and isinstance(starts, list | tuple):
            if len(texts) == len(starts):
                return list(zip(texts, starts, strict=True))
            raise DataError(
                f"{row.place}: column `answers` has {len(texts)} text(s), but {len(starts)} `answer_start`."
            )
    if isinstance(value, list | tuple) and all(isinstance(each, Mapping) for each in value):
        return [(each.get("text"), each.get("answer_start")) for each in value]
    if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
        return [(text, None) for text in value]
    raise DataError(
        f'{row.place}: column `answers` must hold {{"text": [...], "answer_start": [...]}} or a list of '
        f'{{"text": ..., "answer_start": ...}}, or a list of texts that need not be in the context, got '
        f"{_shown(row.values.get('answers'))}."
    )


def _where(text: str, context: str) -> str:
    found = context.find(text)
    if found < 0:
        return "It stands nowhere in it: answers must be parts of the context, letter by letter."
    return f"It first stands at character {found:,}."


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _NUM_SHOWN_CHARACTERS else f"{shown[:_NUM_SHOWN_CHARACTERS]}..."
