"""Say in a few words what a text says: summaries, titles, headlines.

Columns: `document`, `summary`, and `references` (a list) where a document has several good summaries;
`summary` trains, and an answer is held against the one of all of them that is most like it. `length` is how long a summary is
wanted, where the model learned to keep to it (`task_settings.length_control`): `short`, `medium`, `long`, or a number of words.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lushan import text_answers
from lushan.data.columns import Columns, unpacked
from lushan.errors import DataError
from lushan.metrics import summarization as metrics
from lushan.metrics.control import satisfied_shares
from lushan.metrics.pieces import pieces
from lushan.metrics.statistics import accuracy
from lushan.records import (
    AnswerMode,
    Example,
    Prediction,
    Rendered,
    Row,
    Scores,
    TaskState,
    content_id,
)
from lushan.tasks import Preparation, Wording

_SIZES = ("short", "medium", "long")


class Task(text_answers.WritingTask):
    """Summarization, written by the model.

    Columns: `document` (the text), `summary` (what it says), `references` (other good summaries of it), `length` (wanted).
    """

    columns = Columns(
        required=("document", "summary"),
        optional=("references", "length"),
        lengths=("length",),
        guesses={
            "document": ("text", "article", "body", "content", "abstract"),
            "summary": ("highlights", "title", "headline", "tldr", "target"),
            "references": ("summaries",),
        },
    )
    settings = frozenset({"num_shots", "instruction", "length_control"})
    baselines: tuple[str, ...] = ("lead_sentence", "nearest_answer")
    wording = Wording(
        pipeline_tag="summarization",
        use="Summing up texts like those it was trained on, in summaries as long as theirs.",
        label="summary",
        counted="texts",
    )

    def read(self, row: Row, *, multi_label: bool = False, needs_target: bool = True) -> Example:
        """Check one row.

        Raises:
            DataError: If the text is missing, or its summary is although it is needed, or `references` is no list of texts, or
                `length` no length.
        """
        document = text_answers.read_text(row, "document")
        extra: dict[str, Any] = {}
        if row.values.get("length") not in (None, ""):
            extra["length"] = _read_length(row)
        if row.values.get("summary") in (None, "") and not needs_target:
            identity = content_id(document, *extra.values())
            return Example(identity, document, None, row.place, extra, ())
        summary = text_answers.read_text(row, "summary")
        identity = content_id(document, summary, *extra.values())
        if (references := row.values.get("references")) is not None:
            extra["references"] = _read_references(row, references)
        return Example(identity, document, summary, row.place, extra, ())

    def prepare(
        self, examples: Sequence[Example], preparation: Preparation, *, multi_label: bool
    ) -> TaskState:
        """Draw the worked examples, learn where a summary ends, and, to control it, how long summaries are."""
        state = text_answers.learn_to_write(examples, preparation)
        if not preparation.length_control:
            return state
        lengths = sorted(len(pieces(str(each.target))) for each in examples)
        # The middle of the shortest third, of all, and of the longest third.
        middles = (lengths[-(-sixths * len(lengths) // 6) - 1] for sixths in (1, 3, 5))
        return replace(state, lengths=tuple(middles))

    def notes(self, examples: Sequence[Example]) -> list[str]:
        """Whether summaries are longer than what they sum up."""
        num_longer = sum(len(str(each.target)) > len(each.text) for each in examples)
        return [f"{num_longer:,} summaries are longer than their documents."] if num_longer else []

    def render(
        self,
        example: Example,
        state: TaskState,
        *,
        answer: AnswerMode,
        with_target: bool,
        shots: Sequence[Example] = (),
    ) -> list[Rendered]:
        """The document, whose end may be cut, how long a summary is wanted, and the word that asks for it.

        Raises:
            DataError: If a length is wanted of a model that did not learn to keep to one.
        """
        opening = "Summarize the text." if state.instruction is None else state.instruction
        return [
            text_answers.render_prompt(
                Rendered(_asked(example, state, told=with_target), cuttable=(0, len(example.text))),
                opening=f"{opening}\n\n",
                shots=[(_asked(shot, state, told=True), f" {shot.target}") for shot in shots],
                question="Summary:",
                answer=f" {example.target}" if with_target else None,
            )
        ]

    def score(
        self,
        predictions: Sequence[Prediction],
        examples: Sequence[Example],
        state: TaskState,
        *,
        seed: int = 0,
    ) -> Scores:
        """ROUGE-L first, and what tells whether a summary is short, in its own words, and true to the document's numbers."""
        truth = [_good_summaries(each) for each in examples]
        answers = [str(each.answer) for each in predictions]
        documents = [each.text for each in examples]
        rows = metrics.score_rows(documents, truth, answers)
        found = metrics.intervals(rows, seed=seed)
        if state.lengths:
            wanted = [{"length": _wanted(each, state)} for each in examples]
            found["length_satisfaction"] = accuracy(satisfied_shares(answers, wanted), seed=seed)
        return Scores(
            main_metric="rouge_l",
            metrics={**found, **text_answers.likelihoods(predictions, seed=seed)},
            correct=[each.rouge_l for each in rows],
            details=text_answers.details(predictions),
        )

    def sample_rows(self) -> list[Row]:
        """Six short notes with their titles."""
        samples = (
            (
                "The bakery in the old town opens at six. Its bread is gone by ten.",
                "Bread is gone early",
            ),
            (
                "Rain fell for three days. The river rose, and the lower road is closed.",
                "Road is closed",
            ),
            (
                "The museum shows 40 paintings of the sea. Entry is free on Sundays.",
                "Paintings of the sea",
            ),
            (
                "A new bridge joins both parts of the city. It took four years to build.",
                "New bridge",
            ),
            (
                "The school has bought tablets. Each pupil of the sixth year gets one.",
                "Tablets for pupils",
            ),
            (
                "The train to the coast leaves from platform 2 today, ten minutes late.",
                "Train is late",
            ),
        )
        return [
            Row({"document": document, "summary": summary}, "samples", number)
            for number, (document, summary) in enumerate(samples, start=1)
        ]


def _read_length(row: Row) -> str | int:
    name = str(row.values["length"]).strip().casefold()
    if name in _SIZES:
        return name
    return text_answers.read_length(row, "`short`, `medium`, `long` or a number of words")


def _asked(example: Example, state: TaskState, *, told: bool) -> str:
    """The document and the wanted length; where the summary is told and nothing else was wanted, it is the summary's own."""
    if not state.lengths:
        if "length" in example.extra:
            raise DataError(
                f"{example.place}: column `length` has no effect, as the model did not learn to keep to a length. Tune with "
                "`--set task_settings.length_control=true`, or take the column out."
            )
        return example.text
    num_words = _wanted(example, state)
    if told and "length" not in example.extra:
        num_words = len(pieces(str(example.target)))
    return f"{example.text}\nLength: {text_answers.told_length(num_words)}"


def _wanted(example: Example, state: TaskState) -> int:
    """How many words a summary is to have, if the truth is not looked at."""
    wanted = example.extra.get("length", "medium")
    return state.lengths[_SIZES.index(wanted)] if isinstance(wanted, str) else wanted


def _good_summaries(example: Example) -> list[str]:
    return list(dict.fromkeys([str(example.target), *example.extra.get("references", ())]))


def _read_references(row: Row, value: object) -> list[str]:
    listed = unpacked(value)
    found = (
        [each for each in listed if isinstance(each, str)]
        if isinstance(listed, list | tuple)
        else []
    )
    if not isinstance(listed, list | tuple) or not found or len(found) < len(listed):
        raise DataError(
            f"{row.place}: column `references` must hold a list of texts, got {value!r}."
        )
    return found
