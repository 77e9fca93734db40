"""From what a client sends to what a model is asked: token ids, and the settings of the answer.

A conversation goes through the task of the model, as it does in training: the task writes it with the chat template. A
model whose task reads columns takes the one message of a user for the first of them.
"""

import json
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lushan.backbones.encoding import LengthLimit
from lushan.errors import SettingError
from lushan.inference.generate import encode_prompts
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.grammar import Constraint
from lushan.inference.predict import Predictor, Prompted, cut_tokens
from lushan.records import Answer, Example, Features, Row, Written, plain_answer
from lushan.serving.errors import RequestError
from lushan.serving.hosted import HostedModel
from lushan.serving.request_bodies import (
    ChatRequest,
    CompletionRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    Message,
    Prompt,
    ResponseFormat,
    Sampled,
    TextFormat,
    Tool,
)
from lushan.serving.tool_calls import Tools, offered_tools

COMPLETION_TOKENS = 16
"""Of OpenAI's API: the length of a completion where nothing is said."""
MOST_PROMPTS = 128
_NEARLY_GREEDY = 1e-6
"""Temperatures below divide by so little that scores leave the range of numbers; the most likely token has all."""
_NUM_SEEDS = 2**40
NO_TOKEN = -1
"""Stands for an answer that was not written token by token."""
_SYSTEM = ("system", "developer")
"""Roles that say how to behave, by their older and newer name."""
_ONLY_WRITTEN: dict[str, object] = {
    "n": 1,
    "stop": None,
    "response_format": None,
    "logprobs": False,
    "top_k": None,
    "min_p": 0,
    "repetition_penalty": 1,
}
"""Fields that a model which does not write is not to be sent, but for the value that asks for nothing; `temperature` and its
like cannot matter to it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a model is asked to write."""

    prompted: Sequence[Prompted]
    num_answers: int
    """To each prompt."""
    num_alternatives: int
    clean: Callable[[str], str]
    """Makes an answer of a text that was written, finished or not."""
    tools: Tools | None = None
    """What may be called in the answer."""
    is_list: bool = False
    """Whether an answer is told as JSON, which only the whole of it can be."""
    num_cut_tokens: int = 0
    """Tokens of the text that the model does not read, because it is too long and the run cuts such texts."""

    def prompt_of(self, choice: int) -> Prompted:
        """Give the prompt that an answer is to."""
        return self.prompted[choice // self.num_answers]


def ask_chat(model: HostedModel, body: ChatRequest) -> Asked:
    """Read a conversation for a model that writes.

    Raises:
        UserError: If the conversation, a setting or the form of the answer does not fit.
    """
    _refuse_tools(model, body)
    offered = offered_tools(body, model.predictor.backbone.tokenizer, model=model.name)
    tools, called = offered or (None, None)
    constraint = called or _constraint(body.response_format)
    example = read_conversation(model, body.messages, body.tools if tools else None)
    predictor = told_by_client(model.predictor, example)
    given = body.max_completion_tokens or body.max_tokens
    settings = make_settings(
        predictor,
        body,
        most_tokens=given or predictor.generation.max_new_tokens,
        stop_strings=() if constraint else predictor.state.stop_strings,
    )
    _refuse_alternatives(model, settings, body.top_logprobs, param="top_logprobs")
    asking = replace(predictor, generation=settings)
    features = _encoded(asking, example)
    prompt_ids = (*features.token_ids, *_beginning(predictor, tools))
    most_tokens = min(settings.max_new_tokens, _room(asking, len(prompt_ids), needed=given or 1))
    settings = settings.model_copy(update={"max_new_tokens": most_tokens})
    clean, is_list = _cleaner(predictor, features, example, has_form=constraint is not None)
    if constraint is None and features.grammar:
        constraint = Constraint.lark(features.grammar)
    return Asked(
        [Prompted(prompt_ids, settings, constraint)],
        settings.num_return_sequences,
        body.top_logprobs or 0,
        clean,
        tools,
        is_list,
        features.num_cut_tokens,
    )


def told_by_client(predictor: Predictor, example: Example) -> Predictor:
    """Have a client's system message stand in the place of the instruction that a run was tuned with.

    Args:
        predictor: Of a run, or of an untuned model.
        example: A conversation, or what another task asks about, which stays as it is.
    """
    messages = example.extra.get("messages")
    if not messages or messages[0]["role"] != "system":
        return predictor
    return replace(predictor, state=replace(predictor.state, instruction=None))


def _encoded(predictor: Predictor, example: Example) -> Features:
    """Give the tokens that a model is asked with, however many there are.

    A text is cut where the run does so. A conversation never is: who sent it would not know.
    """
    if predictor.limit.policy != "error" and "messages" not in example.extra:
        (features,) = predictor.encode([example])
        return features
    (features,) = predictor.task.encode(
        [example],
        predictor.state,
        predictor.backbone.tokenizer,
        answer=predictor.answer,
        limit=LengthLimit(sys.maxsize),
        with_target=False,
    )
    return features


def _room(predictor: Predictor, num_tokens: int, *, needed: int) -> int:
    """Tell how many tokens the context leaves to the answer.

    Raises:
        RequestError: If a prompt of this length is longer than the model reads, or leaves less than is needed.
    """
    context = predictor.backbone.facts.context_tokens
    most_read = predictor.limit.max_tokens
    if num_tokens > most_read or num_tokens + needed > context:
        wanted = f"`max_tokens` is {needed}" if needed > 1 else "an answer needs 1"
        lower = ", or lower `max_tokens`" if needed > 1 else ""
        raise RequestError(
            f"The prompt has {num_tokens} tokens, and {wanted}; the model reads {most_read} of a prompt, and {context} "
            f"together with the answer. Leave out earlier messages, or shorten them{lower}.",
            param="messages",
            code="context_length_exceeded",
        )
    return context - num_tokens


def _beginning(predictor: Predictor, tools: Tools | None) -> tuple[int, ...]:
    """Give the tokens with which an answer begins that must be a call."""
    if tools is None or not tools.is_forced or not tools.form.before:
        return ()
    tokenizer = predictor.backbone.tokenizer
    (encoded,) = tokenizer.encode([tools.form.before])
    ids = tuple(encoded.ids)
    return ids[1:] if tokenizer.bos_id is not None and ids[:1] == (tokenizer.bos_id,) else ids


def _refuse_tools(model: HostedModel, body: ChatRequest) -> None:
    """A model that answers about columns would never see the tools.

    Raises:
        RequestError: If there are any.
    """
    for name in ("tools", "tool_choice"):
        if getattr(body, name) not in (None, [], "none", "auto") and not model.reads_conversations:
            raise RequestError(
                f"`{name}` has no effect here: `{model.name}` does not read conversations. Remove it.",
                param=name,
            )


def _refuse_alternatives(
    model: HostedModel, settings: GenerationSettings, num_wanted: int | None, *, param: str
) -> None:
    """Beam search tells no other tokens than those that it took.

    Raises:
        RequestError: If others are asked for.
    """
    if num_wanted and settings.num_beams > 1:
        raise RequestError(
            f"`{param}`: `{model.name}` writes by beam search (`num_beams` {settings.num_beams}), which tells no other tokens "
            f"than those that it takes, got {num_wanted}. Ask for 0, or send a `temperature` above 0, which draws instead.",
            param=param,
        )


def ask_label(model: HostedModel, body: ChatRequest) -> tuple[Asked, Example]:
    """Read the one message for a model that does not write, but chooses or marks.

    Raises:
        UserError: If the message does not fit, or a field has no meaning there.
    """
    _refuse_tools(model, body)
    for name, neutral in _ONLY_WRITTEN.items():
        value = getattr(body, name)
        if value not in (None, neutral) and not isinstance(value, TextFormat):
            raise RequestError(
                f"`{name}` has no effect here: `{model.name}` does not write its answers. Remove it.",
                param=name,
            )
    example = read_conversation(model, body.messages)
    predictor = model.predictor
    features = predictor.encode([example])
    # All that is read for the one answer, be it in several windows.
    prompted = Prompted(
        tuple(x for each in features for x in each.token_ids), predictor.generation, None
    )
    num_cut = cut_tokens(features).get(0, 0)
    return Asked([prompted], 1, 0, str, num_cut_tokens=num_cut), example


def ask_completion(model: HostedModel, body: CompletionRequest) -> Asked:
    """Read texts that are to be continued as they are.

    Raises:
        UserError: If the model has no vocabulary layer, or a text or a setting does not fit.
    """
    predictor = model.predictor
    # Where it shares a base, the base would write in its place.
    if predictor.backbone.plain_model.get_output_embeddings() is None:
        raise RequestError(
            f"`{model.name}` was loaded without its vocabulary layer and cannot continue texts. Name a model that writes.",
            param="model",
        )
    prompts = read_texts(predictor, body.prompt, param="prompt", most=MOST_PROMPTS)
    most_tokens = body.max_tokens or COMPLETION_TOKENS
    settings = make_settings(predictor, body, most_tokens=most_tokens)
    _refuse_alternatives(model, settings, body.logprobs, param="logprobs")
    _check_room(predictor, prompts, most_tokens=most_tokens)
    prompted = [Prompted(each, settings, None) for each in prompts]
    return Asked(prompted, settings.num_return_sequences, body.logprobs or 0, str)


def _check_room(
    predictor: Predictor, prompts: Sequence[Sequence[int]], *, most_tokens: int
) -> None:
    context = predictor.backbone.facts.context_tokens
    for number, token_ids in enumerate(prompts, start=1):
        if len(token_ids) + most_tokens > context:
            raise RequestError(
                f"Text {number} of `prompt` has {len(token_ids)} tokens; with `max_tokens` {most_tokens} that is more than the "
                f"{context} that the model reads. Shorten the text, or lower `max_tokens`.",
                param="prompt",
            )


def read_conversation(
    model: HostedModel, messages: Sequence[Message], tools: Sequence[Tool] | None = None
) -> Example:
    """Have a model's task read messages.

    Raises:
        RequestError: If the task cannot answer them.
        DataError: If a message does not fit.
    """
    answered = ("user", "tool") if model.reads_conversations else ("user",)
    if messages[-1].role not in answered:
        raise RequestError(
            f"The last message must be the user's, or what a tool gave, got `{messages[-1].role}`.",
            param="messages",
        )
    # Many clients send the field of their form as it is; nothing was said in it.
    messages = [each for each in messages if each.role not in _SYSTEM or each.text.strip()]
    task = model.predictor.task
    values: dict[str, Any]
    if model.reads_conversations:
        values = {
            "messages": [_plain_message(each) for each in messages],
            "tools": [each.as_told() for each in tools or ()],
        }
    else:
        column, *others = task.columns.asked.required
        if others:
            raise RequestError(
                f"`{model.name}` is asked with {', '.join(f'`{each}`' for each in (column, *others))}, which one message "
                f"cannot say. Use `/v1/predict/{model.name}`.",
                param="messages",
            )
        if len(messages) > 1:
            raise RequestError(
                f"`{model.name}` answers about one text, not in conversations: send one message of the user, got "
                f"{len(messages)} messages.",
                param="messages",
            )
        values = {column: messages[0].text}
    return task.read(
        Row(values, "request", 1),
        multi_label=model.predictor.state.multi_label,
        needs_target=False,
    )


def _plain_message(message: Message) -> dict[str, Any]:
    """Write a message as the data of a conversation have it."""
    role = "system" if message.role in _SYSTEM else message.role
    told: dict[str, Any] = {"role": role, "content": message.text}
    if message.tool_calls:
        told["tool_calls"] = [each.model_dump(exclude={"index"}) for each in message.tool_calls]
    if message.tool_call_id is not None:
        told["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        told["name"] = message.name
    return told


def read_texts(
    predictor: Predictor, given: Prompt, *, param: str, most: int
) -> list[tuple[int, ...]]:
    """Give the token ids of texts.

    Args:
        predictor: The model that will read them.
        given: A text, its token ids, or a list of either.
        param: What the field is called.
        most: How many there may be.

    Raises:
        RequestError: If there are none or too many, or one is empty, too long, or holds tokens that the model lacks.
    """
    items: list[Any] = [given] if isinstance(given, str) else list(given)
    texts = [items] if items and isinstance(items[0], int) else items
    if not 0 < len(texts) <= most:
        raise RequestError(f"`{param}` must hold 1 to {most} texts, got {len(texts)}.", param=param)
    backbone = predictor.backbone
    context = backbone.facts.context_tokens
    num_rows = backbone.plain_model.get_input_embeddings().num_embeddings
    found = encode_prompts(backbone, texts)
    for number, token_ids in enumerate(found, start=1):
        if not 0 < len(token_ids) <= context:
            raise RequestError(
                f"Text {number} of `{param}` has {len(token_ids)} tokens; the model reads 1 to {context}.",
                param=param,
            )
        if unknown := [each for each in token_ids if not 0 <= each < num_rows]:
            raise RequestError(
                f"Text {number} of `{param}` has the token {unknown[0]}; the model knows 0 to {num_rows - 1}.",
                param=param,
            )
    return found


def make_settings(
    predictor: Predictor,
    body: Sampled,
    *,
    most_tokens: int,
    stop_strings: Sequence[str] = (),
) -> GenerationSettings:
    """Lay what a request says over how the model was measured.

    A request that asks for draws (several answers, `top_p`, ...) and names no temperature draws at 1, as OpenAI's API does.

    Raises:
        RequestError: If settings cannot go together, or leave no room for a prompt.
    """
    context = predictor.backbone.facts.context_tokens
    if most_tokens >= context:
        raise RequestError(
            f"An answer of {most_tokens} tokens leaves no room for what is asked: the model reads {context} tokens, "
            "prompt and answer together. Lower `max_tokens`.",
            param="max_tokens",
        )
    own = predictor.generation
    given = {
        name: value
        for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        if (value := getattr(body, name)) is not None
    }
    num_answers = body.n or 1
    asks_for_draws = num_answers > 1 or bool(given.keys() & {"top_p", "top_k", "min_p"})
    if "temperature" not in given and own.temperature == 0 and asks_for_draws:
        given["temperature"] = 1.0
    values = own.model_dump() | given
    is_greedy = values["temperature"] < _NEARLY_GREEDY
    if is_greedy and num_answers > 1:
        raise RequestError("`n` above 1 needs a `temperature` above 0.", param="n")
    if is_greedy:  # filters of a draw change nothing then
        values |= {"temperature": 0.0, "top_k": None, "top_p": 1.0, "min_p": 0.0}
    else:
        values |= {"num_beams": 1, "length_penalty": 1.0, "early_stopping": False}
        values["seed"] = secrets.randbelow(_NUM_SEEDS) if body.seed is None else body.seed
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if not all(stop):
        raise RequestError("`stop` must not hold an empty text.", param="stop")
    values |= {
        "max_new_tokens": most_tokens,
        "num_return_sequences": num_answers,
        "stop_strings": (*own.stop_strings, *stop_strings, *stop),
        "seed": values["seed"] % _NUM_SEEDS,
    }
    return GenerationSettings(**values)


def _constraint(wanted: ResponseFormat | None) -> Constraint | None:
    if isinstance(wanted, JsonObjectFormat):
        return Constraint.json_schema({"type": "object"})
    if not isinstance(wanted, JsonSchemaFormat):
        return None
    constraint = Constraint.json_schema(wanted.json_schema.json_schema)
    try:
        constraint.check()
    except SettingError as error:
        raise RequestError(str(error), param="response_format") from None
    return constraint


def told_answer(answer: Answer | None) -> str:
    """Give an answer as a message: a text as it is, anything else as JSON."""
    plain = plain_answer(answer)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def _cleaner(
    predictor: Predictor, features: Features, example: Example, *, has_form: bool
) -> tuple[Callable[[str], str], bool]:
    """Give what makes a message of a text that was written, and whether only a whole text can be made one."""

    def read(text: str) -> Answer | None:
        (found,) = predictor.decode([Written(text, 0.0)], [features], [example])
        return found.answer

    is_list = not isinstance(read(""), str)
    if is_list and has_form:  # in a form of the client's own it is no list that the task could read
        return str, False
    return lambda text: told_answer(read(text)), is_list
