"""What tasks share whose answer is a text that the model writes: prompt, targets, loss, where an answer ends.

Shapes: N documents, T tokens, D width, K supervised positions.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lushan.backbones.encoding import (
    LengthLimit,
    Window,
    characters_read,
    encode_rendered,
)
from lushan.backbones.heads import token_log_likelihoods
from lushan.backbones.inspect import Family
from lushan.backbones.load import AnswerLayer, Backbone
from lushan.backbones.tokenizer import Tokenizer
from lushan.backbones.vocabulary_loss import vocabulary_loss
from lushan.data.draws import draw_in_turn
from lushan.data.spans import first_words
from lushan.errors import DataError, SettingError
from lushan.metrics import tagging
from lushan.metrics.dialogue import likelihood_intervals
from lushan.records import (
    Answer,
    AnswerMode,
    Batch,
    Example,
    Features,
    Interval,
    LossSum,
    Prediction,
    Rendered,
    Row,
    Scores,
    TaskState,
    Written,
)

if TYPE_CHECKING:
    from lushan.tasks import Preparation, Untuned

_STOP_STRINGS = ("\n", "\n\n", "\n\nText:")
"""What may follow a written answer, the tightest first; the last begins the next worked example."""


def read_text(row: Row, name: str) -> str:
    """Give a column's text, without the space around it.

    Raises:
        DataError: If there is none; names the row and the column.
    """
    value = row.values.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{row.place}: column `{name}` must hold a text, got {value!r}.")
    return value.strip()


def read_length(row: Row, expected: str) -> int:
    """Give the number of words in the column `length`.

    Raises:
        DataError: If it is none; names the row and what was expected.
    """
    value = row.values["length"]
    if re.fullmatch(r"[1-9]\d{0,8}(\.0+)?", str(value)) is None:
        raise DataError(f"{row.place}: column `length` must hold {expected}, got {value!r}.")
    return int(str(value).partition(".")[0])


def told_length(num_words: int) -> str:
    """`12 words`: how a model is told how long its answer is to be."""
    return f"{num_words} words"


def learn_to_write(
    examples: Sequence[Example],
    preparation: Preparation,
    *,
    text_of: Callable[[Example], str] = lambda example: str(example.target),
    kind_of: Callable[[Example], Hashable] = lambda _: None,
) -> TaskState:
    """Draw the worked examples of each kind, and find out what ends an answer: the shortest break that no training answer holds."""
    kinds_and_ids = ((kind_of(each), each.id) for each in examples)
    drawn = draw_in_turn(kinds_and_ids, num_each=preparation.num_shots, seed=preparation.seed)
    open_breaks = list(_STOP_STRINGS)
    for each in examples:
        open_breaks = [mark for mark in open_breaks if mark not in text_of(each)]
    return TaskState(
        shots=tuple(examples[place] for place in drawn),
        instruction=preparation.instruction,
        stop_strings=tuple(open_breaks[:1]),
    )


def render_prompt(
    text: Rendered,
    *,
    opening: str,
    shots: Sequence[tuple[str, str]],
    question: str,
    answer: str | None,
) -> Rendered:
    """Write instruction, worked examples and question; and the answer, which is supervised.

    Args:
        text: What is asked about, and what of it may be cut.
        opening: The instruction, with the blank line behind it.
        shots: Text and answer of every worked example.
        question: Follows every text.
        answer: With the space before it; None where it is asked for.
    """
    prompt = opening + "".join(f"Text: {shown}\n{question}{told}\n\n" for shown, told in shots)
    start = len(prompt) + len("Text: ")
    prompt += f"Text: {text.text}\n{question}"
    asked = replace(
        text,
        text=prompt,
        cuttable=(start + text.cuttable[0], start + text.cuttable[1]),
        given=tuple((start + first, start + end) for first, end in text.given),
    )
    return asked if answer is None else told(asked, answer)


def told(asked: Rendered, answer: str) -> Rendered:
    """Write the answer behind a prompt; it is supervised, the stop token included."""
    start = len(asked.text)
    supervised = ((start, start + len(answer)),)
    return replace(asked, text=asked.text + answer, supervised=supervised, ends_with_stop=True)


def encode_text(
    rendered: Sequence[Rendered],
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    limit: LengthLimit,
    grammar: Callable[[Example], str] | None = None,
) -> list[Features]:
    """Token ids of one document per example; what follows the prompt, if it does, is supervised.

    Args:
        rendered: What the model reads.
        examples: Whose texts it is.
        tokenizer: The model's tokenizer.
        limit: Longest document, and the policy for longer ones.
        grammar: Gives the grammar of an example of which a part is read; None keeps that of the whole.

    Raises:
        SettingError: If a text that is too long is to be read in windows.
        DataError: If one is too long and the policy is `error`.
    """
    if limit.policy == "window":
        raise SettingError(
            "`data.over_length=window`: each window would be given an answer of its own. Use `truncate`, which cuts "
            "the end of the text, or `error`."
        )

    def held_to(document: Rendered, example: Example, window: Window) -> str:
        """Give the grammar of what is read of the text, where there is one."""
        if not (grammar and document.grammar and window.num_cut_tokens):
            return document.grammar
        return grammar(first_words(example, characters_read(document, window)))

    places = [each.place for each in examples]
    windows = encode_rendered(rendered, tokenizer, limit=limit, places=places)
    return [
        Features(
            token_ids=window.token_ids,
            place=example.place,
            example_index=index,
            targets_from=window.targets_from,
            num_cut_tokens=window.num_cut_tokens,
            grammar=held_to(document, example, window),
        )
        for index, (document, example, (window,)) in enumerate(
            zip(rendered, examples, windows, strict=True)
        )
    ]


def _supervised_positions(batch: Batch) -> Tensor:
    """Index of every supervised token on the token axis; (K,)."""
    return torch.cat([
        torch.arange(start + each.targets_from, start + len(each.token_ids))
        for start, each in zip(batch.first_N.tolist(), batch.features, strict=True)
    ]).to(batch.token_ids_1T.device)


def answer_loss(backbone: Backbone, hidden_TD: Tensor, batch: Batch) -> LossSum:
    """Cross-entropy of the supervised tokens; only their positions meet the vocabulary."""
    targets_K = _supervised_positions(batch)
    weights_K = torch.tensor(
        [each.weight for each in batch.features for _ in range(each.num_supervised)],
        device=hidden_TD.device,
    )
    total = vocabulary_loss(
        backbone.plain_model,
        hidden_TD[targets_K - 1],
        batch.token_ids_1T[0, targets_K],
        weights_K,
    )
    count = sum(each.weight * each.num_supervised for each in batch.features)
    return LossSum(total, count)


def truth_likelihoods(backbone: Backbone, batch: Batch) -> list[np.ndarray]:
    """Summed log-probability of the supervised tokens of each document, and their number; (2,) each."""
    hidden_TD = backbone.hidden_states(batch)
    targets_K = _supervised_positions(batch)
    logs_K = token_log_likelihoods(
        backbone.plain_model, hidden_TD[targets_K - 1], batch.token_ids_1T[0, targets_K]
    )
    return sums_per_document(logs_K, batch)


def sums_per_document(logs_K: Tensor, batch: Batch) -> list[np.ndarray]:
    """Sum what was found for supervised tokens over each document, and tell their number; (2,) each."""
    sizes = [each.num_supervised for each in batch.features]
    sums = [float(part.cpu().double().sum()) for part in logs_K.detach().split(sizes)]
    return [np.array(pair) for pair in zip(sums, sizes, strict=True)]


def decode_written(
    written: Sequence[Written],
    examples: Sequence[Example],
    *,
    clean: Callable[[str], str] = str.strip,
) -> list[Prediction]:
    """One prediction per example: what was written, as a rule without the space around it."""
    return [
        Prediction(
            example.id,
            clean(each.text),
            log_likelihood=each.log_likelihood,
            samples=tuple(map(clean, each.samples)),
        )
        for example, each in zip(examples, written, strict=True)
    ]


def decode_items(
    written: Sequence[Written],
    examples: Sequence[Example],
    state: TaskState,
    *,
    read: Callable[[str, Example, Sequence[str]], Answer],
) -> list[Prediction]:
    """One prediction per example: the parts of its text that `read` finds in what was written."""
    return [
        replace(each, answer=read(str(each.answer), example, state.labels))
        for each, example in zip(decode_written(written, examples), examples, strict=True)
    ]


def score_items(
    predictions: Sequence[Prediction], examples: Sequence[Example], state: TaskState, *, seed: int
) -> Scores:
    """F1 of all entities or triples first; a row is right when all of its own are."""
    truth: list[Any] = [each.target for each in examples]
    answers: list[Any] = [each.answer for each in predictions]
    scores = tagging.score(truth, answers, state.labels)
    return Scores(
        main_metric="f1",
        metrics={
            **tagging.intervals(truth, answers, state.labels, seed=seed),
            **likelihoods(predictions, seed=seed),
        },
        correct=tagging.correct_rows(truth, answers),
        details={
            **validation_loss(predictions),
            "labels": list(state.labels),
            "per_class": [asdict(each) for each in scores.per_class],
        },
    )


def truths(predictions: Sequence[Prediction]) -> list[tuple[float, int]] | None:
    """Log-probability and tokens of every truth; None where the model was not asked for them, as of a baseline."""
    found = [
        (each.truth_log_likelihood, each.num_truth_tokens)
        for each in predictions
        if each.truth_log_likelihood is not None
    ]
    return found if len(found) == len(predictions) else None


def details(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """The tables that a task without labels has none of, and the validation loss."""
    return {"labels": [], "per_class": [], **validation_loss(predictions)}


def validation_loss(predictions: Sequence[Prediction]) -> dict[str, float]:
    """`log_loss`, per token of the truth, where it was asked."""
    known = truths(predictions)
    if not known:
        return {}
    return {"log_loss": -sum(total for total, _ in known) / sum(size for _, size in known)}


def likelihoods(predictions: Sequence[Prediction], *, seed: int) -> dict[str, Interval]:
    """`perplexity` and `answer_log_likelihood` of the truth; nothing where the model was not asked for it."""
    known = truths(predictions)
    return likelihood_intervals(known, seed=seed) if known else {}


class WritingTask(ABC):
    """What is the same in every task that only writes; each adds how a row is read, asked and scored."""

    answers: tuple[AnswerMode, ...] = ("generate",)
    writes = True
    is_judged_by_likelihood = False
    untuned: Mapping[Family, Untuned] = {
        "decoder": "prompt",
        "encoder": "nothing",
    }

    @abstractmethod
    def render(
        self,
        example: Example,
        state: TaskState,
        *,
        answer: AnswerMode,
        with_target: bool,
        shots: Sequence[Example] = (),
    ) -> list[Rendered]:
        """The one text that the model sees."""

    def grammar(self, example: Example, state: TaskState) -> str:
        """What may be written of a text, as llguidance reads it; empty where that is any text."""
        return ""

    def layer(self, state: TaskState, *, answer: AnswerMode) -> AnswerLayer:
        """The vocabulary.

        Raises:
            SettingError: If a head is to answer.
        """
        if answer != "generate":
            name = type(self).__module__.rpartition(".")[2]
            raise SettingError(
                f"The task `{name}` writes its answers. Use `--answer generate`, or leave it out."
            )
        return AnswerLayer("language")

    def notes(self, examples: Sequence[Example]) -> list[str]:
        """Nothing beside what every task tells."""
        return []

    def prepare(
        self, examples: Sequence[Example], preparation: Preparation, *, multi_label: bool
    ) -> TaskState:
        """Draw the worked examples, and learn where an answer ends."""
        return learn_to_write(examples, preparation)

    def encode(
        self,
        examples: Sequence[Example],
        state: TaskState,
        tokenizer: Tokenizer,
        *,
        answer: AnswerMode,
        limit: LengthLimit,
        with_target: bool,
        shots: Sequence[Example] = (),
    ) -> list[Features]:
        """One document a row; what is to be written is supervised.

        Raises:
            DataError: If a text is too long and the policy is `error`.
        """
        rendered = [
            self.render(each, state, answer=answer, with_target=with_target, shots=shots)[0]
            for each in examples
        ]
        grammar = partial(self.grammar, state=state)
        return encode_text(rendered, examples, tokenizer, limit=limit, grammar=grammar)

    def candidates(self, state: TaskState) -> list[str]:
        """None: any text may be written."""
        return []

    def loss(
        self, backbone: Backbone, batch: Batch, state: TaskState, *, dropout: float
    ) -> LossSum:
        """Cross-entropy of what is to be written."""
        return answer_loss(backbone, backbone.hidden_states(batch), batch)

    def outputs(self, backbone: Backbone, batch: Batch) -> Sequence[np.ndarray]:
        """How likely the truth is, and its number of tokens; (2,) each."""
        return truth_likelihoods(backbone, batch)

    def decode(
        self,
        outputs: Sequence[Written],
        features: Sequence[Features],
        examples: Sequence[Example],
        state: TaskState,
        *,
        answer: AnswerMode,
    ) -> list[Prediction]:
        """What was written."""
        return decode_written(outputs, examples)
