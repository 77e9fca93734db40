"""Write a text on from its beginning, as its control fields ask: topic, tone, length, keywords, form.

Columns: `prompt` (how the text begins) and `completion` (how it goes on); or `text` alone, which is learned as a whole, and
is how a text begins when it is only asked about. Control fields, each where it is known: `topic`, `tone`, `length` (words),
`keywords` (a list) are told to the model, which learns to follow them. `must` and `must_not` (lists of words), `regex` and
`json_schema` hold for what is written in any case: a token that would break them is never taken.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lushan import text_answers
from lushan.data.columns import Columns, unpacked
from lushan.errors import DataError
from lushan.metrics import dialogue as metrics
from lushan.metrics.control import satisfied_shares
from lushan.metrics.statistics import accuracy
from lushan.records import (
    FORM_FIELDS,
    AnswerMode,
    Example,
    Prediction,
    Rendered,
    Row,
    Scores,
    TaskState,
    content_id,
)
from lushan.tasks import Wording

_TOLD = ("topic", "tone", "length", "keywords")
"""What stands in front of the text, in this order."""
_LISTS = ("keywords", "must", "must_not")
_CONTROL = (*_TOLD, *FORM_FIELDS)
_COMMA = re.compile("[,\uff0c\u3001]")


class Task(text_answers.WritingTask):
    """Completion with control, written by the model.

    Columns: `prompt` and `completion`, or `text`; and control fields.
    """

    columns = Columns(
        required=("prompt", "completion"),
        optional=_CONTROL,
        others=(Columns(required=("text",), optional=_CONTROL),),
    )
    settings = frozenset({"num_shots", "instruction"})
    baselines: tuple[str, ...] = ()
    is_judged_by_likelihood = True
    wording = Wording(
        pipeline_tag="text-generation",
        use="Writing texts like those it was trained on, by the same control fields.",
        label="text",
        counted="texts",
    )

    def read(self, row: Row, *, multi_label: bool = False, needs_target: bool = True) -> Example:
        """Check one row, in either form.

        Raises:
            DataError: If there is no text, or a control field is not what it must be.
        """
        control = _read_control(row)
        is_whole = row.values.get("text") is not None
        start = "" if is_whole else text_answers.read_text(row, "prompt")
        if is_whole and not needs_target:
            start = text_answers.read_text(row, "text")
        extra = {**control, "start": start}
        told = "\n".join((*_lines(control), start))
        if not needs_target:
            return Example(content_id(told, extra), told, None, row.place, extra, ())
        target = text_answers.read_text(row, "text" if is_whole else "completion")
        # Texts of the same topic are no repetition: what is judged is the text itself.
        text = f"{told}\n{target}" if is_whole else told
        return Example(content_id(told, extra, target), text, target, row.place, extra, ())

    def notes(self, examples: Sequence[Example]) -> list[str]:
        """Which control fields some rows lack."""
        counts = {name: sum(name in each.extra for each in examples) for name in _TOLD}
        return [
            f"Column `{name}` is known in {count:,} of {len(examples):,} training rows."
            for name, count in counts.items()
            if 0 < count < len(examples)
        ]

    def render(
        self,
        example: Example,
        state: TaskState,
        *,
        answer: AnswerMode,
        with_target: bool,
        shots: Sequence[Example] = (),
    ) -> list[Rendered]:
        """The control fields, one a line, and the beginning of the text; it is what may be cut, from its start."""
        opening = "" if state.instruction is None else f"{state.instruction}\n\n"
        earlier = "".join(f"{_prompt(shot)} {shot.target}\n\n" for shot in shots)
        prompt = opening + earlier + _prompt(example)
        before = len(opening) + len(earlier)
        start = example.extra.get("start", "")
        cuttable = (len(prompt) - len(start), len(prompt))
        rendered = Rendered(
            prompt,
            cuttable=cuttable,
            cuts_start=True,
            uncut="What is around its beginning",
            given=((before, before + len("\n".join(_lines(example.extra)))), cuttable),
        )
        return [text_answers.told(rendered, f" {example.target}")] if with_target else [rendered]

    def score(
        self,
        predictions: Sequence[Prediction],
        examples: Sequence[Example],
        state: TaskState,
        *,
        seed: int = 0,
    ) -> Scores:
        """How likely the texts in the data are first, per token; and whether what was written keeps to its control fields."""
        answers = [str(each.answer) for each in predictions]
        found = text_answers.likelihoods(predictions, seed=seed)
        found |= metrics.reply_intervals(answers, seed=seed)
        shares = satisfied_shares(answers, [each.extra for each in examples])
        if shares:
            found["constraint_satisfaction"] = accuracy(shares, seed=seed)
        return Scores(
            main_metric="answer_log_likelihood",
            metrics=found,
            correct=metrics.row_scores(text_answers.truths(predictions) or ()),
            details=text_answers.details(predictions),
        )

    def sample_rows(self) -> list[Row]:
        """Six beginnings of notes, with topic and keywords."""
        samples = (
            ("Dear guests, the pool", "is closed on Monday.", "hotel", ["Monday"]),
            ("Dear guests, breakfast", "is served from seven.", "hotel", ["seven"]),
            ("The library", "lends films from today.", "town", ["films"]),
            ("The lower bridge", "is open again for cars.", "town", ["open", "cars"]),
            ("Tomorrow there will be", "rain in the north.", "weather", ["rain"]),
            ("The night stays", "clear and cold.", "weather", ["cold"]),
        )
        return [
            Row(
                {"prompt": start, "completion": rest, "topic": topic, "keywords": keywords},
                "samples",
                number,
            )
            for number, (start, rest, topic, keywords) in enumerate(samples, start=1)
        ]


def _read_control(row: Row) -> dict[str, Any]:
    """Give the control fields that a row has; `form` is what holds for the answer in any case."""
    values = {name: row.values.get(name) for name in _CONTROL}
    found: dict[str, Any] = {
        name: _read_control_text(row, name)
        for name in ("topic", "tone", "regex")
        if values[name] not in (None, "")
    }
    if values["length"] not in (None, ""):
        found["length"] = text_answers.read_length(row, "a number of words")
    for name in _LISTS:
        if values[name] not in (None, "", []):
            found[name] = _read_words(row, name, values[name])
    if values["json_schema"] not in (None, ""):
        found["json_schema"] = _read_schema(row, values["json_schema"])
    form = {name: found.pop(name) for name in FORM_FIELDS if name in found}
    if "regex" in form:
        _check_expression(row, form["regex"])
    if "json_schema" in form and len(form) > 1:
        raise DataError(
            f"{row.place}: column `json_schema` says the whole form; leave `must`, `must_not` and `regex` empty."
        )
    return {**found, "form": form} if form else found


def _check_expression(row: Row, pattern: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise DataError(
            f"{row.place}: column `regex` holds no regular expression: {reason}, got {pattern[:200]!r}."
        ) from None


def _read_control_text(row: Row, name: str) -> str:
    value = row.values[name]
    if not isinstance(value, str) or "\n" in value.strip():
        raise DataError(
            f"{row.place}: column `{name}` must hold a text of one line, got {value!r}."
        )
    return value.strip()


def _read_words(row: Row, name: str, value: object) -> list[str]:
    parts = unpacked(value)
    if isinstance(value, str) and not isinstance(parts, list):
        parts = _COMMA.split(value)
    if not isinstance(parts, list | tuple) or not all(
        isinstance(each, str) and each.strip() for each in parts
    ):
        raise DataError(f"{row.place}: column `{name}` must hold a list of words, got {value!r}.")
    return [str(each).strip() for each in parts]


def _read_schema(row: Row, value: object) -> dict[str, Any]:
    try:
        schema = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        reason = getattr(error, "msg", error)
        raise DataError(f"{row.place}: column `json_schema` is no JSON: {reason}.") from None
    except RecursionError:
        raise DataError(f"{row.place}: column `json_schema` is nested too deeply.") from None
    if not isinstance(schema, Mapping):
        raise DataError(f"{row.place}: column `json_schema` must hold an object, got {value!r}.")
    return dict(schema)


def _lines(control: Mapping[str, Any]) -> list[str]:
    """`Topic: hotel`: what the model is told of the control fields."""
    told = {name: control[name] for name in _TOLD if name in control}
    if "length" in told:
        told["length"] = text_answers.told_length(told["length"])
    if "keywords" in told:
        told["keywords"] = ", ".join(told["keywords"])
    return [f"{name.capitalize()}: {value}" for name, value in told.items()]


def _prompt(example: Example) -> str:
    start = example.extra.get("start", "")
    return "\n".join((*_lines(example.extra), f"Text: {start}" if start else "Text:"))
