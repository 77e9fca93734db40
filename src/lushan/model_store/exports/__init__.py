"""One file is one form that other programs load; the folder is the table, as that of the tasks is."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from lushan.backbones.load import Purpose
from lushan.backbones.tokenizer import Tokenizer
from lushan.catalog import names_in
from lushan.errors import SettingError
from lushan.inference.predict import Predictor
from lushan.model_store import probes
from lushan.model_store.merged import Merged

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Token ids and attention mask, (B, L) each and padded at the end, to logits: (B, C) of a class layer, else (B, L, C)."""

SCRATCH = "scratch"
"""Name of a folder beside that of an export, for what is needed only while it is checked."""

NUM_LIKELIEST = 5
Likeliest = Sequence[tuple[int, float]]
"""The likeliest tokens at one place, best first, each with the natural logarithm of its probability."""

Follow = Callable[[Sequence[int], Sequence[int]], list[Likeliest]]
"""A prompt's token ids and an answer's, to the likeliest tokens at each place of the answer, which is read up to there."""

Encode = Callable[[str], list[int]]
"""A text to its token ids, without those that are put around it."""


class Tolerance(NamedTuple):
    """How far an export may be from the run. What is further is refused."""

    difference: float
    """Most that a score may differ between the program that is to load the files and Lushan, as a share of the largest
    score (of 1, if that is smaller)."""
    equal_tokens: float
    """Least share of the places of what Lushan wrote at which the program would go on with the same token."""
    agreement: float
    """Least share of rows that are answered as the run does, where answers are chosen and not written. It is missed when
    its whole interval does."""
    nats_per_token: float
    """Most that the truth may become less likely, per token, where answers are written. It is missed when its whole interval
    does."""


@dataclass(frozen=True, slots=True)
class TextRules:
    """What the files of an export say of how texts become tokens, and where an answer ends."""

    tokenizer: Tokenizer
    context_tokens: int = 0
    """Most tokens of a text and its answer; 0 where nothing is written."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end an answer, beside the tokenizer's own."""


class Form(ABC):
    """A way to store a tuned model, and the program that is to load it.

    Shapes: B documents, L tokens of the longest, C classes or tokens of the vocabulary.
    """

    program: ClassVar[str]
    """The package that loads the files."""
    packages: ClassVar[tuple[str, ...]] = ()
    """What must be installed; the extra `export` brings it."""
    tolerances: ClassVar[Mapping[str, Tolerance]]
    """What `--quantise` takes, the usual one first."""
    scores_vocabulary: ClassVar[bool] = False
    """Whether a model with a vocabulary and no head is asked for scores, and not for what it writes."""
    arithmetic: ClassVar[Mapping[str, probes.Tolerance]] = {}
    """How far the program's numbers may be from those of another day or processor, by `quantise`; as in float32 where
    nothing is said."""
    own_rules: ClassVar[tuple[str, ...]] = ()
    """What the files say in their own way of how a text is read, so that it is not compared with what the run says."""
    most_prompt_tokens: ClassVar[int | None] = None
    """What the program reads of a prompt when it is to write: its last ones; None takes all."""

    def check(self, predictor: Predictor, purpose: Purpose) -> None:  # noqa: B027 - most forms take every model
        """Refuse a model that has no such form.

        Raises:
            ModelError: If so; says why, and what is possible.
        """

    @abstractmethod
    def write(self, merged: Merged, folder: Path, *, quantise: str) -> list[str]:
        """Write all files into an existing folder; gives what a person should know. May change the weights in `merged`."""

    @abstractmethod
    def reread(self, merged: Merged, folder: Path) -> Predictor:
        """Give what Lushan makes of the files, in float32; `merged` itself where it cannot read them."""

    def read_rules(self, folder: Path) -> TextRules:
        """Read how texts are cut, from the files that others read it from."""
        return TextRules(Tokenizer.load(folder))

    def open_scores(self, folder: Path) -> Score | None:
        """Load the files into the program as others do, to score tokens; None if it follows."""
        return None

    def open_follower(self, folder: Path) -> tuple[Follow, Encode] | None:
        """Load the files into the program as others do, to follow what is written; None if it scores."""
        return None

    def read_labels(self, folder: Path) -> list[str] | None:
        """Give the label names that others read beside the model; None where there are none."""
        return None


def form_names() -> list[str]:
    """List the forms, one per file of the folder."""
    return names_in(__name__)


def load_form(name: str) -> Form:
    """Import one form by the name of its file.

    Raises:
        SettingError: If there is no such form; lists those there are.
    """
    if name not in (known := form_names()):
        raise SettingError(f"`--to {name}` is no form. Known: {', '.join(known)}.")
    return importlib.import_module(f"{__name__}.{name}").Form()
