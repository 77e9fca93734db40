"""Find the relations of a text with the parts that they hold between: text in, triples of head, relation and tail out.

Columns: `text`, `triples` (a list of `head`, `label`, `tail`; may be empty).

This is `relations` end to end: nobody marks head and tail. The model writes `Ada | born in | Ulm; Ada | lives in | Rome`, or
`none`, and can write nothing else than names of the text, letter by letter and in whole words, and relations that
training had. A triple counts by its letters: which of several equal names is meant is not asked.
"""

from collections.abc import Sequence
from dataclasses import replace

from lushan import text_answers, triple_answers
from lushan.data.columns import Columns
from lushan.data.triples import read_triples
from lushan.data.verbatim import Names
from lushan.errors import DataError
from lushan.records import (
    AnswerMode,
    Example,
    Features,
    Prediction,
    Rendered,
    Row,
    Scores,
    TaskState,
    Written,
    content_id,
)
from lushan.tasks import Preparation, Wording

_SAMPLES: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    ("Ada got a dog.", (("Ada", "has", "dog"),)),
    ("Bo met Eva on a hill.", ()),
    ("Lea owns land.", (("Lea", "has", "land"),)),
    ("Max is in Rome.", (("Max", "is in", "Rome"),)),
    ("Ulm: Bo is in, Al is in.", (("Bo", "is in", "Ulm"), ("Al", "is in", "Ulm"))),
    ("It rained, he said.", ()),
)


class Task(text_answers.WritingTask):
    """Relations with their heads and tails, written by the model.

    Columns: `text` and `triples`.
    """

    columns = Columns(
        required=("text", "triples"),
        guesses={
            "text": ("sentence", "content", "body"),
            "triples": ("triplets", "triple_list", "spo_list"),
        },
    )
    settings = frozenset({"num_shots", "instruction"})
    baselines: tuple[str, ...] = ("known_triples",)
    wording = Wording(
        pipeline_tag="text-generation",
        use="Finding the relations of {count} kinds in texts like those it was trained on, with their heads and tails: {labels}.",
        label="relation",
        counted="triples",
        nothing="no relation",
        limits={
            "generate": "Heads and tails are always parts of the text, and relations always known ones."
        },
    )
    as_read = staticmethod(triple_answers.as_read)

    def read(self, row: Row, *, multi_label: bool = False, needs_target: bool = True) -> Example:
        """Check one row.

        Raises:
            DataError: If the text is missing, or a triple does not fit it.
        """
        text, triples = read_triples(row, needs_triples=needs_target)
        if triples is None:
            return Example(content_id(text), text, None, row.place)
        plain = [[each.head.text, each.label, each.tail.text] for each in triples]
        return Example(content_id(text, plain), text, triples, row.place)

    def notes(self, examples: Sequence[Example]) -> list[str]:
        """Tell of names that no answer can give, because they begin or end inside a word."""
        num_inside = sum(_num_inside_words(each) for each in examples)
        if not num_inside:
            return []
        return [
            f"{num_inside:,} triples of the training rows have a head or a tail that begins or ends inside a word: no "
            "answer can give them. Such triples in test rows count as missed."
        ]

    def prepare(
        self, examples: Sequence[Example], preparation: Preparation, *, multi_label: bool
    ) -> TaskState:
        """Fix the order of the relations, the worked examples and the bounds of an answer.

        Raises:
            DataError: If there is no triple at all.
        """
        labels = tuple(sorted({label for each in examples for label in each.classes}))
        if not labels:
            raise DataError(
                f"None of the {len(examples):,} training rows has a triple. Give some, or choose another task."
            )
        state = text_answers.learn_to_write(
            examples, preparation, text_of=triple_answers.write_triples
        )
        most_items, longest_name = triple_answers.bounds(examples)
        return replace(state, labels=labels, most_items=most_items, longest_name=longest_name)

    def render(
        self,
        example: Example,
        state: TaskState,
        *,
        answer: AnswerMode,
        with_target: bool,
        shots: Sequence[Example] = (),
    ) -> list[Rendered]:
        """Instruction, worked examples and text; its end may be cut."""
        text = Rendered(example.text, cuttable=(0, len(example.text)))
        if not with_target:
            text = replace(text, grammar=self.grammar(example, state))
        usual = f"Name the relations, as head | relation | tail: {', '.join(state.labels)}."
        opening = usual if state.instruction is None else state.instruction
        return [
            text_answers.render_prompt(
                text,
                opening=f"{opening}\n\n",
                shots=[(shot.text, f" {triple_answers.write_triples(shot)}") for shot in shots],
                question="Relations:",
                answer=f" {triple_answers.write_triples(example)}" if with_target else None,
            )
        ]

    def grammar(self, example: Example, state: TaskState) -> str:
        """Triples of names of the text and known relations."""
        return triple_answers.grammar(example, state)

    def decode(
        self,
        outputs: Sequence[Written],
        features: Sequence[Features],
        examples: Sequence[Example],
        state: TaskState,
        *,
        answer: AnswerMode,
    ) -> list[Prediction]:
        """The triples that were written, each once."""
        read = triple_answers.read_written_triples
        return text_answers.decode_items(outputs, examples, state, read=read)

    def score(
        self,
        predictions: Sequence[Prediction],
        examples: Sequence[Example],
        state: TaskState,
        *,
        seed: int = 0,
    ) -> Scores:
        """F1 of all triples first: head, relation, tail and so the direction must be right; a row is when all its triples are."""
        return text_answers.score_items(predictions, examples, state, seed=seed)

    def sample_rows(self) -> list[Row]:
        """Six sentences of who has what and lives where."""
        return [
            Row(
                {
                    "text": text,
                    "triples": [
                        {"head": head, "label": label, "tail": tail}
                        for head, label, tail in triples
                    ],
                },
                "samples",
                number,
            )
            for number, (text, triples) in enumerate(_SAMPLES, start=1)
        ]


def _num_inside_words(example: Example) -> int:
    """Triples of which a name does not stand in the text as whole words."""
    names = Names(example)
    return sum(
        each.head.text not in names or each.tail.text not in names
        for each in triple_answers.triples_of(example)
    )
