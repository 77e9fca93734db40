"""Asks the program that is to load an export, in a process of its own: native engines may die, and take others along.

`python -m lushan.model_store.export_program QUESTIONS ANSWERS` is that process: a JSON file in, a JSON file out, and scores
beside it.

Shapes: N documents, B of them at once, T tokens, L of the longest, C classes, V vocabulary.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import tokenizers
import torch
from torch import Tensor, nn

from lushan.backbones.load import Backbone
from lushan.backbones.tokenizer import Tokenizer
from lushan.catalog import load_task
from lushan.errors import CertificateError
from lushan.inference.predict import head_outputs
from lushan.model_store.exports import Follow, Likeliest, Score, load_form
from lushan.records import Batch, Features

_MOST_TOKENS = 2_048
"""Tokens that are scored at once, padding included."""


@dataclass(frozen=True, slots=True)
class Questions:
    """What a program is asked; scores are asked for documents, texts for prompts."""

    form: str
    folder: str
    task: str
    num_labels: int
    """Outputs of the class layer; 0 where there is the vocabulary."""
    documents: Sequence[Features] = ()
    prompts: Sequence[Sequence[int]] = ()
    answers: Sequence[Sequence[int]] = ()
    """What was written behind each prompt."""
    writes: bool = False
    """Whether the program is to write as many tokens itself, and not only to follow."""
    texts: Sequence[str] = ()
    """What is to be cut into tokens."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What it answered."""

    program: str
    """Name and version."""
    labels: list[str] | None
    outputs: list[np.ndarray]
    """As a task's `outputs`, one for each document."""
    followed: list[list[Likeliest]]
    """The tokens that it would write at each place of an answer, or of its own, the likeliest first."""
    token_ids: list[list[int]]


def ask_program(questions: Questions) -> Answers:
    """Load the files in a fresh process and have its program answer.

    Raises:
        CertificateError: If the process fails or dies.
    """
    with TemporaryDirectory(prefix="lushan-export-") as place:
        asked, answered = Path(place, "questions.json"), Path(place, "answers.json")
        asked.write_text(json.dumps(asdict(questions)), encoding="utf-8")
        command = [sys.executable, "-P", "-m", __name__, str(asked), str(answered)]
        done = subprocess.run(  # noqa: S603 - our own module
            command, capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode:
            raise CertificateError(
                f"The export cannot be used: {_how(done.returncode)}\n{done.stderr[-2000:]}"
            )
        values = json.loads(answered.read_text(encoding="utf-8"))
        with np.load(answered.with_suffix(".npz")) as stored:
            outputs = [stored[str(number)] for number in range(len(stored))]
        return Answers(**values, outputs=outputs)


def _how(code: int) -> str:
    if code > 0:
        return f"its program failed with exit code {code}."
    return f"its program was killed by {signal.Signals(-code).name}."


def answer(questions: Questions) -> Answers:
    """Answer in this process; see `ask_program`."""
    form, folder = load_form(questions.form), Path(questions.folder)
    outputs: list[np.ndarray] = []
    followed: list[list[Likeliest]] = []
    token_ids: list[list[int]] = []
    if questions.documents:
        score = form.open_scores(folder)
        assert score is not None, f"`{questions.form}` gives no scores"  # noqa: S101 - ours
        outputs = _outputs(questions, score)
    if questions.prompts:
        opened = form.open_follower(folder)
        assert opened is not None, f"`{questions.form}` does not write"  # noqa: S101 - ours
        follow, encode = opened
        pairs = zip(questions.prompts, questions.answers, strict=True)
        ask = partial(write, follow) if questions.writes else follow
        followed = [ask(*pair) for pair in pairs]
        token_ids = [encode(each) for each in questions.texts]
    program = f"{form.program} {version(form.program)}"
    return Answers(program, form.read_labels(folder), outputs, followed, token_ids)


def check_labels(labels: Sequence[str], found: Answers) -> None:
    """Refuse other label names than the model's; one without a class layer has none.

    Raises:
        CertificateError: If so.
    """
    if labels and found.labels != list(labels):
        raise CertificateError(
            f"The export names its labels {found.labels}, the run {list(labels)}."
        )


def check_tokens(tokenizer: Tokenizer, texts: Sequence[str], found: Answers) -> None:
    """Refuse a program that cuts a text otherwise than the model was trained.

    Raises:
        CertificateError: If so; names the text.
    """
    raw = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    for text, token_ids in zip(texts, found.token_ids, strict=True):
        if token_ids != raw.encode(text, add_special_tokens=False).ids:
            raise CertificateError(
                f"{found.program} cuts the text {text[:60]!r} into other tokens."
            )


def write(follow: Follow, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> list[Likeliest]:
    """Find the tokens that a program writes, each the likeliest behind those before it, by having it follow.

    Args:
        follow: See `Follow`.
        prompt_ids: What it reads first.
        answer_ids: What it may write; the nearer to what it writes, the sooner that is found.

    Returns:
        As many places as `answer_ids` has.
    """
    path = list(answer_ids)
    # One place more is right each time, at least: it was read behind what the program writes.
    while (found := follow(prompt_ids, path)) and first_tokens(found) != path:
        path = first_tokens(found)
    return found


def first_tokens(followed: Sequence[Likeliest]) -> list[int]:
    """Give the likeliest token at each place."""
    return [likeliest[0][0] for likeliest in followed]


def _outputs(questions: Questions, score: Score) -> list[np.ndarray]:
    documents = questions.documents
    if not questions.num_labels:
        return [branch_log_likelihoods(score, each) for each in documents]
    task = load_task(questions.task)
    stand_in = cast("Backbone", StandIn(score, questions.num_labels))
    return [np.asarray(each) for each in head_outputs(task, stand_in, documents)]


class StandIn:
    """Stands where a task expects a backbone.

    What a program says of each token takes the place of hidden states, below a layer that changes nothing: so the task
    reads an export's scores by the very code that reads its own.
    """

    def __init__(self, score: Score, num_labels: int) -> None:
        self._score = score
        self._num_labels = num_labels
        self.device = torch.device("cpu")
        self.plain_model = nn.Module()
        self.plain_model.score = nn.Linear(num_labels, num_labels, bias=False)
        self.plain_model.score.weight = nn.Parameter(torch.eye(num_labels), requires_grad=False)

    def hidden_states(self, batch: Batch) -> Tensor:
        """Logits of all documents of a batch; (T, C). Those of a whole document stand at its last token."""
        documents = [each.token_ids for each in batch.features]
        longest = max(map(len, documents))
        at_once = max(1, _MOST_TOKENS // longest)
        parts: list[Tensor] = []
        for start in range(0, len(documents), at_once):
            part = documents[start : start + at_once]
            logits = torch.from_numpy(self._score(*padded(part)))
            for logits_of_one, each in zip(logits, part, strict=True):
                rows_LC = torch.zeros(len(each), self._num_labels)
                if logits_of_one.ndim == 1:
                    rows_LC[-1] = logits_of_one
                else:
                    rows_LC[:] = logits_of_one[: len(each)]
                parts.append(rows_LC)
        return torch.cat(parts)


def padded(documents: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and attention mask, (B, L) each, padded at the end."""
    longest = max(map(len, documents))
    ids_BL = np.zeros((len(documents), longest), dtype=np.int64)
    mask_BL = np.zeros_like(ids_BL)
    for row, each in enumerate(documents):
        ids_BL[row, : len(each)] = each
        mask_BL[row, : len(each)] = 1
    return ids_BL, mask_BL


def branch_log_likelihoods(score: Score, document: Features) -> np.ndarray:
    """Summed log-likelihood of the tokens of every branch, each read as a document of its own; (C,).

    Args:
        score: Gives the logits of the vocabulary.
        document: Its positions say where a token of a branch is predicted, its units of which branch, and the token.
    """
    starts = document.branch_starts
    ends = (*starts[1:], len(document.token_ids))
    stem = document.token_ids[: starts[0]]
    branches = [
        (*stem, *document.token_ids[start:end]) for start, end in zip(starts, ends, strict=True)
    ]
    logits_BLV = torch.from_numpy(score(*padded(branches)))
    sums_C = torch.zeros(len(starts))
    for position, (branch, token) in zip(document.positions or (), document.units, strict=True):
        inside = position if position < starts[0] else position - starts[branch] + starts[0]
        sums_C[branch] += logits_BLV[branch, inside].float().log_softmax(dim=-1)[token]
    return sums_C.numpy()


def _read_features(values: dict[str, Any]) -> Features:
    """Make features again of what JSON keeps of them: lists where there were tuples."""
    return Features(**{name: _with_tuples(value) for name, value in values.items()})


def _with_tuples(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def main() -> None:
    """Answer the questions of the file that is named first, into the file that is named second."""
    asked, answered = map(Path, sys.argv[1:3])
    values = json.loads(asked.read_text(encoding="utf-8"))
    documents = [_read_features(each) for each in values.pop("documents")]
    answers = answer(Questions(**values, documents=documents))
    arrays: dict[str, Any] = {str(number): each for number, each in enumerate(answers.outputs)}
    np.savez(answered.with_suffix(".npz"), **arrays)
    told = {name: value for name, value in asdict(answers).items() if name != "outputs"}
    answered.write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
