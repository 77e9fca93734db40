"""Translate a text: from one language to another, in any number of pairs of languages.

Columns: `source`, `target`, and `source_lang` and `target_lang` (such as `en` and `de`) where they are known; they are told
to the model, so that one model learns several directions.
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Sequence

from lushan import text_answers
from lushan.data.columns import Columns
from lushan.data.near import comparable
from lushan.errors import DataError
from lushan.metrics import translation as metrics
from lushan.records import (
    EITHER_WAY,
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

_LANGUAGES = {
    "ar": "Arabic",
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "fi": "Finnish",
    "fr": "French",
    "he": "Hebrew",
    "hi": "Hindi",
    "hu": "Hungarian",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "nl": "Dutch",
    "no": "Norwegian",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "sv": "Swedish",
    "th": "Thai",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "vi": "Vietnamese",
    "zh": "Chinese",
}
"""Names that a model knows better than their codes; a language of another name is told as it is written."""
_QUESTION = "Translation:"


class Task(text_answers.WritingTask):
    """Translation, written by the model.

    Columns: `source` (the text), `target` (its translation), `source_lang`, `target_lang` (their languages).
    """

    columns = Columns(
        required=("source", "target"),
        optional=("source_lang", "target_lang"),
        guesses={
            "source": ("src", "original", "source_text"),
            "target": ("tgt", "translation", "target_text"),
            "source_lang": ("src_lang", "source_language"),
            "target_lang": ("tgt_lang", "target_language"),
        },
    )
    settings = frozenset({"num_shots", "instruction"})
    baselines: tuple[str, ...] = ("copied_source", "nearest_answer")
    wording = Wording(
        pipeline_tag="translation",
        use="Translating texts like those it was trained on, between the same languages.",
        label="translation",
        counted="texts",
    )

    def read(self, row: Row, *, multi_label: bool = False, needs_target: bool = True) -> Example:
        """Check one row.

        Raises:
            DataError: If the text is missing, or its translation is although it is needed, or a language is no text.
        """
        source = text_answers.read_text(row, "source")
        languages = {
            name: _read_language(row, name)
            for name in ("source_lang", "target_lang")
            if row.values.get(name) not in (None, "")
        }
        if row.values.get("target") in (None, "") and not needs_target:
            return Example(content_id(source, languages), source, None, row.place, languages, ())
        target = text_answers.read_text(row, "target")
        id_ = content_id(source, languages, target)
        group = EITHER_WAY.join(sorted((source, target), key=comparable))
        return Example(id_, source, target, row.place, languages, (), group)

    def notes(self, examples: Sequence[Example]) -> list[str]:
        """Whether the languages are known, and told apart."""
        found = {
            (each.extra.get("source_lang"), each.extra.get("target_lang")) for each in examples
        }
        notes: list[str] = []
        if None in {target for _, target in found}:
            notes.append(
                "No column `target_lang` in some rows: the model is not told into which language it translates."
            )
        codes: dict[str, set[str]] = {}
        for code in filter(None, itertools.chain.from_iterable(found)):
            codes.setdefault(_language(code), set()).add(code.casefold().replace("_", "-"))
        notes += [
            f"The model is told `{name}` for {len(alike)} codes, {', '.join(sorted(alike))}: it cannot tell them apart. "
            "Where it should, give names, such as `Brazilian Portuguese`."
            for name, alike in sorted(codes.items())
            if len(alike) > 1
        ]
        return notes

    def prepare(
        self, examples: Sequence[Example], preparation: Preparation, *, multi_label: bool
    ) -> TaskState:
        """Draw the worked examples of each pair of languages, and learn where an answer ends."""
        return text_answers.learn_to_write(examples, preparation, kind_of=_languages)

    def render(
        self,
        example: Example,
        state: TaskState,
        *,
        answer: AnswerMode,
        with_target: bool,
        shots: Sequence[Example] = (),
    ) -> list[Rendered]:
        """The two languages, the text and the word that asks for the translation; worked examples of these languages."""
        shown = _fitting(shots, example)
        told = [_instruction(each, state) for each in (*shown, example)]
        # Worked examples of other languages stand under instructions of their own.
        openings = [new if new != old else "" for old, new in itertools.pairwise(["", *told])]
        earlier = "".join(_worked(*each) for each in zip(shown, openings, strict=False))
        return [
            text_answers.render_prompt(
                Rendered(example.text, cuttable=(0, len(example.text))),
                opening=earlier + openings[-1],
                shots=(),
                question=_QUESTION,
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
        """First chrF, then BLEU, as sacrebleu counts them; a row's score is its sentence chrF."""
        truth = [str(each.target) for each in examples]
        answers = [str(each.answer) for each in predictions]
        languages = [each.extra.get("target_lang") for each in examples]
        found = metrics.score(truth, answers, languages=languages, seed=seed)
        signatures = metrics.signatures(truth, languages)
        return Scores(
            main_metric="chrf",
            metrics={**found, **text_answers.likelihoods(predictions, seed=seed)},
            correct=metrics.row_scores(truth, answers),
            details={**text_answers.details(predictions), "signatures": signatures},
        )

    def sample_rows(self) -> list[Row]:
        """Six short sentences, from English to German."""
        samples = (
            ("The door is open.", "Die T\u00fcr ist offen."),
            ("I drink a glass of water.", "Ich trinke ein Glas Wasser."),
            ("Two dogs run over a field.", "Zwei Hunde laufen \u00fcber ein Feld."),
            ("She reads a book.", "Sie liest ein Buch."),
            ("We are going home.", "Wir gehen nach Hause."),
            ("The train is late.", "Der Zug hat Versp\u00e4tung."),
        )
        return [
            Row(
                {"source": source, "target": target, "source_lang": "en", "target_lang": "de"},
                "samples",
                number,
            )
            for number, (source, target) in enumerate(samples, start=1)
        ]


def _read_language(row: Row, name: str) -> str:
    value = row.values[name]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{row.place}: column `{name}` must name a language, got {value!r}.")
    return value.strip()


def _languages(example: Example) -> tuple[str, ...]:
    """What the model is told of the two languages; nothing of one that is not known."""
    return tuple(_language(example.extra.get(name, "")) for name in ("source_lang", "target_lang"))


def _fitting(shots: Sequence[Example], example: Example) -> list[Example]:
    """Give the worked examples of a text's own languages.

    Where there are none, as many of others: the longest, so that a prompt with them is no shorter than any other.
    """
    alike = [each for each in shots if _languages(each) == _languages(example)]
    if alike or not shots:
        return alike
    most = max(Counter(map(_languages, shots)).values())
    return heapq.nlargest(most, shots, key=lambda each: len(f"{each.text}{each.target}".encode()))


def _worked(shot: Example, opening: str) -> str:
    """Write a worked example under its instruction, with the blank line behind it."""
    text = Rendered(shot.text)
    answer = f" {shot.target}"
    written = text_answers.render_prompt(
        text, opening=opening, shots=(), question=_QUESTION, answer=answer
    )
    return f"{written.text}\n\n"


def _instruction(example: Example, state: TaskState) -> str:
    if state.instruction is not None:
        return f"{state.instruction}\n\n"
    source, target = (example.extra.get(name) for name in ("source_lang", "target_lang"))
    start = f" from {_language(source)}" if source else ""
    end = f" to {_language(target)}" if target else ""
    return f"Translate{start}{end}.\n\n" if start or end else "Translate the text.\n\n"


def _language(name: str) -> str:
    """`de` or `de-AT` -> `German`."""
    return _LANGUAGES.get(name.lower().replace("_", "-").partition("-")[0], name)
