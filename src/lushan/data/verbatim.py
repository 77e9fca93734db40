"""The names that a text holds, as an answer writes them: letter by letter, from the start of a word to the end of one.

An answer is one line, so a line break inside of a name is written as a space; nothing else is changed, and nothing moves.
"""

import json
from collections.abc import Iterator, Sequence

from lushan.data.spans import words_in
from lushan.records import Example

NOTHING = "none"
"""What is written where there is nothing to name."""
BETWEEN = "; "
"""Parts the items of an answer."""
_EDGE = r"[^\s\x1c-\x1f]"
"""What a name begins and ends with: no white space, as Python sees it."""
_LINE_BREAKS = str.maketrans("\n\r", "  ")


def one_line(text: str) -> str:
    """Write line breaks as spaces; every character keeps its place."""
    return text.translate(_LINE_BREAKS)


class Names:
    """Where the names of one text are."""

    def __init__(self, example: Example) -> None:
        self.text = one_line(example.text)
        self._words = words_in(example)
        self._starts = {start for start, _ in self._words}
        self._ends = {end for _, end in self._words}

    @property
    def num_words(self) -> int:
        """Words of the text: as many names at most if none overlap."""
        return len(self._words)

    def __contains__(self, name: str) -> bool:
        return next(self.places(name), None) is not None

    def places(self, name: str) -> Iterator[int]:
        """Give the first character of every place where a name stands, from the left."""
        start = self.text.find(name) if name else -1
        while start >= 0:
            if start in self._starts and start + len(name) in self._ends:
                yield start
            start = self.text.find(name, start + 1)

    def grammar(self, item: str, terminals: Sequence[str], *, most: int, longest: int) -> str:
        """Give the grammar of a list of items, as llguidance reads it, behind the space that parts an answer from its prompt.

        All of it is one terminal: an expression is followed along all its readings, so that a name may hold what else
        parts names.

        Args:
            item: One item, made of `NAME` and `terminals`.
            terminals: Lines that define them.
            most: Most items, at least one.
            longest: Most characters of a name; 0 sets no bound.
        """
        end = "/\\n{0,2}/\n"  # the line break that ends a worked example, whatever token it is in
        if not self._words:
            return f'start: ANSWER\nANSWER: " {NOTHING}" {end}'
        bound = f"{{0,{max(longest - 2, 0)}}}" if longest else "*"
        further = f' ("{BETWEEN}" {item}){{0,{most - 1}}}' if most > 1 else ""
        return "\n".join((
            "start: ANSWER",
            f"PART: %regex {json.dumps({'substring_chunks': self._chunks()}, ensure_ascii=False)}",
            f"NAME: PART & /(?s:{_EDGE}(.{bound}{_EDGE})?)/",
            *terminals,
            f'ANSWER: " " ("{NOTHING}" | {item}{further}) {end}',
        ))

    def _chunks(self) -> list[str]:
        """Cut the text into words and what is between them."""
        chunks: list[str] = []
        behind = 0
        for start, end in self._words:
            chunks += [self.text[behind:start], self.text[start:end]]
            behind = end
        return [each for each in chunks if each]


def one_of(texts: Sequence[str]) -> str:
    """Write the choice of one of several texts, as llguidance reads it."""
    return "(" + " | ".join(json.dumps(each, ensure_ascii=False) for each in texts) + ")"


def with_reserve(most: int) -> int:
    """Give what answers may have where those that were learned from have at most so much: a quarter more."""
    return most + most // 4 + 1
