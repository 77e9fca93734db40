"""One file is one task: reading a row, rendering, the layer or the words that answer, loss, decoding, scoring.

Start with classification.py. The folder is the table: `lushan tune --task NAME` finds NAME.py here. Whatever else of
Lushan needs to know about a task, it asks the task: nothing outside this folder knows one by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from lushan.backbones.encoding import LengthLimit
from lushan.backbones.inspect import Family
from lushan.backbones.load import AnswerLayer, Backbone
from lushan.backbones.tokenizer import Tokenizer
from lushan.data.columns import Columns
from lushan.metrics.abstention import ThresholdPoint
from lushan.records import (
    AnswerMode,
    Batch,
    Example,
    Features,
    LossSum,
    Prediction,
    Rendered,
    Row,
    Scores,
    TaskState,
)


@dataclass(frozen=True, slots=True)
class Preparation:
    """What a task may look at when it learns its state from the training examples."""

    class_weights: Literal["none", "balanced"] = "none"
    instruction: str | None = None
    num_shots: int = 8
    run_code: bool = False
    attention: Literal["causal", "bidirectional"] = "causal"
    length_control: bool = False
    positive_label: str | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Wording:
    """How reports, model cards and tables speak of a task."""

    pipeline_tag: str
    """The name of the task on model hubs."""
    use: str
    """What a tuned model is for, with `{count}` and `{labels}`."""
    label: str = "label"
    """What one of `state.labels` is called."""
    counted: str = "texts"
    """What the `support` of a label counts."""
    nothing: str = "no label"
    """How an empty answer is shown."""
    limits: Mapping[AnswerMode, str] = field(default_factory=dict[AnswerMode, str])
    """A way of answering to what alone its answers can be, in a sentence; a way that writes freely has none."""


Untuned = Literal["prompt", "similarity", "nothing"]
"""How an untouched model is asked: it writes one of the candidates; an encoder takes the label that is most like the
text; or it cannot be asked, and the baseline `nothing` stands in its place."""

Outputs = Sequence[Any]
"""What the head or the vocabulary says of every document, as float arrays; or the answer that it wrote, as `Written`."""


class Task(Protocol):
    """One way to turn text into an answer, and to tell how good the answer is.

    A task knows text, labels and tensors. It knows no files, devices, optimizers or web pages.

    Shapes: N documents, T their tokens, D width, C classes or candidate answers.
    """

    columns: Columns
    """The columns of a row: required, optional, what they are often called, and other forms of rows."""
    answers: tuple[AnswerMode, ...]
    """The ways in which a tuned model can answer, the usual one first."""
    settings: frozenset[str]
    """Names of `task_settings` that this task reads; others are refused."""
    writes: bool
    """Whether `generate` writes any text; else it chooses among answers that are known."""
    is_judged_by_likelihood: bool
    """Whether the main metric of what is written is how likely the truth was, which nothing has to be written for."""
    untuned: Mapping[Family, Untuned]
    """How an untouched model of a family is asked, with the same state, for `before` and few-shot."""
    baselines: tuple[str, ...]
    """Files of `lushan/baselines` that a user would otherwise pick, the simplest first."""
    wording: Wording
    """How people are told of its results."""

    def read(self, row: Row, *, multi_label: bool = False, needs_target: bool = True) -> Example:
        """Check one row of user data and give it its meaning. Its id is a hash of its content.

        Raises:
            DataError: If the row does not fit; names the row and the column.
        """
        ...

    def layer(self, state: TaskState, *, answer: AnswerMode) -> AnswerLayer:
        """Say what a backbone needs in order to answer."""
        ...

    def notes(self, examples: Sequence[Example]) -> list[str]:
        """Tell what of the training examples is worth a look and does not block."""
        ...

    def prepare(
        self, examples: Sequence[Example], preparation: Preparation, *, multi_label: bool
    ) -> TaskState:
        """Learn what must be known before training. Saved with the model, never re-derived.

        Raises:
            DataError: If the examples cannot be learned from.
        """
        ...

    def render(
        self,
        example: Example,
        state: TaskState,
        *,
        answer: AnswerMode,
        with_target: bool,
        shots: Sequence[Example] = (),
    ) -> list[Rendered]:
        """The text that the model sees; several where each candidate is asked about by itself."""
        ...

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
        """Token ids and targets; several windows or candidates per example, each with its example's index.

        Raises:
            DataError: If a text is too long and the policy is `error`.
        """
        ...

    def candidates(self, state: TaskState) -> list[str]:
        """The closed list of answers that `generate` chooses from, each as it follows the prompt.

        Empty where every example has choices of its own: then `outputs` says how likely each of them is.
        """
        ...

    def loss(
        self, backbone: Backbone, batch: Batch, state: TaskState, *, dropout: float
    ) -> LossSum:
        """Sum of losses and count of what was supervised; gets hidden states, projects only what is needed."""
        ...

    def outputs(self, backbone: Backbone, batch: Batch) -> Outputs:
        """What the head says of every document of a batch, in packed order; (C,) or (positions, C) each, float32.

        Without `candidates`, what the vocabulary says of a document's own choices; (C,) each. Of a task that writes: how
        likely the truth is, and its number of tokens; (2,) each.
        """
        ...

    def decode(
        self,
        outputs: Outputs,
        features: Sequence[Features],
        examples: Sequence[Example],
        state: TaskState,
        *,
        answer: AnswerMode,
    ) -> list[Prediction]:
        """One prediction per example, in order; merges windows and candidates."""
        ...

    def score(
        self,
        predictions: Sequence[Prediction],
        examples: Sequence[Example],
        state: TaskState,
        *,
        seed: int = 0,
    ) -> Scores:
        """Compare with the truth, per example where the metric allows it.

        `details["log_loss"]` is the validation loss; without it, `loss` is asked about the validation rows.
        """
        ...

    def sample_rows(self) -> list[Row]:
        """At least four rows: for the contract tests and the docs."""
        ...


class Abstention(Protocol):
    """When a task gives no answer: where that is likelier than a threshold which the validation rows decide."""

    def may_abstain(self, state: TaskState) -> bool:
        """Whether the training rows had what is not to be answered."""
        ...

    def unanswered(self, example: Example) -> Example:
        """The example as if it had no answer: what a model that writes is asked the probability of."""
        ...

    def thresholds(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> list[ThresholdPoint]:
        """Show what thresholds do; empty where nothing can be decided.

        Args:
            predictions: With a `no_answer_probability`, and with the answer that would be given whatever it is.
            examples: What was asked, with their truth.
        """
        ...


@runtime_checkable
class Abstains(Protocol):
    """A task that may give no answer."""

    abstention: Abstention


@runtime_checkable
class Quotes(Protocol):
    """A task that writes parts of the text, which can be cut off with its end."""

    def as_read(self, example: Example, num_characters: int) -> Example:
        """Give an example of whose text no more than the first characters is read: of its truth what stands there.

        The target is None where that leaves nothing to learn.
        """
        ...


@runtime_checkable
class Proves(Protocol):
    """A task that can prove whether a truth is right."""

    def prove(self, examples: Sequence[Example]) -> list[str]:
        """Try the truth of the first examples, and tell how many fail.

        Raises:
            DataError: If all do, so that no answer could be told from another.
        """
        ...
