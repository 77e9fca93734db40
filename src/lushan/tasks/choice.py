"""Choose the right one of the answers that stand beside a question: common sense, exams, quizzes.

Columns: `question`, `choices` (a list of texts), `answer` (its text, its number from 0, or its letter), and `relation`
(`cause` or `effect`) where the question is a premise.

Every choice is read behind the question, which is computed once: a row is one document whose choices are branches. As in
lm-evaluation-harness, a choice scores the summed log-likelihood of its tokens. The answer is the choice with the best
score per character (its `acc_norm`): a long choice is not punished for its length.

Shapes: T tokens, D width, C choices of a row, K positions whose next token is scored.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lushan.backbones.branches import cut_alike, join_branches
from lushan.backbones.encoding import LengthLimit, encode_rendered
from lushan.backbones.heads import token_log_likelihoods
from lushan.backbones.inspect import Family
from lushan.backbones.load import AnswerLayer, Backbone
from lushan.backbones.tokenizer import Tokenizer
from lushan.data.choices import read_question
from lushan.data.columns import Columns
from lushan.data.draws import draw_in_turn
from lushan.data.words import UNSPACED
from lushan.errors import SettingError, TooLongError
from lushan.metrics import choice as metrics
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
    content_id,
)
from lushan.tasks import Outputs, Preparation, Untuned, Wording

_UNLIMITED = LengthLimit(1 << 40, "error")
_CONNECTORS = {"cause": ("because", "\u56e0\u4e3a"), "effect": ("therefore", "\u6240\u4ee5")}
"""What joins a premise to its cause or effect, in English and in Chinese, as lm-evaluation-harness has it."""
_UNSPACED = re.compile(f"[{UNSPACED}]")


class Task:
    """One of two or more choices, which differ from row to row.

    Columns: `question`, `choices` and `answer`; or those of PIQA or COPA.
    """

    columns = Columns(
        required=("question", "choices", "answer"),
        optional=("relation",),
        guesses={
            "question": ("question_stem", "prompt", "context"),
            "choices": ("options", "endings"),
            "answer": ("answerkey", "answer_key", "label", "gold"),
        },
        asked_with=("choices",),
        others=(
            Columns(required=("goal", "sol1", "sol2", "label"), asked_with=("sol1", "sol2")),
            Columns(
                required=("premise", "choice1", "choice2", "label"),
                optional=("question",),
                asked_with=("choice1", "choice2"),
            ),
        ),
    )
    answers: tuple[AnswerMode, ...] = ("generate",)
    settings = frozenset({"num_shots", "instruction"})
    writes = False
    is_judged_by_likelihood = False
    untuned: Mapping[Family, Untuned] = {"decoder": "prompt", "encoder": "nothing"}
    baselines: tuple[str, ...] = ("frequent_position", "longest_choice", "alike_choice")
    wording = Wording(
        pipeline_tag="multiple-choice",
        use="Taking the right choice of those that stand beside a question like those it was trained on.",
        label="choice",
        counted="questions",
        limits={
            "generate": "One of its choices is always taken, also where none of them is right."
        },
    )

    def read(self, row: Row, *, multi_label: bool = False, needs_target: bool = True) -> Example:
        """Check one row, in any of its forms.

        Raises:
            DataError: If there is no question, or fewer than two choices, or two are the same, or the answer is none of them.
        """
        asked = read_question(row, needs_answer=needs_target)
        extra: dict[str, Any] = {"question": asked.text, "choices": asked.choices}
        if asked.relation is not None:
            extra["relation"] = asked.relation
        text = "\n".join((asked.text, *asked.choices))
        known = () if asked.answer is None else (asked.answer,)
        identity = content_id(text, asked.relation, *known)
        return Example(identity, text, asked.answer, row.place, extra, ())

    def layer(self, state: TaskState, *, answer: AnswerMode) -> AnswerLayer:
        """The vocabulary."""
        return AnswerLayer("language")

    def notes(self, examples: Sequence[Example]) -> list[str]:
        """Nothing beside what every task tells."""
        return []

    def prepare(
        self, examples: Sequence[Example], preparation: Preparation, *, multi_label: bool
    ) -> TaskState:
        """Draw the worked examples."""
        ids = ((None, each.id) for each in examples)
        drawn = draw_in_turn(ids, num_each=preparation.num_shots, seed=preparation.seed)
        shots = tuple(examples[place] for place in drawn)
        return TaskState(shots=shots, instruction=preparation.instruction)

    def render(
        self,
        example: Example,
        state: TaskState,
        *,
        answer: AnswerMode,
        with_target: bool,
        shots: Sequence[Example] = (),
    ) -> list[Rendered]:
        """The question with each of its choices; the question alone where there are none.

        Raises:
            SettingError: If a head is to answer.
        """
        if answer != "generate":
            raise SettingError(
                "The task `choice` answers by likelihood only. Use `--answer generate`."
            )
        start = "" if state.instruction is None else f"{state.instruction}\n\n"
        for shot in shots:
            start += f"{_question(shot)}{_continuation(shot, str(shot.target))}\n\n"
        question = _question(example)
        cuttable = (len(start), len(start) + len(question))
        prompt = start + question
        asked = question.rpartition(" ")[0] if "relation" in example.extra else question
        given = ((len(start), len(start) + len(asked)),)
        rendered: list[Rendered] = []
        for choice in example.extra.get("choices", ()):
            text = prompt + _continuation(example, choice)
            scored = ((len(prompt), len(text)),)
            rendered.append(Rendered(text, supervised=scored, cuttable=cuttable, given=given))
        return rendered or [Rendered(prompt, cuttable=cuttable)]

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
        """One document a row, its choices as branches; several where a question is cut into windows.

        Raises:
            DataError: If a row is too long and the policy is `error`.
        """
        rendered = [
            self.render(each, state, answer=answer, with_target=with_target, shots=shots)
            for each in examples
        ]
        places = [each.place for each, parts in zip(examples, rendered, strict=True) for _ in parts]
        flat = [one for parts in rendered for one in parts]
        encoded = iter(encode_rendered(flat, tokenizer, limit=_UNLIMITED, places=places))
        features: list[Features] = []
        refused: TooLongError | None = None
        for index, (example, parts) in enumerate(zip(examples, rendered, strict=True)):
            paths = [next(encoded)[0] for _ in parts]
            choices = example.extra["choices"]
            documents = [join_branches(paths, choices, place=example.place)]
            if excess := max(0, len(documents[0].token_ids) - limit.max_tokens):
                try:
                    cut = cut_alike(
                        paths, parts, tokenizer, excess=excess, limit=limit, place=example.place
                    )
                except TooLongError as error:
                    refused = error.behind(refused)
                    continue
                documents = [join_branches(each, choices, place=example.place) for each in cut]
            target = choices.index(example.target) if with_target else -1
            features += [
                Features(
                    token_ids=each.token_ids,
                    place=example.place,
                    example_index=index,
                    target=target,
                    positions=each.positions,
                    units=each.units,
                    branches=each.branches,
                    num_cut_tokens=excess if limit.policy == "truncate" else 0,
                    weight=1.0 / (len(documents) * len(each.positions)),
                )
                for each in documents
            ]
        if refused is not None:
            raise refused
        return features

    def candidates(self, state: TaskState) -> list[str]:
        """None that all rows share."""
        return []

    def loss(
        self, backbone: Backbone, batch: Batch, state: TaskState, *, dropout: float
    ) -> LossSum:
        """Cross-entropy of the right choice among those of its row, by their scores per character."""
        found = _log_likelihoods(backbone, batch)
        total = found[0].new_zeros(())
        count = 0.0
        for logs_C, each in zip(found, batch.features, strict=True):
            weight = each.weight * each.num_supervised
            characters_C = logs_C.new_tensor([size for _, size in each.branches])
            target = torch.tensor(each.target, device=logs_C.device)
            total = total + weight * functional.cross_entropy(
                fair_scores(logs_C, characters_C), target
            )
            count += weight
        return LossSum(total, count)

    def outputs(self, backbone: Backbone, batch: Batch) -> Outputs:
        """Summed log-likelihood of each choice of a row; (C,) each."""
        return [each.cpu().numpy() for each in _log_likelihoods(backbone, batch)]

    def decode(
        self,
        outputs: Outputs,
        features: Sequence[Features],
        examples: Sequence[Example],
        state: TaskState,
        *,
        answer: AnswerMode,
    ) -> list[Prediction]:
        """The choice with the best score per character; log-likelihoods of a question's windows are averaged."""
        windows: list[list[np.ndarray]] = [[] for _ in examples]
        for logs_C, each in zip(outputs, features, strict=True):
            windows[each.example_index].append(logs_C.astype(np.float64))
        return [
            _prediction(example, np.mean(found, axis=0))
            for example, found in zip(examples, windows, strict=True)
        ]

    def score(
        self,
        predictions: Sequence[Prediction],
        examples: Sequence[Example],
        state: TaskState,
        *,
        seed: int = 0,
    ) -> Scores:
        """Accuracy first; beside it `acc` and `acc_norm` where the log-likelihoods of all choices are known."""
        truth = [str(each.target) for each in examples]
        answers = [str(each.answer) for each in predictions]
        details: dict[str, Any] = {"labels": [], "per_class": []}
        asked = list(zip(predictions, truth, strict=True))
        # Runs of earlier versions kept the five likeliest choices alone.
        if all(right in each.probabilities for each, right in asked):
            shares = [each.probabilities[right] for each, right in asked]
            details["log_loss"] = float(-np.log(np.maximum(shares, 1e-300)).mean())
        likelihoods = [each.log_likelihoods for each in predictions]
        return Scores(
            main_metric="accuracy",
            metrics=metrics.intervals(truth, answers, likelihoods, seed=seed),
            correct=metrics.correct_rows(truth, answers),
            details=details,
        )

    def sample_rows(self) -> list[Row]:
        """Six questions of everyday life."""
        samples = (
            ("To keep your feet dry in the rain, wear", ["rubber boots", "sandals"], 0),
            ("At night the sky is", ["bright blue", "dark", "full of fish"], 1),
            ("A fire needs", ["water", "snow", "air to burn"], 2),
            ("Ice turns to water when it is", ["warmed", "painted", "counted"], 0),
            ("To cut bread, take", ["a spoon", "a knife"], 1),
            ("A letter is sent", ["by post", "by spoon"], 0),
        )
        return [
            Row({"question": question, "choices": choices, "answer": answer}, "samples", number)
            for number, (question, choices, answer) in enumerate(samples, start=1)
        ]


def fair_scores(logs_C: Tensor, characters_C: Tensor) -> Tensor:
    """Log-likelihoods per character, times the mean number of characters of the choices; (C,).

    The order is that of `acc_norm`; the factor makes them log-likelihoods again where all choices are equally long.
    """
    return logs_C / characters_C * characters_C.mean()


def _question(example: Example) -> str:
    question: str = example.extra.get("question", example.text)
    relation = example.extra.get("relation")
    if relation is None:
        return question
    english, chinese = _CONNECTORS[relation]
    if not question[-1].isalnum():
        question = question[:-1]
    return f"{question} {chinese if _UNSPACED.search(question) else english}"


def _continuation(example: Example, choice: str) -> str:
    if "relation" in example.extra:
        choice = choice[0].lower() + choice[1:]
    return f" {choice}"


def _log_likelihoods(backbone: Backbone, batch: Batch) -> list[Tensor]:
    """Summed log-likelihood of the tokens of every choice; (C,) for each document of a batch."""
    hidden_TD = backbone.hidden_states(batch)
    starts = batch.first_N.tolist()
    chosen_K = torch.tensor(
        [
            start + position
            for start, each in zip(starts, batch.features, strict=True)
            for position in each.positions or ()
        ],
        device=hidden_TD.device,
    )
    units_K2 = torch.tensor(
        [unit for each in batch.features for unit in each.units], device=hidden_TD.device
    )
    logs_K = token_log_likelihoods(backbone.plain_model, hidden_TD[chosen_K], units_K2[:, 1])
    sizes = [len(each.units) for each in batch.features]
    return [
        logs.new_zeros(len(each.branches)).index_add(0, units[:, 0], logs)
        for logs, units, each in zip(
            logs_K.split(sizes), units_K2.split(sizes), batch.features, strict=True
        )
    ]


def _prediction(example: Example, logs_C: np.ndarray) -> Prediction:
    choices: list[str] = example.extra["choices"]
    characters_C = torch.tensor([len(each) for each in choices], dtype=torch.float64)
    scores_C = fair_scores(torch.from_numpy(logs_C), characters_C)
    shares_C = scores_C.log_softmax(dim=0)
    best = int(scores_C.argmax())
    return Prediction(
        example.id,
        choices[best],
        dict(zip(choices, shares_C.exp().tolist(), strict=True)),
        min(0.0, float(shares_C[best])),
        log_likelihoods=dict(zip(choices, logs_C.tolist(), strict=True)),
    )
