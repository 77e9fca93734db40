"""One file is one task: reading a row, rendering, the layer or the words that answer, loss, decoding, scoring.

Start with classification.py. The folder is the table: `lushan tune --task NAME` finds NAME.py here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from lushan.backbones.encoding import LengthLimit
from lushan.backbones.load import Backbone
from lushan.backbones.tokenizer import Tokenizer
from lushan.data.columns import Columns
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
    seed: int = 0


class Task(Protocol):
    """One way to turn text into an answer, and to tell how good the answer is.

    A task knows text, labels and tensors. It knows no files, devices, optimizers or web pages.

    Shapes: N documents, T their tokens, D width, C classes or candidate answers.
    """

    columns: Columns
    """The columns of a row: required, optional, and what they are often called."""

    def read(self, row: Row, *, multi_label: bool = False, needs_target: bool = True) -> Example:
        """Check one row of user data and give it its meaning. Its id is a hash of its content.

        Raises:
            DataError: If the row does not fit; names the row and the column.
        """
        ...

    def is_multi_label(self, rows: Sequence[Row]) -> bool:
        """Say whether the target column holds lists of labels."""
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
        """The closed list of answers that `generate` chooses from, each as it follows the prompt."""
        ...

    def loss(
        self, backbone: Backbone, batch: Batch, state: TaskState, *, dropout: float
    ) -> LossSum:
        """Sum of losses and count of what was supervised; gets hidden states, projects only what is needed."""
        ...

    def outputs(self, backbone: Backbone, batch: Batch) -> np.ndarray:
        """What the head says of every document of a batch, in packed order; (N, C), float32."""
        ...

    def decode(
        self,
        outputs: np.ndarray,
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
        """Compare with the truth, per example where the metric allows it."""
        ...

    def sample_rows(self) -> list[Row]:
        """At least four rows: for the contract tests and the docs."""
        ...
