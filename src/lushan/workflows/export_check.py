"""Hold an export against the run: does its program compute what Lushan computes, and what quality does the form cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lushan.backbones.tokenizer import PROBES
from lushan.errors import CertificateError, ModelError, UserError
from lushan.evaluation.compare import comparisons
from lushan.inference.generate import generate
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.predict import Predictor, head_outputs
from lushan.metrics.statistics import accuracy, difference_interval, resampled_totals
from lushan.model_store.export_certificate import certify_export
from lushan.model_store.export_program import (
    Answers,
    Questions,
    ask_program,
    check_labels,
    check_tokens,
    first_tokens,
)
from lushan.model_store.exports import Form
from lushan.model_store.merged import Merged
from lushan.model_store.probes import NUM_PROBES
from lushan.records import Example, Features, Interval, Prediction
from lushan.workflows.outcome import plain, plain_interval
from lushan.workflows.predict import Tell

NUM_PROMPTS = 8
PROMPT_TOKENS = 256
NUM_TOKENS = 32
"""Answers that a program which writes is to follow, tokens of the prompts before them, and of each at most."""
_EXACT = ("none", "f16")
"""Ways to store weights that change nothing which anybody notices."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What run and export are both asked about."""

    source: str
    """Where they come from, for a person."""
    examples: list[Example]
    has_truth: bool = True
    is_scored: bool = True
    """Whether the task may score the answers."""
    seen_in_training: bool = False
    """Whether they are those that the run was tuned on."""


def ask(predictor: Predictor, rows: Rows) -> list[Prediction]:
    """Answer the rows; where answers are written and the truth is known, tell how likely it was."""
    return predictor.examine(rows.examples) if rows.has_truth else predictor.predict(rows.examples)


@dataclass(frozen=True, slots=True)
class ExportCheck:
    """An export that was written, and the model that it was written from."""

    form: Form
    name: str
    quantise: str
    folder: Path
    merged: Merged
    rows: Rows

    def run(self, own: Sequence[Prediction], *, seed: int, tell: Tell) -> dict[str, Any]:
        """Ask the export, and compare.

        Args:
            own: What the run answered.
            seed: Of the bootstrap intervals.
            tell: Takes one line for a person.

        Returns:
            `tolerance`, `program` and `quality` of `export.json`; the certificate then stands beside the files.

        Raises:
            CertificateError: If the program cannot load the export, computes something else, or answers otherwise though
                the form is exact.
            ModelError: If the form costs more quality than it may.
        """
        tell(f"Asking {self.form.program}, in a process of its own.")
        reads = self._reread()
        if self._layer.purpose != "language" or self.form.scores_vocabulary:
            program, predictions = self._scored(reads)
        else:
            program, predictions = self._written(reads)
        tolerance = self.form.tolerances[self.quantise]
        quality = self._quality(own, predictions, seed=seed)
        self._refuse_loss(quality)
        tell("Certifying it, in another process.")
        certify_export(
            self.name,
            self.folder,
            quantise=self.quantise,
            run=self.merged.predictor,
            reads=reads,
            probes=self.rows.examples[:NUM_PROBES],
        )
        return {"tolerance": tolerance._asdict(), "program": program, "quality": quality}

    def _reread(self) -> Predictor:
        try:
            return self.form.reread(self.merged, self.folder)
        except UserError as error:
            raise CertificateError(f"The export cannot be read back: {error}") from None

    @property
    def _layer(self) -> Any:  # noqa: ANN401
        predictor = self.merged.predictor
        return predictor.task.layer(predictor.state, answer=predictor.answer)

    def _scored(self, reads: Predictor) -> tuple[dict[str, Any], list[Prediction]]:
        """Have the program score all rows."""
        features = reads.encode(self.rows.examples)
        found = self._ask_program(documents=features)
        check_labels(self._layer.labels, found)
        with torch.inference_mode():
            expected = head_outputs(reads.task, reads.backbone, features)
        difference = largest_difference(expected, found.outputs)
        most = self.form.tolerances[self.quantise].difference
        if not difference <= most:  # so that what is no number is refused
            raise CertificateError(
                f"{found.program} gives scores that differ by {difference:.2g} from those of Lushan, as a share of the largest "
                f"(at most {most:g} is allowed). It was refused."
            )
        predictions = reads.task.decode(
            found.outputs, features, self.rows.examples, reads.state, answer=reads.answer
        )
        told = {
            "name": found.program,
            "num_documents": len(features),
            "largest_difference": difference,
        }
        return told, predictions

    def _written(self, reads: Predictor) -> tuple[dict[str, Any], list[Prediction]]:
        """Have the program follow some answers; all rows are answered by Lushan, with the weights of the files."""
        features = reads.encode(self.rows.examples[:NUM_PROMPTS])
        prompts = [_prompt(each) for each in features]
        texts = [*PROBES, *(each.shown for each in self.rows.examples[:NUM_PROMPTS])]
        settings = GenerationSettings(max_new_tokens=NUM_TOKENS)
        answers = [each.token_ids for each in generate(reads.backbone, prompts, settings)]
        found = self._ask_program(prompts=prompts, answers=answers, texts=texts)
        check_tokens(reads.backbone.tokenizer, texts, found)
        equal = equal_tokens(answers, [first_tokens(each) for each in found.followed])
        least = self.form.tolerances[self.quantise].equal_tokens
        if equal < least:
            raise CertificateError(
                f"{found.program} would write {equal:.0%} of the tokens that Lushan wrote with the same weights (at "
                f"least {least:.0%} is asked for). It was refused."
            )
        told = {"name": found.program, "num_prompts": len(prompts), "equal_tokens": equal}
        return told, ask(reads, self.rows)

    def _ask_program(self, **asked: Any) -> Answers:  # noqa: ANN401 - fields of `Questions`
        num_labels = len(self._layer.labels)
        task = self.merged.meaning.task
        return ask_program(Questions(self.name, str(self.folder), task, num_labels, **asked))

    def _quality(
        self, own: Sequence[Prediction], found: Sequence[Prediction], *, seed: int
    ) -> dict[str, Any]:
        rows, predictor = self.rows, self.merged.predictor
        quality: dict[str, Any] = {"rows": rows.source, "num_examples": len(rows.examples)}
        if not predictor.writes:
            equal = [float(a.answer == b.answer) for a, b in zip(own, found, strict=True)]
            quality["agreement"] = plain_interval(accuracy(equal, seed=seed))
        elif rows.has_truth:
            quality["lost_nats_per_token"] = plain_interval(lost_per_token(own, found, seed=seed))
        if rows.is_scored:
            first, second = (
                predictor.task.score(each, rows.examples, predictor.state, seed=seed)
                for each in (own, found)
            )
            quality |= {"main_metric": first.main_metric, "run": plain(first)}
            quality["export"] = plain(second)
            quality["seen_in_training"] = rows.seen_in_training
            compared = comparisons(second.correct, {"run": first.correct}, seed=seed)
            quality["comparison"] = compared["run"]
        return quality

    def _refuse_loss(self, quality: dict[str, Any]) -> None:
        """Refuse what is beyond the tolerance by more than chance: by the better end of its interval."""
        tolerance = self.form.tolerances[self.quantise]
        lost, equal = quality.get("lost_nats_per_token"), quality.get("agreement")
        if lost is not None and not lost["low"] <= tolerance.nats_per_token:
            told = (
                f"makes the truth less likely by {lost['value']:.3f} per token, surely by {lost['low']:.3f} (at most "
                f"{tolerance.nats_per_token:g} is allowed)"
            )
        elif equal is not None and equal["high"] < tolerance.agreement:
            told = (
                f"answers {equal['value']:.1%} of the rows as the run does, surely at most {equal['high']:.1%} (at least "
                f"{tolerance.agreement:.0%} is asked for)"
            )
        else:
            return
        if self.quantise in _EXACT:
            raise CertificateError(f"The export {told}. It was refused.")
        others = [each for each in self.form.tolerances if each != self.quantise]
        raise ModelError(
            f"`--quantise {self.quantise}` {told}. It was refused; choose {' or '.join(others)}."
        )


def _prompt(features: Features) -> list[int]:
    """The end of what a model reads before it answers."""
    end = features.branch_starts[0] if features.branches else len(features.token_ids)
    return list(features.token_ids[:end][-PROMPT_TOKENS:])


def largest_difference(expected: Sequence[Any], found: Sequence[Any]) -> float:
    """Largest difference of two numbers, as a share of the largest (of 1, if that is smaller).

    Raises:
        CertificateError: If there are more or fewer numbers.
    """
    if [np.shape(each) for each in expected] != [np.shape(each) for each in found]:
        raise CertificateError("The export gives more or fewer scores than Lushan. It was refused.")
    ours, theirs = (np.concatenate([np.ravel(x) for x in each]) for each in (expected, found))
    return float(np.abs(ours - theirs).max(initial=0.0) / max(1.0, np.abs(ours).max(initial=0.0)))


def equal_tokens(written: Sequence[Sequence[int]], followed: Sequence[Sequence[int]]) -> float:
    """Share of the places of all answers that hold the same token."""
    ours, theirs = ([token for each in x for token in each] for x in (written, followed))
    same = [first == second for first, second in zip(ours, theirs, strict=True)]
    return sum(same) / max(1, len(same))


def lost_per_token(
    own: Sequence[Prediction], found: Sequence[Prediction], *, seed: int
) -> Interval:
    """How much less likely the truth is per token, in nats, with its paired 95 % bootstrap interval."""
    table_N2 = np.array([
        [(a.truth_log_likelihood or 0.0) - (b.truth_log_likelihood or 0.0), a.num_truth_tokens]
        for a, b in zip(own, found, strict=True)
    ])
    lost, num_tokens = table_N2.sum(axis=0)
    totals_R2 = resampled_totals(table_N2, seed=seed)
    return difference_interval(lost / num_tokens, totals_R2[:, 0] / totals_R2[:, 1])
