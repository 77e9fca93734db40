"""Explanations as one HTML page: no script, nothing fetched, readable in the dark, without colours, and in Chinese."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from lushan.explain.explanation import Attribution, Explanation
from lushan.explain.words import Weight
from lushan.records import Span, Triple

MOST_WORDS_LISTED = 8
_FAINT = 0.04
"""Words with a smaller share of the largest weight are not marked."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A piece of the text as the heat map shows it."""

    text: str
    kind: str
    """`for`, `against`, or nothing."""
    level: str
    """Size of the weight as a share of the largest, 0 to 1."""
    hint: str
    """The weight, for whoever points at the word."""
    is_target: bool
    """Whether it is part of the answer."""


def page_parts(explanations: Iterable[Explanation], *, title: str, facts: str) -> Iterator[str]:
    """Write the page piece by piece; memory does not grow with it.

    Args:
        explanations: What is shown, in order.
        title: The heading.
        facts: The line below it, such as the model and its version.
    """
    found = Environment(
        loader=PackageLoader("lushan.explain"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"signed": signed, "number": number, "percent": percent, "answer": answer_text}
    yield from found.get_template("explanations.html").generate(
        explanations=explanations, title=title, facts=facts, marks=marks, strongest=strongest
    )


def marks(text: str, part: Attribution) -> list[Mark]:
    """Cut a text into its words and what is between them."""
    largest = max((abs(each.weight) for each in part.words), default=0.0)
    found: list[Mark] = []
    end = 0
    for word in part.words:
        if word.start > end:
            between = (end, word.start)
            found.append(Mark(text[end : word.start], "", "0", "", _is_inside(between, part.span)))
        found.append(_mark(word, part.span, largest))
        end = word.end
    if end < len(text):
        found.append(Mark(text[end:], "", "0", "", is_target=False))
    return found


def _mark(word: Weight, span: Span | None, largest: float) -> Mark:
    level = abs(word.weight) / largest if largest else 0.0
    kind = "for" if word.weight > 0 else "against"
    if level < _FAINT:
        kind = ""
    inside = _is_inside((word.start, word.end), span)
    return Mark(word.text, kind, f"{level:.2f}", signed(word.weight), inside)


def _is_inside(place: tuple[int, int], span: Span | None) -> bool:
    return span is not None and span.start <= place[0] and place[1] <= span.end


def strongest(words: Sequence[Weight]) -> list[tuple[Weight, str]]:
    """Give the words with the largest weights, the largest first, and the length of their bars in percent."""
    ranked = sorted(words, key=lambda each: -abs(each.weight))[:MOST_WORDS_LISTED]
    largest = abs(ranked[0].weight) if ranked else 0.0
    shown = [each for each in ranked if largest and abs(each.weight) >= _FAINT * largest]
    return [(each, f"{100 * abs(each.weight) / largest:.0f}") for each in shown]


def answer_text(explanation: Explanation) -> str:
    """Write an answer as people read it."""
    answer = explanation.answer
    if isinstance(answer, str):
        return answer
    return ", ".join(map(_part_text, answer)) or "nothing"


def _part_text(part: str | Span | Triple) -> str:
    if isinstance(part, Triple):
        return part.shown
    return part if isinstance(part, str) else f"{part.text} ({part.label})"


def number(value: float) -> str:
    """`-0.5` -> `-0.50` with a true minus sign."""
    return f"{value:.2f}".replace("-", "\u2212")


def signed(value: float) -> str:
    """`-0.5` -> `-0.50` with a true minus sign, `0.5` -> `+0.50`."""
    return f"{value:+.2f}".replace("-", "\u2212")


def percent(fraction: float) -> str:
    """`0.123` -> `12.3 %`, with a space that does not break."""
    return f"{100 * fraction:.1f}\u00a0%"
