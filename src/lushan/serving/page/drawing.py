"""What the page draws, as HTML: answers, heat maps, curves and tables. Whatever comes from outside is escaped."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from lushan.data.pairs import HEAD_MARKS, TAIL_MARKS, places_of
from lushan.evaluation import phrases
from lushan.evaluation.charts import loss_panel
from lushan.records import Answer, Example, Prediction, Span, Triple
from lushan.serving.page.texts import Texts

MOST_BARS = 10
GOLDEN_ANGLE_DEGREES = 137.5
"""Hues that are this far apart stay different, however many there are."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a text, with its label if it is marked."""

    text: str
    label: str | None = None
    probability: float | None = None
    hue: int = 0
    """Degrees on the colour wheel; the same for the same label."""


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("lushan.serving.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["percent"] = phrases.percent
    found.filters["code"] = _with_code
    return found


def _with_code(text: str) -> Markup:
    """Set apart what stands between backticks, after it was escaped."""
    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704


def draw(template: str, texts: Texts, **values: object) -> str:
    """Fill in a file of `templates`; every value is escaped."""
    return _environment().get_template(f"{template}.html").render(texts=texts, **values)


def problem(message: object, texts: Texts) -> str:
    """Tell what went wrong."""
    return draw("problem", texts, message=texts.message(str(message)))


def note(message: str, texts: Texts) -> str:
    """Tell how things stand."""
    return draw("note", texts, message=message)


def heading(title: str, texts: Texts, *, hint: str = "") -> str:
    """Begin a part of a tab."""
    return draw("heading", texts, title=title, hint=hint)


def report(page: str | None, texts: Texts) -> str:
    """Embed the report of a run so that nothing in it can act; nothing while there is none."""
    return draw("report", texts, page=page)


def cut_at_spans(text: str, spans: Sequence[Span]) -> list[Part]:
    """Cut a text into marked and unmarked parts, in order; a span that overlaps an earlier one is left out."""
    labels = sorted({each.label for each in spans})
    hues = {label: round(place * GOLDEN_ANGLE_DEGREES) % 360 for place, label in enumerate(labels)}
    parts: list[Part] = []
    end = 0
    for span in sorted(spans, key=lambda each: each.start):
        if span.start < end:
            continue
        parts.append(Part(text[end : span.start]))
        inside = text[span.start : span.end]
        parts.append(Part(inside, span.label, span.probability, hues[span.label]))
        end = span.end
    parts.append(Part(text[end:]))
    return [each for each in parts if each.text]


def pair_of(text: str) -> tuple[str, tuple[Span, Span]] | None:
    """Give a text without the marks of its head and tail, and where these are; None where it has none."""
    if places_of(text) is None:
        return None
    places = sorted((text.index(mark), mark) for mark in (*HEAD_MARKS, *TAIL_MARKS))
    plain, starts = text, dict[str, int]()
    for num_done, (place, mark) in enumerate(places):
        starts[mark] = place - sum(len(earlier) for _, earlier in places[:num_done])
        plain = plain.replace(mark, "", 1)
    head, tail = (
        Span(starts[opening], starts[closing], label)
        for label, (opening, closing) in (("1", HEAD_MARKS), ("2", TAIL_MARKS))
    )
    return plain, (head, tail)


def mentions_of(triples: Sequence[Triple]) -> list[Span]:
    """Give the heads and tails of triples as spans, labelled with an arrow and the numbers of their triples."""
    roles: dict[tuple[int, int], list[str]] = {}
    for number, each in enumerate(triples, start=1):
        roles.setdefault((each.head.start, each.head.end), []).append(f"{number} \u2192")
        roles.setdefault((each.tail.start, each.tail.end), []).append(f"\u2192 {number}")
    return [Span(start, end, ", ".join(told)) for (start, end), told in roles.items()]


def answer_card(
    example: Example, prediction: Prediction, texts: Texts, *, title: str = ""
) -> dict[str, Any]:
    """Say how one answer is drawn: what stands large, what is marked in the text, and the bars."""
    answer = prediction.answer
    spans = [each for each in answer if isinstance(each, Span)]
    marked = spans or mentions_of([each for each in answer if isinstance(each, Triple)])
    parts, headline = cut_at_spans(example.text, marked) if marked else [], _in_words(answer)
    if spans and len(spans) == 1:
        headline = spans[0].text
    elif spans:
        headline = ""
    if pair := pair_of(example.text):
        text, (head, tail) = pair
        parts = cut_at_spans(text, (head, tail))
        first, second = (text[each.start : each.end] for each in (head, tail))
        headline = f"{first} \u2014 {headline} \u2192 {second}"
    likely = sorted(prediction.probabilities.items(), key=lambda each: -each[1])
    return {
        "title": title,
        "headline": headline if headline or spans else texts("answer.nothing"),
        "parts": parts,
        "bars": [{"label": name, "probability": value} for name, value in likely[:MOST_BARS]],
        "num_hidden": max(0, len(likely) - MOST_BARS),
        "note": _cut_note(prediction.num_cut_tokens, texts),
    }


def _cut_note(num_cut_tokens: int, texts: Texts) -> str:
    """Say that what was asked was cut; nothing where it was not."""
    return texts("answer.cut", count=f"{num_cut_tokens:,}") if num_cut_tokens else ""


def _in_words(answer: Answer) -> str:
    if isinstance(answer, str):
        return answer
    told = [each for each in answer if not isinstance(each, Span)]
    return ", ".join(each.shown if isinstance(each, Triple) else each for each in told)


def answers(cards: Sequence[Mapping[str, Any]], texts: Texts) -> str:
    """Draw answers side by side."""
    return draw("answer", texts, cards=cards)


def heat(
    target: str, pieces: Sequence[tuple[str, float]], texts: Texts, *, num_cut_tokens: int = 0
) -> str:
    """Draw how much each piece of a text spoke for (above 0) or against an answer, and that it was cut, where it was."""
    most = max((abs(weight) for _, weight in pieces), default=0.0) or 1.0
    shown = [
        {"text": text, "weight": weight, "strength": abs(weight) / most} for text, weight in pieces
    ]
    note = _cut_note(num_cut_tokens, texts)
    return draw("heat", texts, target=target, pieces=shown, note=note)


def chat(turns: Sequence[Mapping[str, str]], texts: Texts) -> str:
    """Draw a conversation, as it was written: no tag and no Markdown of it does anything."""
    return draw("chat", texts, turns=turns)


def curve(steps: Sequence[Mapping[str, Any]], texts: Texts) -> str:
    """Draw the training loss of the steps so far."""
    panel, label = loss_panel(steps, ()), ""
    if panel:
        last = steps[-1]
        label = texts("runs.curve_now", step=last["step"], loss=f"{last['loss']:.3f}")
    return draw("curve", texts, panel=panel, label=label)
