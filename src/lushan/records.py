"""The nouns that cross the walls between folders, in the order in which data meets them.

Row -> Example -> Rendered -> Features -> Batch -> (hidden states, loss) -> Prediction -> Scores

Nothing here imports torch: reading and checking data needs none of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

AnswerMode = Literal["head", "generate"]
SplitName = Literal["train", "validation", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Row:
    """One record of user data as it was read, before a task gives it meaning."""

    values: Mapping[str, Any]
    """Column name to value; names are those that the task knows, after mapping."""
    source: str
    """The file it came from."""
    number: int
    """Where it stands in that file: line number for text formats, row number for parquet, from 1."""

    @property
    def place(self) -> str:
        """`reviews.csv, row 12`: how error messages point at a row."""
        return f"{self.source}, row {self.number}"


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a text with a label; two are equal when place and label are."""

    start: int
    """First character, from 0."""
    end: int
    """Character behind the last."""
    label: str
    text: str = field(default="", compare=False)
    """The characters themselves."""
    probability: float | None = field(default=None, compare=False)
    """How sure the model is; None where it was not asked."""


@dataclass(frozen=True, slots=True)
class Mention:
    """A part of a text that names something; two are equal when their letters are, wherever they stand."""

    text: str
    """The characters themselves, a line break as a space."""
    start: int = field(compare=False)
    """First character, from 0."""
    end: int = field(compare=False)
    """Character behind the last."""


@dataclass(frozen=True, slots=True)
class Triple:
    """What one mention of a text is to another, from head to tail."""

    head: Mention
    label: str
    """The relation."""
    tail: Mention

    @property
    def shown(self) -> str:
        """What people are shown: `Ada - born in -> Ulm`, with a dash and an arrow."""
        return f"{self.head.text} \u2014 {self.label} \u2192 {self.tail.text}"


Answer = str | tuple[str, ...] | tuple[Span, ...] | tuple[Triple, ...]
"""What a truth or a prediction is: a label or a text, several labels, parts of the text, or relations between parts."""


def plain_answer(answer: Answer | None) -> Any:  # noqa: ANN401 - any JSON value
    """Give an answer as JSON has it; `answer_from_plain` is the way back."""
    if answer is None or isinstance(answer, str):
        return answer
    return [each if isinstance(each, str) else asdict(each) for each in answer]


def answer_from_plain(value: Any) -> Any:  # noqa: ANN401 - an `Answer`, or None
    """Give the answer that `plain_answer` wrote."""
    if value is None or isinstance(value, str):
        return value
    return tuple(each if isinstance(each, str) else _part_from_plain(each) for each in value)


def _part_from_plain(value: Mapping[str, Any]) -> Span | Triple:
    return triple_from_plain(value) if "head" in value else Span(**value)


def triple_from_plain(value: Mapping[str, Any]) -> Triple:
    """Give the triple of an answer that `plain_answer` wrote."""
    return Triple(Mention(**value["head"]), value["label"], Mention(**value["tail"]))


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool in an answer."""

    name: str
    """Which tool is called."""
    arguments: Mapping[str, Any]
    """With what, as JSON has it."""


class ToolForm(NamedTuple):
    """How a chat template writes a call: `<tool_call>{"name": ..., "arguments": ...}</tool_call>`."""

    before: str
    """What stands before the JSON, from the start of the assistant's turn on."""
    after: str
    """What stands behind it, before the turn ends."""
    name: str
    """The field of the JSON that names the tool."""
    arguments: str
    """The field with its arguments."""
    num_hidden: int = 0
    """Characters of `before` up to the end of its last special token, which the text of an answer does not show."""

    @property
    def mark(self) -> str:
        """What tells a call from other text: the last line before it; empty where the whole text is one."""
        return self.before[self.num_hidden :].strip().rpartition("\n")[2].strip()


FORM_FIELDS = ("must", "must_not", "regex", "json_schema")
"""Of a form: words that an answer must have, words that it must not have, an expression that it matches as a whole, a
JSON Schema that accepts it (which then stands alone)."""


GOES_ON = "\x1f"
"""Parts what a group begins with from what follows: rows of a conversation that was cut earlier have less of it."""
EITHER_WAY = "\x1e"
"""Parts the two texts of a group of which each is the answer to the other: a row and its reverse give each other away."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row that a task has checked and understood."""

    id: str
    """Hash of the content; the same text and target have the same id everywhere."""
    text: str
    """What the model reads; overlap between splits is judged on it."""
    target: Answer | None
    """The truth: a label, several labels, a text, spans; None where it is not known (prediction)."""
    place: str = ""
    """`reviews.csv, row 12`."""
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What a task needs beyond one text, as JSON has it; `question` is what was asked about the text, `form` (see
    `FORM_FIELDS`) what an answer that is written must keep to."""
    labels: tuple[str, ...] | None = None
    """The class names in the truth; None takes those of the target. Empty where a target is free text."""
    group: str = ""
    """Rows with the same are never cut into two splits, where that is not the text: what a conversation begins with, turns
    parted by `GOES_ON`; the text around two spans; a text and its answer, parted by `EITHER_WAY`; empty where it is the text."""

    @property
    def shown(self) -> str:
        """What people are shown: the question that was asked, if there is one, and the text."""
        question = self.extra.get("question")
        return self.text if question is None else f"{question}\n{self.text}"

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in the truth, each once: rows are drawn, counted and checked by them."""
        if self.labels is not None:
            return self.labels
        if self.target is None or isinstance(self.target, str):
            return () if self.target is None else (self.target,)
        names = [each if isinstance(each, str) else each.label for each in self.target]
        return tuple(dict.fromkeys(names))


def content_id(*parts: object) -> str:
    """Give the id of an example: 16 hexadecimal digits of the SHA-256 of its parts, as JSON."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class TaskState:
    """What a task learns from the training data before training; saved with the model, never re-derived."""

    labels: tuple[str, ...] = ()
    """Label names; the position is the class number, for ever."""
    multi_label: bool = False
    """Whether a text may have several labels, or none."""
    shots: tuple[Example, ...] = ()
    """Worked examples for few-shot prompting."""
    class_weights: tuple[float, ...] = ()
    """Weight of each class in the loss; empty where all count the same."""
    instruction: str | None = None
    """First line of the prompt; None takes the task's own."""
    stop_strings: tuple[str, ...] = ()
    """Texts that end a written answer, because no answer that was learned from holds them."""
    most_items: int = 0
    """Most entities or relations of a written answer; 0 where it is no list of parts of the text."""
    longest_name: int = 0
    """Most characters of a name in a written answer; 0 as above."""
    both_ways: bool = False
    """Whether a token sees those behind it too, also in a decoder; only where a head answers."""
    lengths: tuple[int, ...] = ()
    """Words of a short, a medium and a long answer, where the wanted length is told to the model; else empty."""
    no_answer_threshold: float | None = None
    """No answer is given where the probability that there is none is above; None where no rows could decide it."""
    positive_label: str | None = None
    """Of two labels the one whose F1, precision and recall are told; None takes the last."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text that the model sees and the character ranges that are supervised."""

    text: str
    supervised: tuple[tuple[int, int], ...] = ()
    """Character ranges [start, end) of `text` on which loss is taken; empty where a head answers."""
    cuttable: tuple[int, int] = (0, 0)
    """The character range that may be shortened when the text is too long."""
    cuts_start: bool = False
    """Whether truncation takes the start of that range and not its end."""
    uncut: str = "What surrounds the text"
    """What messages call the rest, which is never shortened."""
    ends_with_stop: bool = False
    """Whether the stop token follows the text, and is supervised."""
    asked_at: tuple[int, ...] = ()
    """Where in `text` a model is asked, beside the start of what is supervised: no token stands across such a place."""
    given: tuple[tuple[int, int], ...] = ()
    """Character ranges that the user wrote, in order; empty where that is the cuttable range alone."""
    grammar: str = ""
    """What may be written behind the text, as llguidance reads it; empty where that is any text."""

    @property
    def given_ranges(self) -> tuple[tuple[int, int], ...]:
        """Character ranges that the user wrote, in order; the rest is template and answer."""
        return self.given or (self.cuttable,)


@dataclass(frozen=True, slots=True)
class Features:
    """Token ids of one document, ready for batching."""

    token_ids: tuple[int, ...]
    place: str
    """Where its example stands: `reviews.csv, row 12`."""
    example_index: int
    """Position of the example in the list that was encoded."""
    target: int | tuple[int, ...] = -1
    """Class number, one 0/1 per label, or one class number per position; -1 where there is none."""
    targets_from: int = -1
    """Index of the first supervised token: it and all that follow are predicted; -1 where a head answers."""
    positions: tuple[int, ...] | None = None
    """Tokens at which a head answers, one target each; None where it answers once, for the whole document."""
    units: tuple[tuple[int, int], ...] = ()
    """What each position answers for: the numbers of a first and a last word of the example; or the number of a
    branch, and the token that is to follow. Without positions: the characters [start, end) of the text that each token
    stands for; (0, 0) where it stands for none."""
    candidate: int = -1
    """Which candidate answer (label number) this document asks about; -1 if it asks about all."""
    branches: tuple[tuple[int, int], ...] = ()
    """Parts that each continue the start of the document and do not see each other, such as the choices after a
    question: first token of each, and characters of its text; empty in a plain document."""
    num_cut_tokens: int = 0
    """Tokens left out because the document was too long."""
    num_cut_items: int = 0
    """Parts of the truth (entities, triples, an answer) that were left out with them, and are not learned."""
    weight: float = 1.0
    """Weight of this document's loss (class weights)."""
    grammar: str = ""
    """What may be written behind the document, as llguidance reads it; empty where that is any text."""
    tool_form: ToolForm | None = None
    """How a call is written behind the document; None where no tools may be called."""

    @property
    def branch_starts(self) -> tuple[int, ...]:
        """First token of each branch."""
        return tuple(start for start, _ in self.branches)

    @property
    def content(self) -> tuple[int, ...]:
        """What decides the hidden states: the tokens, and behind them, as negative numbers, where branches begin."""
        return (*self.token_ids, *(-1 - start for start in self.branch_starts))

    @property
    def num_supervised(self) -> int:
        """How many targets this document has: its supervised tokens, its positions, or one for a head."""
        if self.positions is not None:
            return len(self.positions)
        return 1 if self.targets_from < 0 else len(self.token_ids) - self.targets_from


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents packed one after another on one token axis, without padding.

    Shapes: N documents, T tokens of all documents. Documents are sorted by length, first those that continue least.
    """

    token_ids_1T: Tensor
    position_ids_1T: Tensor
    """Position inside its own document (counted after the shared prefix, if there is one)."""
    document_ids_1T: Tensor
    """Which document a token belongs to, 0 to N-1, never falling."""
    first_N: Tensor
    """Index of each document's first token."""
    last_N: Tensor
    """Index of each document's last token."""
    features: tuple[Features, ...]
    """The documents, in packed order."""

    @property
    def num_tokens(self) -> int:
        """Real tokens; there is no padding."""
        return sum(len(each.token_ids) for each in self.features)


@dataclass(frozen=True, slots=True)
class LossSum:
    """A loss before it is averaged: the loop divides once per optimizer step, over all devices."""

    total: Tensor
    """Scalar, with a gradient."""
    count: float
    """What was supervised (summed weights of documents, or tokens)."""


@dataclass(frozen=True, slots=True)
class Written:
    """An answer that a model wrote, as it came."""

    text: str
    log_likelihood: float
    """Natural logarithm of the probability of its tokens."""
    samples: tuple[str, ...] = ()
    """All answers to this prompt, itself the first, where several were asked for."""
    no_answer_log_likelihood: float | None = None
    """Natural logarithm of the probability that the model writes that there is no answer; None where it was not asked."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer."""

    id: str
    """Id of the example that was asked."""
    answer: Answer
    """A label, the labels of a multi-label text in class order, a text, or spans in their order."""
    probabilities: Mapping[str, float] = field(default_factory=dict[str, float])
    """Label to probability; sums to 1 unless multi-label; empty where the answer is not one of a few."""
    log_likelihood: float = 0.0
    """Natural logarithm of the probability of the answer."""
    model_version: str = ""
    """Version of the model that answered: the digest in its certificate."""
    log_likelihoods: Mapping[str, float] = field(default_factory=dict[str, float])
    """Choice to the natural logarithm of the probability that its text follows the question, where each example has
    choices of its own."""
    truth_log_likelihood: float | None = None
    """Natural logarithm of the probability that the model writes the truth; None where it was not asked."""
    num_truth_tokens: int = 0
    """Tokens of the truth, its stop token included."""
    samples: tuple[str, ...] = ()
    """All texts that were written, the answer first, where several were asked for (`generation.num_return_sequences`)."""
    no_answer_probability: float | None = None
    """How likely it is that there is no answer; None where no threshold was learned for it."""
    tool_calls: tuple[Call, ...] = ()
    """The calls of tools that the answer holds, read as the server reads them."""
    num_cut_tokens: int = 0
    """Tokens of what was asked that the model did not read, because it was too long; 0 where all was read."""


def plain_prediction(prediction: Prediction) -> dict[str, Any]:
    """Give a prediction as JSON has it; `num_cut_tokens` is told only where something was cut."""
    values = asdict(prediction)
    if not prediction.num_cut_tokens:
        del values["num_cut_tokens"]
    return values


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured value and its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Scores:
    """How good predictions are."""

    main_metric: str
    metrics: Mapping[str, Interval]
    """Metric name to value and interval; fractions in [0, 1], except `bleu` and `chrf` (0 to 100, as sacrebleu prints
    them), perplexity, log-likelihoods (natural logarithm) and lengths."""
    correct: Sequence[float] = ()
    """Per example, in order: true or false where an answer is right or wrong, else how good it is, from 0 to 1 (paired
    tests need it)."""
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Tables as plain values, where a task has them: `labels`, `per_class`, `confusion`; `log_loss`."""
