"""Reads a JSON list value by value, so that a long list needs the memory of its longest value."""

import json
from collections.abc import Iterator

DECODER = json.JSONDecoder()
NOTHING = object()


class ListReader:
    """Takes the text of one list in pieces, cut where JSON allows space, such as at lines, or in a string, but in no escape."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._column = 0
        self._put_off: list[str] = []
        self._expected = "["
        self.is_inside_value = False
        """Whether a value has begun whose end is not read yet."""

    @property
    def is_complete(self) -> bool:
        """Whether the closing bracket was read."""
        return self._expected == ""

    @property
    def num_open_characters(self) -> int:
        """How much was read of a value that has begun, as far as it was decoded."""
        return len(self._text) - self._at

    def feed(self, text: str) -> Iterator[object]:
        """Give the values that are complete with this piece of text.

        What cannot end a value that has begun is put off, so that a value of many lines is not decoded at each of them.

        Raises:
            ValueError: If the text is no list; says why.
        """
        self._put_off.append(text)
        if self.is_inside_value and not _may_end_value(text):
            return
        line_start = self._text.rfind("\n", 0, self._at) + 1
        self._column = self._at - line_start + (0 if line_start else self._column)
        self._text, self._at = self._text[self._at :] + "".join(self._put_off), 0
        self._put_off.clear()
        self.is_inside_value = False
        while (value := self._next()) is not NOTHING:
            yield value

    def _next(self) -> object:
        while (mark := self._mark()) != "":
            if self._expected == "value" and mark != "]":
                return self._value()
            self._step(mark)
        return NOTHING

    def _mark(self) -> str:
        while self._text[self._at : self._at + 1] in {" ", "\t", "\r", "\n"}:
            self._at += 1
        return self._text[self._at : self._at + 1]

    def _value(self) -> object:
        try:
            value, self._at = DECODER.raw_decode(self._text, self._at)
        except json.JSONDecodeError as error:
            # A string without an end, and an error at the very end, mean that the value goes on in the next piece.
            is_cut = error.msg.startswith("Unterminated string")
            if is_cut or len(self._text[error.pos :].strip()) <= 1:
                self.is_inside_value = True
                return NOTHING
            if error.lineno == 1:
                error.colno += self._column
            raise
        except RecursionError:
            raise ValueError("nested too deeply") from None
        self._expected = ",]"
        return value

    def _step(self, mark: str) -> None:
        after = {
            ("[", "["): "value",
            (",]", ","): "value",
            (",]", "]"): "",
            ("value", "]"): "",
        }.get((self._expected, mark))
        if after is None:
            raise ValueError(f"found `{mark}` where the list needs {self._expected or 'its end'}")
        self._expected = after
        self._at += 1


def _may_end_value(text: str) -> bool:
    """Whether a closing bracket stands before the first or behind the last quote, where no text can hold it.

    A piece of a line may begin and end inside of a text.
    """
    if not text.endswith("\n"):
        return "}" in text or "]" in text
    before, _, rest = text.partition('"')
    return any(mark in before or mark in rest.rpartition('"')[2] for mark in "}]")
