"""Chat: answer as an assistant, in conversations of any number of turns.

Columns: `messages`, a list of objects with `role` (`system`, `user`, `assistant`, `tool`) and `content`, of which the last
is the assistant's: a text, or calls of tools (`tool_calls`); `tools` (a list) where some may be called. A message of the
assistant with `weight` 0 is read, but not learned. The forms of ShareGPT (`conversations` with `from` and `value`, or with
such messages) and Alpaca (`instruction`, `input`, `output`, and `history`, the pairs before them) are read too.

The model's own chat template writes the conversation; a base model that has none gets a plain one, which is saved with it.
The loss is taken on what the assistant says, its stop token included, and on nothing else.

Shapes: N documents, T tokens, D width, K supervised positions.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lushan import text_answers
from lushan.backbones.chat_encoding import Chat, Message, encode_chat, refuse_unwritten_tools
from lushan.backbones.encoding import LengthLimit
from lushan.backbones.heads import token_log_likelihoods
from lushan.backbones.load import Backbone
from lushan.backbones.tokenizer import Tokenizer
from lushan.backbones.tool_calls import read_calls, tool_form
from lushan.backbones.vocabulary_loss import vocabulary_loss
from lushan.conversations import (
    beginning,
    calls_in,
    read_messages,
    read_tools,
    shown,
    unread_names,
)
from lushan.data.columns import Columns
from lushan.errors import DataError, SettingError, TooLongError
from lushan.metrics import dialogue as metrics
from lushan.metrics.tool_calls import call_intervals
from lushan.records import (
    AnswerMode,
    Batch,
    Call,
    Example,
    Features,
    LossSum,
    Prediction,
    Rendered,
    Row,
    Scores,
    TaskState,
    ToolForm,
    Written,
    content_id,
)
from lushan.tasks import Outputs, Preparation, Wording


class Task(text_answers.WritingTask):
    """Dialogue, written by the model.

    Columns: `messages` (the conversation, the assistant's answer last), `tools`; or those of ShareGPT or Alpaca.
    """

    columns = Columns(
        required=("messages",),
        optional=("tools",),
        guesses={"messages": ("dialogue", "dialog", "turns"), "tools": ("functions",)},
        inner={"messages": unread_names},
        others=(
            Columns(
                required=("conversations",),
                optional=("system", "tools"),
                guesses={"tools": ("functions",)},
                inner={"conversations": partial(unread_names, are_turns=True)},
            ),
            Columns(
                required=("instruction", "output"),
                optional=("input", "system", "history"),
                guesses={"output": ("response", "answer"), "input": ("context",)},
            ),
        ),
    )
    settings = frozenset({"num_shots", "instruction"})
    baselines: tuple[str, ...] = ()
    is_judged_by_likelihood = True
    wording = Wording(
        pipeline_tag="text-generation",
        use="Answering in conversations like those it was trained on.",
        label="answer",
        counted="conversations",
    )

    def read(self, row: Row, *, multi_label: bool = False, needs_target: bool = True) -> Example:
        """Check one row, in any of its forms.

        Raises:
            DataError: If there is no conversation, a message has no role or content, or the last is not the assistant's.
        """
        messages = read_messages(row, is_learned=needs_target)
        reply = None
        if messages[-1]["role"] == "assistant":
            *messages, reply = messages
            if needs_target and not reply.get("weight", 1):
                raise DataError(
                    f"{row.place}: the last message has `weight` 0, but it is the answer that is learned. Take the row "
                    "or its last turn out."
                )
        elif needs_target:
            raise DataError(
                f"{row.place}: the last message must be the assistant's, got `{messages[-1]['role']}`."
            )
        if not any(each["role"] in ("user", "tool") for each in messages):
            raise DataError(f"{row.place}: nobody has said anything that could be answered.")
        extra: dict[str, Any] = {"messages": messages}
        if tools := read_tools(row):
            extra["tools"] = tools
        # A system message is often that of many conversations, and would make them look alike.
        said = [each for each in messages if each["role"] != "system"]
        text = "\n".join(f"{each['role']}: {shown(each)}" for each in said)
        asks = [each["role"] in ("user", "tool") for each in said]
        # A conversation that is cut behind each turn gives rows of which one holds the answers of another.
        group = beginning([shown(each) for each in said], asks.index(True) + 1)
        if reply is None or not needs_target:
            return Example(content_id(text, extra), text, None, row.place, extra, (), group)
        if "tool_calls" in reply:
            extra["reply"] = reply
        target = shown(reply)
        return Example(content_id(text, extra, target), text, target, row.place, extra, (), group)

    def prepare(
        self, examples: Sequence[Example], preparation: Preparation, *, multi_label: bool
    ) -> TaskState:
        """Draw the worked examples; the template's stop token alone ends an answer."""
        return replace(text_answers.learn_to_write(examples, preparation), stop_strings=())

    def render(
        self,
        example: Example,
        state: TaskState,
        *,
        answer: AnswerMode,
        with_target: bool,
        shots: Sequence[Example] = (),
    ) -> list[Rendered]:
        """Who said what; `encode` writes it as the model's chat template does."""
        messages = _conversation(example, state, with_target=with_target, shots=shots)
        return [Rendered("\n".join(f"{each['role']}: {shown(each)}" for each in messages))]

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
        """One document a conversation; what the assistant says is supervised.

        Raises:
            DataError: If a conversation is too long and the policy is `error`, or holds one of the model's special tokens.
            ModelError: If the chat template writes earlier turns anew when a later one comes.
        """
        if limit.policy == "window":
            raise SettingError(
                "`data.over_length=window`: each window would be given an answer of its own. Use `truncate`, which "
                "leaves out the oldest turns, or `error`."
            )
        features: list[Features] = []
        refused: TooLongError | None = None
        for index, example in enumerate(examples):
            messages = _conversation(example, state, with_target=with_target, shots=shots)
            chat = Chat(tokenizer, example.extra.get("tools"), example.place)
            tool_form = _tool_form(chat, messages, example)
            try:
                encoded = encode_chat(chat, messages, with_target=with_target, limit=limit)
            except TooLongError as error:
                refused = error.behind(refused)
                continue
            features.append(
                Features(
                    token_ids=encoded.token_ids,
                    place=example.place,
                    example_index=index,
                    positions=encoded.positions,
                    num_cut_tokens=encoded.num_cut_tokens,
                    tool_form=None if with_target else tool_form,
                )
            )
        if refused is not None:
            raise refused
        return features

    def loss(
        self, backbone: Backbone, batch: Batch, state: TaskState, *, dropout: float
    ) -> LossSum:
        """Cross-entropy of what the assistant says."""
        hidden_KD, targets_K = _supervised(backbone, batch)
        weights_K = torch.ones(len(targets_K), device=hidden_KD.device)
        total = vocabulary_loss(backbone.plain_model, hidden_KD, targets_K, weights_K)
        return LossSum(total, len(targets_K))

    def outputs(self, backbone: Backbone, batch: Batch) -> Outputs:
        """How likely it is that the assistant says what it does in the data; (2,) each."""
        hidden_KD, targets_K = _supervised(backbone, batch)
        logs_K = token_log_likelihoods(backbone.plain_model, hidden_KD, targets_K)
        return text_answers.sums_per_document(logs_K, batch)

    def decode(
        self,
        outputs: Sequence[Written],
        features: Sequence[Features],
        examples: Sequence[Example],
        state: TaskState,
        *,
        answer: AnswerMode,
    ) -> list[Prediction]:
        """What was written, and the calls of tools in it."""
        predictions = text_answers.decode_written(outputs, examples)
        return [
            replace(prediction, tool_calls=_called(prediction, each.tool_form, example))
            for prediction, each, example in zip(predictions, features, examples, strict=True)
        ]

    def score(
        self,
        predictions: Sequence[Prediction],
        examples: Sequence[Example],
        state: TaskState,
        *,
        seed: int = 0,
    ) -> Scores:
        """How likely the answers in the data are first, per token; how varied and long the written ones are; calls."""
        answers = [str(each.answer) for each in predictions]
        likelihoods = text_answers.likelihoods(predictions, seed=seed)
        calls = call_intervals(
            [calls_in(each.extra.get("reply", {})) for each in examples],
            [each.tool_calls for each in predictions],
            may_call=["tools" in each.extra for each in examples],
            seed=seed,
        )
        return Scores(
            main_metric="answer_log_likelihood",
            metrics={**likelihoods, **metrics.reply_intervals(answers, seed=seed), **calls},
            correct=metrics.row_scores(text_answers.truths(predictions) or ()),
            details=text_answers.details(predictions),
        )

    def sample_rows(self) -> list[Row]:
        """Six short conversations."""
        samples = (
            ("When do you open?", "We open at nine."),
            ("Is there a table for two tonight?", "Yes, at eight. Shall I book it?"),
            ("Do you have vegan food?", "Yes, three dishes."),
            ("Where can I park?", "Behind the house, for free."),
            ("May I bring my dog?", "Of course, dogs are welcome."),
            ("How do I get there?", "Take bus 5 to the market."),
        )
        return [
            Row(
                {
                    "messages": [
                        {"role": "user", "content": "Hello!"},
                        {"role": "assistant", "content": "Good day."},
                        {"role": "user", "content": question},
                        {"role": "assistant", "content": reply},
                    ]
                },
                "samples",
                number,
            )
            for number, (question, reply) in enumerate(samples, start=1)
        ]


def _conversation(
    example: Example, state: TaskState, *, with_target: bool, shots: Sequence[Example]
) -> list[dict[str, Any]]:
    """Give all messages: what the system says, worked examples as earlier turns, the conversation, its answer."""
    messages: list[dict[str, Any]] = list(example.extra.get("messages", ()))
    system = [each for each in messages[:1] if each["role"] == "system"]
    messages = messages[len(system) :]
    if state.instruction is not None:
        system = [{"role": "system", "content": state.instruction}]
    earlier = [
        {**each, "weight": 0}
        for shot in shots
        for each in (
            *(each for each in shot.extra["messages"] if each["role"] != "system"),
            _reply(shot),
        )
    ]
    last = [_reply(example)] if with_target else []
    return [*system, *earlier, *messages, *last]


def _reply(example: Example) -> dict[str, Any]:
    """Give what the assistant says last, in the data."""
    return example.extra.get("reply", {"role": "assistant", "content": example.target})


def _tool_form(chat: Chat, messages: Sequence[Message], example: Example) -> ToolForm | None:
    """Ask how the template writes calls, where any may come.

    Raises:
        DataError: If the last message calls tools, and such calls could not be read back.
    """
    calls = "reply" in example.extra
    if not (chat.tools or calls or any("tool_calls" in each for each in messages)):
        return None
    form = tool_form(chat.tokenizer, chat.tools or ())
    if form is None and calls:
        reply = example.extra["reply"]
        refuse_unwritten_tools(chat, messages if messages[-1] is reply else [*messages, reply])
        raise DataError(
            f"{chat.place}: the last message calls tools, but this model's chat template writes calls in another form than "
            "JSON with a name and arguments, and such answers are not read back. Take a model whose template does."
        )
    return form


def _called(prediction: Prediction, form: ToolForm | None, example: Example) -> tuple[Call, ...]:
    if form is None:
        return ()
    tools = [each["function"]["name"] for each in example.extra.get("tools", ())]
    return tuple(read_calls(str(prediction.answer), form, names=tools or None)[1])


def _supervised(backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor]:
    """Hidden states of the positions whose next token is supervised, (K, D), and those tokens, (K,)."""
    places_K = torch.cat([
        torch.tensor(each.positions) + start
        for start, each in zip(batch.first_N.tolist(), batch.features, strict=True)
    ]).to(batch.token_ids_1T.device)
    hidden_TD = backbone.hidden_states(batch)
    return hidden_TD[places_K], batch.token_ids_1T[0, places_K + 1]
