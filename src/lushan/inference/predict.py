"""From examples to predictions, for any task and either way of answering.

Documents run packed, longest last, and what all prompts share at their start is computed once.

Shapes: N documents of a batch, F all documents, C classes or candidate answers.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from lushan.backbones.encoding import LengthLimit
from lushan.backbones.load import Backbone
from lushan.data.batching import MAX_BATCH_TOKENS, pack, split_lengths
from lushan.data.chunks import encode_all, in_chunks
from lushan.data.feature_store import example_indices_of, lengths_of
from lushan.inference.constrained import score_candidates, shared_prefix
from lushan.inference.generate import Generated, generate
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.grammar import Constraint
from lushan.records import AnswerMode, Example, Features, Prediction, TaskState, Written
from lushan.tasks import Abstains, Outputs, Task

Advance = Callable[[int], None]


def _ignore(_: int) -> None:
    """Tell nobody about progress."""


class Prompted(NamedTuple):
    """What is asked of a model that writes."""

    prompt_ids: tuple[int, ...]
    settings: GenerationSettings
    constraint: Constraint | None


@dataclass(frozen=True, slots=True)
class Predictor:
    """A model, and the task and state that it answers for."""

    backbone: Backbone
    task: Task
    state: TaskState
    answer: AnswerMode
    limit: LengthLimit
    version: str = ""
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    """How answers are written, by a task that writes them."""

    @property
    def writes(self) -> bool:
        """Whether answers are free text."""
        return self.task.writes and self.answer == "generate"

    @property
    def chooses(self) -> bool:
        """Whether answers are chosen from a list that is the same for all examples, by how likely each is written."""
        return self.answer == "generate" and bool(self.task.candidates(self.state))

    @property
    def asked_limit(self) -> LengthLimit:
        """Longest document that is asked about: it leaves room to what is written."""
        if not self.writes:
            return self.limit
        room = self.backbone.facts.context_tokens - self.generation.max_new_tokens
        return replace(self.limit, max_tokens=min(self.limit.max_tokens, room))

    def predict(
        self,
        examples: Sequence[Example],
        *,
        shots: Sequence[Example] = (),
        features: Sequence[Features] | None = None,
        advance: Advance = _ignore,
    ) -> list[Prediction]:
        """Answer every example, in order; of many only some are tokens at a time.

        Args:
            examples: What is asked; their targets are not looked at.
            shots: Worked examples put before every prompt; only for `generate`.
            features: What `encode` gave for these examples, where they are asked again and again.
            advance: Called with the number of documents that were answered since the last call.

        Raises:
            TooLongError: If a text is too long and the policy is `error`; many before it may have been answered.
        """
        if not examples:
            return []
        if features is not None:
            return self.decode(self.outputs(features, examples, advance), features, examples)
        found: list[Prediction] = []
        for _, some in in_chunks(examples, more_characters=_num_characters(shots)):
            of_some = self.encode(some, shots=shots)
            found += self.decode(self.outputs(of_some, some, advance), of_some, some)
        return found

    def decode(
        self, outputs: Outputs, features: Sequence[Features], examples: Sequence[Example]
    ) -> list[Prediction]:
        """Turn what the model gave for `features` into one prediction per example, in order."""
        predictions = self.task.decode(outputs, features, examples, self.state, answer=self.answer)
        cut = cut_tokens(features) if self.limit.policy == "truncate" else {}
        return [
            replace(each, model_version=self.version, num_cut_tokens=cut.get(place, 0))
            for place, each in enumerate(predictions)
        ]

    def absences(self, examples: Sequence[Example]) -> list[float | None]:
        """How likely the model is to write that there is no answer, as natural logarithms.

        None where no threshold asks for it.
        """
        if not self.writes or self.state.no_answer_threshold is None:
            return [None] * len(examples)
        assert isinstance(self.task, Abstains)  # noqa: S101 - else there is no threshold
        blank = [self.task.abstention.unanswered(each) for each in examples]
        limit = self.limit
        if (
            limit.policy == "error"
        ):  # the question fits; what is tried out must not make it too long
            limit = replace(limit, max_tokens=self.backbone.facts.context_tokens)
        told = self._encode(blank, limit, with_target=True, shots=())
        with self._without_training():
            return [float(total) for total, _ in truth_outputs(self.task, self.backbone, told)]

    def prompted(self, features: Sequence[Features], examples: Sequence[Example]) -> list[Prompted]:
        """Say what is written for each example, and how; only of a model that writes."""
        found: list[Prompted] = []
        for each, example in zip(features, examples, strict=True):
            form: Mapping[str, Any] | None = example.extra.get("form")
            # What a form asks for ends the answer; a stop string could come before.
            learned = () if form else self.state.stop_strings
            stop_strings = (*self.generation.stop_strings, *learned)
            settings = self.generation.model_copy(update={"stop_strings": stop_strings})
            constraint = Constraint.lark(each.grammar) if each.grammar else None
            if form:
                constraint = Constraint.form(form, most_tokens=settings.max_new_tokens)
            found.append(Prompted(each.token_ids, settings, constraint))
        return found

    def examine(
        self,
        examples: Sequence[Example],
        *,
        shots: Sequence[Example] = (),
        features: Sequence[Features] | None = None,
        main_metric_only: bool = False,
        advance: Advance = _ignore,
    ) -> list[Prediction]:
        """Answer examples whose truth is known, as `predict` does; where answers are written, tell how likely the truth was.

        With `main_metric_only`, nothing is written where that likelihood is what the task is judged by.
        """
        if not self.writes:
            return self.predict(examples, shots=shots, features=features, advance=advance)
        found: list[Prediction] = []
        for start, some in in_chunks(examples, more_characters=_num_characters(shots)):
            told = self._encode(some, self.limit, with_target=True, shots=shots)
            with self._without_training():
                truths = truth_outputs(self.task, self.backbone, told)
            if features is None:
                of_some = self.encode(some, shots=shots)
            else:
                of_some = _features_of(features, start, start + len(some))
            # A model whose weights are no numbers any more cannot write.
            is_broken = all(math.isnan(total) for total, _ in truths)
            if is_broken or (main_metric_only and self.task.is_judged_by_likelihood):
                predictions = self.decode([Written("", 0.0)] * len(some), of_some, some)
            else:
                predictions = self.predict(some, features=of_some, advance=advance)
            found += [
                replace(each, truth_log_likelihood=float(total), num_truth_tokens=int(size))
                for each, (total, size) in zip(predictions, truths, strict=True)
            ]
        return found

    def encode(
        self, examples: Sequence[Example], *, shots: Sequence[Example] = ()
    ) -> list[Features]:
        """Give the tokens that the model reads when it is asked; several windows or candidates per example.

        Raises:
            TooLongError: If texts are too long and the policy is `error`; says how many.
        """
        return self._encode(examples, self.asked_limit, with_target=False, shots=shots)

    def _encode(
        self,
        examples: Sequence[Example],
        limit: LengthLimit,
        *,
        with_target: bool,
        shots: Sequence[Example],
    ) -> list[Features]:
        def encode(some: Sequence[Example]) -> list[Features]:
            return self.task.encode(
                some,
                self.state,
                self.backbone.tokenizer,
                answer=self.answer,
                limit=limit,
                with_target=with_target,
                shots=shots,
            )

        return encode_all(examples, encode, more_characters=_num_characters(shots))

    def outputs(
        self,
        features: Sequence[Features],
        examples: Sequence[Example],
        advance: Advance = _ignore,
    ) -> Outputs:
        """Run documents through the model; what it says of each."""
        with self._without_training():
            if self.writes:
                written = _written(self.backbone, self.prompted(features, examples), advance)
                return weighed(written, self.absences(examples))
            if self.chooses:
                candidates = self.task.candidates(self.state)
                return list(score_candidates(self.backbone, features, candidates, advance=advance))
            return head_outputs(self.task, self.backbone, features, advance)

    @contextmanager
    def _without_training(self) -> Iterator[None]:
        """Leave out dropout and gradients, also in the middle of training."""
        was_training = self.backbone.model.training
        self.backbone.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.backbone.model.train(was_training)


def _num_characters(shots: Sequence[Example]) -> int:
    """Characters that worked examples put before every prompt."""
    return sum(len(each.text) for each in shots)


def _features_of(features: Sequence[Features], start: int, end: int) -> Sequence[Features]:
    """Give the documents of the examples in [start, end), counted from there."""
    indices = example_indices_of(features)
    (places,) = np.nonzero((indices >= start) & (indices < end))
    if not start and len(places) == len(features):
        return features
    found = [features[place] for place in places.tolist()]
    return [replace(each, example_index=each.example_index - start) for each in found]


def cut_tokens(features: Sequence[Features]) -> dict[int, int]:
    """Give the examples of which tokens were left out, with the most of any of their documents."""
    found: dict[int, int] = {}
    for each in features:
        if each.num_cut_tokens:
            most = max(found.get(each.example_index, 0), each.num_cut_tokens)
            found[each.example_index] = most
    return found


def _written(backbone: Backbone, prompted: Sequence[Prompted], advance: Advance) -> list[Written]:
    found: dict[int, Written] = {}
    for has_form in (False, True):
        asked = {
            place: each
            for place, each in enumerate(prompted)
            if (each.constraint is not None) is has_form
        }
        if not asked:
            continue
        answers = generate(
            backbone,
            [each.prompt_ids for each in asked.values()],
            next(iter(asked.values())).settings,
            constraint=[each.constraint for each in asked.values()],
            advance=advance,
        )
        found |= zip(asked, written_answers(answers), strict=True)
    return [found[place] for place in range(len(prompted))]


def written_answers(answers: Iterable[Generated]) -> list[Written]:
    """Put the answers to each prompt together, in the order of the prompts."""
    of_prompt: dict[int, list[Generated]] = {}
    for each in answers:
        of_prompt.setdefault(each.prompt_index, []).append(each)
    return [written_from(each) for each in of_prompt.values()]


def written_from(answers: Sequence[Generated]) -> Written:
    """Give the answers to one prompt as one, the best."""
    samples = tuple(each.text for each in answers) if len(answers) > 1 else ()
    return Written(answers[0].text, answers[0].log_likelihood, samples)


def weighed(written: Sequence[Written], absences: Sequence[float | None]) -> list[Written]:
    """Put what `Predictor.absences` gave beside what was written."""
    return [
        replace(each, no_answer_log_likelihood=absence)
        for each, absence in zip(written, absences, strict=True)
    ]


def truth_outputs(task: Task, backbone: Backbone, features: Sequence[Features]) -> Outputs:
    """Ask how likely written answers are, as `head_outputs` does; what all documents start with is read once.

    Args:
        task: A task that writes.
        backbone: The model.
        features: Documents with their answers.
    """
    # The token in front of the first supervised one is read in any case: it predicts that.
    firsts = [min(each.positions or (each.targets_from - 1,)) for each in features]
    prefix = shared_prefix(backbone, features, most_tokens=min(firsts))
    if prefix is None:
        return head_outputs(task, backbone, features)
    rest = [_behind(each, prefix.num_tokens) for each in features]
    backbone.start = prefix
    try:
        return head_outputs(task, backbone, rest, first_position=prefix.num_tokens)
    finally:
        backbone.start = None


def _behind(document: Features, num_tokens: int) -> Features:
    """Leave out the start of a document, in front of all that is supervised."""
    return replace(
        document,
        token_ids=tuple(document.token_ids[num_tokens:]),
        targets_from=max(-1, document.targets_from - num_tokens),
        positions=document.positions and tuple(x - num_tokens for x in document.positions),
    )


def head_outputs(
    task: Task,
    backbone: Backbone,
    features: Sequence[Features],
    advance: Advance = _ignore,
    *,
    first_position: int = 0,
) -> Outputs:
    """Run every document through the model and its head; F arrays, in the order of `features`.

    Args:
        task: The task.
        backbone: The model.
        features: The documents.
        advance: Called with how many more were answered.
        first_position: Position of their first tokens.
    """
    lengths = lengths_of(features)
    order = np.argsort(lengths, kind="stable")
    rows: list[np.ndarray] = [np.empty(0)] * len(features)
    for start, end in split_lengths(lengths[order].tolist(), MAX_BATCH_TOKENS):
        places = order[start:end].tolist()
        documents = [features[place] for place in places]
        batch = pack(documents, first_position=first_position, device=backbone.device)
        for place, found in zip(places, task.outputs(backbone, batch), strict=True):
            rows[place] = found
        advance(len(places))
    return rows


def mean_loss(
    task: Task, backbone: Backbone, features: Sequence[Features], state: TaskState
) -> float:
    """Give the mean loss of documents with their targets, as training takes it, without dropout; 0 where none has weight."""
    total, count = 0.0, 0.0
    lengths = lengths_of(features)
    order = np.argsort(lengths, kind="stable")
    with torch.inference_mode():
        for start, end in split_lengths(lengths[order].tolist(), MAX_BATCH_TOKENS):
            part = [features[place] for place in order[start:end].tolist()]
            found = task.loss(backbone, pack(part, device=backbone.device), state, dropout=0.0)
            total += float(found.total)
            count += found.count
    return total / count if count else 0.0
