"""Say in a few words what a text says: summaries, titles, headlines.

Columns: `document`, `summary`, and `references` (a list) where a document has several good summaries; the first then
trains, and an answer is held against the one that is most like it.
"""

from collections.abc import Sequence
from typing import Any

from lushan import text_answers
from lushan.data.columns import Columns
from lushan.errors import DataError
from lushan.metrics import summarization as metrics
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
from lushan.tasks import Wording


class Task(text_answers.WritingTask):
    """Summarization, written by the model.

    Columns: `document` (the text), `summary` (what it says), `references` (all good summaries of it).
    """

    columns = Columns(
        required=("document", "summary"),
        optional=("references",),
        guesses={
            "document": ("text", "article", "body", "content", "abstract"),
            "summary": ("highlights", "title", "headline", "tldr", "target"),
            "references": ("summaries",),
        },
    )
    settings = frozenset({"num_shots", "instruction"})
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
            DataError: If the text is missing, or its summary is although it is needed, or `references` is no list of texts.
        """
        document = text_answers.read_text(row, "document")
        if row.values.get("summary") in (None, "") and not needs_target:
            return Example(content_id(document), document, None, row.place, {}, ())
        summary = text_answers.read_text(row, "summary")
        extra: dict[str, Any] = {}
        if (references := row.values.get("references")) is not None:
            extra["references"] = _read_references(row, references)
        return Example(content_id(document, summary), document, summary, row.place, extra, ())

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
        """The document, whose end may be cut, and the word that asks for the summary."""
        opening = "Summarize the text." if state.instruction is None else state.instruction
        return [
            text_answers.render_prompt(
                Rendered(example.text, cuttable=(0, len(example.text))),
                opening=f"{opening}\n\n",
                shots=[(shot.text, f" {shot.target}") for shot in shots],
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
        truth = [each.extra.get("references") or [str(each.target)] for each in examples]
        answers = [str(each.answer) for each in predictions]
        documents = [each.text for each in examples]
        rows = metrics.score_rows(documents, truth, answers)
        found = metrics.intervals(rows, seed=seed)
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


def _read_references(row: Row, value: object) -> list[str]:
    found = (
        [each for each in value if isinstance(each, str)] if isinstance(value, list | tuple) else []
    )
    if not isinstance(value, list | tuple) or not found or len(found) < len(value):
        raise DataError(
            f"{row.place}: column `references` must hold a list of texts, got {value!r}."
        )
    return found
