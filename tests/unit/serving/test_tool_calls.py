"""Tools: the form of a call is the template's own, calls are held to their schemas, and read back by OpenAI's client."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from transformers import AutoTokenizer

from lushan.backbones.encoding import LengthLimit
from lushan.backbones.load import load_backbone
from lushan.data.batching import pack
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.predict import Predictor
from lushan.model_store.resident import Resident
from lushan.records import Row, Scores, TaskState, ToolForm
from lushan.serving.errors import RequestError
from lushan.serving.hosted import HostedModel, host
from lushan.serving.prompts import ask_chat, read_conversation
from lushan.serving.request_bodies import ChatRequest, Tool
from lushan.serving.tool_calls import Tools, call_constraint, offered_tools
from lushan.tasks.dialogue import Task as DialogueTask
from tests.conftest import MakeTiny
from tests.served import CONTEXT_TOKENS, TOOL_TEMPLATE, Served, serving, write_chat_model

WEATHER = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/City"}, "days": {"enum": [1, 2, 3]}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"City": {"enum": ["Ulm", "Bonn"]}},
}
LIGHT = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}},
    "required": ["on"],
    "additionalProperties": False,
}
TOOLS: list[ChatCompletionToolParam] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tell a city's <b>weather</b> & more.",
            "parameters": WEATHER,
        },
    },
    {"type": "function", "function": {"name": "light", "parameters": LIGHT}},
]
ALLOWED = {
    "weather": [{"city": city, "days": days} for city in ("Ulm", "Bonn") for days in (1, 2, 3)],
    "light": [{"on": True}, {"on": False}],
}
"""All arguments that the schemas accept."""
ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Is it cold in Ulm?"}]
CALLED: list[ChatCompletionMessageParam] = [
    *ASKED,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city": "Ulm", "days": 1}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "7 degrees"},
]
FORM = ToolForm("<call>\n", "\n</call>", "name", "arguments")
ONE = '{"name": "light", "arguments": {"on": true}}'
OTHER = '{"name": "weather", "arguments": {"city": "\u00dclm", "days": 2}}'
RM = '{"name": "rm", "arguments": {}}'


@pytest.fixture(scope="module")
def tool_server(caller: HostedModel, chatter: HostedModel) -> Iterator[Served]:
    with serving([caller, chatter]) as found:
        yield found


@pytest.fixture
def tool_client(tool_server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tool_server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def body(**fields: object) -> ChatRequest:
    known = {"model": "caller", "messages": ASKED, "tools": TOOLS}
    return ChatRequest.model_validate({**known, **fields})


def test_prompt_has_the_tokens_of_transformers_with_tools_calls_and_results(
    caller: HostedModel, caller_folder: Path
) -> None:
    (prompted,) = ask_chat(caller, body(messages=CALLED)).prompted
    arguments = {"city": "Ulm", "days": 1}  # as the templates of transformers want them
    called = {"name": "weather", "arguments": arguments}
    messages: list[Any] = [dict(each) for each in CALLED]
    messages[1] |= {"content": "", "tool_calls": [{"type": "function", "function": called}]}
    tokenizer = AutoTokenizer.from_pretrained(caller_folder)
    tools: list[Any] = list(TOOLS)
    expected = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True)
    assert list(prompted.prompt_ids) == expected["input_ids"]


def test_call_that_comes_back_as_it_was_streamed_is_read_as_any_other(
    caller: HostedModel,
) -> None:
    streamed: list[Any] = [dict(each) for each in CALLED]
    streamed[1]["tool_calls"] = [{"index": 0, **each} for each in streamed[1]["tool_calls"]]
    asked = [ask_chat(caller, body(messages=each)).prompted for each in (CALLED, streamed)]
    assert asked[0] == asked[1]
    told = read_conversation(caller, body(messages=streamed).messages).extra["messages"]
    assert "index" not in told[1]["tool_calls"][0]


def test_fields_of_a_tool_stay_in_the_order_in_which_they_were_learned(
    caller: HostedModel,
) -> None:
    tool = {"function": {"parameters": WEATHER, "name": "weather"}, "type": "function"}
    row = Row({"messages": ASKED, "tools": [tool]}, "a.jsonl", 1)
    predictor = caller.predictor
    (learned,) = predictor.encode([predictor.task.read(row, needs_target=False)])
    (prompted,) = ask_chat(caller, body(tools=[tool])).prompted
    assert prompted.prompt_ids == learned.token_ids


def test_answer_that_must_be_a_call_is_begun_as_the_template_begins_one(
    caller: HostedModel, caller_folder: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(caller_folder)
    tools: list[Any] = list(TOOLS)
    messages: list[Any] = list(ASKED)
    asked = tokenizer.apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, tokenize=False
    )
    for choice, begun in (("auto", ""), ("required", "<call>\n")):
        (prompted,) = ask_chat(caller, body(tool_choice=choice)).prompted
        expected = tokenizer(asked + begun, add_special_tokens=False)["input_ids"]
        assert list(prompted.prompt_ids) == expected
        assert (prompted.constraint is None) is (choice == "auto")


@pytest.mark.parametrize("choice", ["required", "weather", "light"])
def test_call_that_is_asked_for_keeps_to_the_schema(
    choice: str, tool_client: openai.OpenAI
) -> None:
    wanted: Any = choice
    if choice != "required":
        wanted = {"type": "function", "function": {"name": choice}}
    for seed in range(3):
        (found,) = tool_client.chat.completions.create(
            model="caller",
            messages=ASKED,
            tools=TOOLS,
            tool_choice=wanted,
            temperature=1.5,
            seed=seed,
            max_tokens=2000,
        ).choices
        assert (found.finish_reason, found.message.content) == ("tool_calls", None)
        (call,) = found.message.tool_calls or []
        assert call.type == "function"
        assert choice in ("required", call.function.name)
        assert json.loads(call.function.arguments) in ALLOWED[call.function.name]


def test_conversation_goes_on_with_what_the_client_got(tool_client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "caller", "tools": TOOLS, "max_tokens": 2000}
    first = tool_client.chat.completions.create(messages=ASKED, tool_choice="required", **options)
    message = first.choices[0].message
    (call,) = message.tool_calls or []
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "done"}
    messages: list[Any] = [*ASKED, message, result]
    options["max_tokens"] = 5
    second = tool_client.chat.completions.create(messages=messages, **options)
    assert second.choices[0].finish_reason == "length"
    assert second.choices[0].message.content


def test_stream_gives_the_call_with_the_last_piece(tool_client: openai.OpenAI) -> None:
    chunks = list(
        tool_client.chat.completions.create(
            model="caller", messages=ASKED, tools=TOOLS, tool_choice="required", stream=True
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ""
    (call,) = chunks[-1].choices[0].delta.tool_calls or []
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert (call.index, call.type) == (0, "function")
    assert call.function is not None
    assert json.loads(call.function.arguments or "") in ALLOWED[call.function.name or ""]


def test_model_whose_template_knows_no_tools_refuses_them(tool_client: openai.OpenAI) -> None:
    for choice in ("auto", "required"):
        with pytest.raises(openai.BadRequestError, match="chat template of `chatter` does not"):
            tool_client.chat.completions.create(
                model="chatter", messages=ASKED, tools=TOOLS, tool_choice=choice
            )
    found = tool_client.chat.completions.create(
        model="chatter", messages=ASKED, tools=TOOLS, tool_choice="none", max_tokens=3
    )
    assert found.choices[0].message.content is not None
    with pytest.raises(openai.BadRequestError, match="`tool_calls` of a message would be lost"):
        tool_client.chat.completions.create(model="chatter", messages=CALLED)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "no tool `x`. Known: w"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "two have the same name"),
        ({"tools": [], "tool_choice": "required"}, "`tool_choice` has no effect without `tools`"),
        ({"response_format": {"type": "json_object"}}, "leaves no place for a call"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "`tool_call_id` is needed"),
        ({"messages": [{"role": "user"}]}, "`content` is missing"),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "a", "parameters": {"type": "object", "x<eos>": 1}},
                    }
                ]
            },
            "holds `<eos>`",
        ),
        (
            {
                "tools": [
                    {"type": "function", "function": {"name": "a", "parameters": {"type": "no"}}}
                ],
                "tool_choice": "required",
            },
            "JSON Schema .* cannot be used",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(
    fields: dict[str, Any], message: str, tool_client: openai.OpenAI
) -> None:
    told = {"model": "caller", "messages": ASKED, "tools": TOOLS, "max_tokens": 4, **fields}
    with pytest.raises(openai.BadRequestError, match=message):
        tool_client.post("/chat/completions", body=told, cast_to=object)


@pytest.mark.parametrize(
    ("text", "said", "called"),
    [
        ("It is cold.", "It is cold.", []),
        (f"<call>\n{ONE}\n</call>", "", [ONE]),
        (f"Let me see. <call>{ONE}</call>", "Let me see.", [ONE]),
        (f"<call>\n{ONE}\n</call>\n<call>\n{OTHER}\n</call>", "", [ONE, OTHER]),
        (f"<call>{ONE}", "", [ONE]),
        (f"<call>{ONE}</call>\nIt is on.", "It is on.", [ONE]),
        (f"<call>{ONE}</call>\n<call>{RM}</call>", f"<call>{RM}</call>", [ONE]),
        (f"<call>{ONE}</call>\n<call>{ONE[:-3]}", f"<call>{ONE[:-3]}", [ONE]),
        (f"<call>{ONE[:-3]}", f"<call>{ONE[:-3]}", []),
        ('<call>{"name": "rm", "arguments": {}}', '<call>{"name": "rm", "arguments": {}}', []),
        ('<call>{"name": "light", "arguments": 3}', '<call>{"name": "light", "arguments": 3}', []),
        ('<call>{"name": ["light"]}</call>', '<call>{"name": ["light"]}</call>', []),
        (ONE, ONE, []),
    ],
)
def test_calls_are_read_from_what_a_model_wrote(text: str, said: str, called: list[str]) -> None:
    tools = Tools(FORM, frozenset(ALLOWED), is_forced=False, most_calls=None)
    found = tools.read(text)
    told = [
        {"name": each.function.name, "arguments": json.loads(each.function.arguments)}
        for each in found[1]
    ]
    assert (found[0], told) == (said, [json.loads(each) for each in called])
    assert len({each.id for each in found[1]}) == len(called)


def test_calls_without_a_mark_or_in_a_list_are_read_too() -> None:
    names = frozenset(ALLOWED)
    bare = Tools(ToolForm("", "", "name", "arguments"), names, is_forced=False, most_calls=None)
    assert len(bare.read(f"{ONE}")[1]) == 1
    assert bare.read(f"I say {ONE}") == (f"I say {ONE}", [])
    special = ToolForm("<tool>", "", "name", "arguments", num_hidden=6)
    hidden = Tools(special, names, is_forced=False, most_calls=None)
    assert len(hidden.read(ONE)[1]) == 1
    forced = Tools(FORM, names, is_forced=True, most_calls=1)
    assert len(forced.read(ONE)[1]) == 1
    listed = ToolForm("[CALLS] [", "]", "name", "arguments")
    several = Tools(listed, names, is_forced=False, most_calls=None)
    assert len(several.read(f"[CALLS] [{ONE}, {OTHER}]")[1]) == 2
    first = Tools(listed, names, is_forced=False, most_calls=1)
    assert [x.function.name for x in first.read(f"[CALLS] [{ONE}, {OTHER}]")[1]] == ["light"]


def test_calls_behind_thoughts_are_found() -> None:
    thinking = ToolForm("<think>\n\n</think>\n\n<call>\n", "\n</call>", "name", "arguments")
    tools = Tools(thinking, frozenset(ALLOWED), is_forced=False, most_calls=None)
    text = f"<think>\nIt asks.\n</think>\n\n<call>\n{ONE}\n</call>\n<call>\n{OTHER}\n</call>"
    assert len(tools.read(text)[1]) == 2


def test_calls_in_a_list_behind_a_special_token_are_found() -> None:
    listed = ToolForm("[CALLS] [", "]", "name", "arguments", num_hidden=7)
    tools = Tools(listed, frozenset(ALLOWED), is_forced=False, most_calls=None)
    assert len(tools.read(f"[{ONE}, {OTHER}]")[1]) == 2


def test_json_without_end_is_no_call() -> None:
    tools = Tools(FORM, frozenset(ALLOWED), is_forced=False, most_calls=None)
    text = "<call>" + '{"a":' * 100_000
    assert tools.read(text) == (text, [])


def test_tool_without_a_schema_has_an_empty_one() -> None:
    tool = Tool.model_validate({"type": "function", "function": {"name": "now"}})
    assert tool.as_told()["function"]["parameters"] == {"type": "object", "properties": {}}


def test_definitions_that_are_no_object_are_refused() -> None:
    with pytest.raises(RequestError, match=r"`\$defs` must be an object"):
        call_constraint(FORM, {"weather": {"type": "object", "$defs": [1]}})


def test_parallel_calls_can_be_forbidden(caller: HostedModel) -> None:
    tokenizer = caller.predictor.backbone.tokenizer
    for allowed, most in ((None, None), (True, None), (False, 1)):
        offered = offered_tools(body(parallel_tool_calls=allowed), tokenizer, model="caller")
        assert offered is not None
        assert offered[0].most_calls == most
        assert offered[1] is None


def test_schemas_that_define_one_name_differently_are_refused() -> None:
    other = {"type": "object", "$defs": {"City": {"enum": ["Rome"]}}}
    with pytest.raises(RequestError, match="two schemas define `City` in different ways"):
        call_constraint(FORM, {"weather": WEATHER, "other": other})
    call_constraint(FORM, {"weather": WEATHER, "same": WEATHER})


def learn(folder: Path, messages: list[Any], tools: list[Any]) -> Scores:
    """Train the model of a folder on one conversation until it knows it by heart; tells how it then answers."""
    backbone = load_backbone(folder, purpose="language")
    task, state, limit = DialogueTask(), TaskState(), LengthLimit(CONTEXT_TOKENS)
    example = task.read(Row({"messages": messages, "tools": tools}, "a.jsonl", 1))
    features = task.encode(
        [example], state, backbone.tokenizer, answer="generate", limit=limit, with_target=True
    )
    optimizer = torch.optim.AdamW(backbone.model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss = task.loss(backbone, pack(features), state, dropout=0.0)
        (loss.total / loss.count).backward()
        optimizer.step()
    backbone.plain_model.save_pretrained(folder)
    settings = GenerationSettings(max_new_tokens=100)
    predictor = Predictor(backbone, task, state, "generate", limit, generation=settings)
    return task.score(predictor.examine([example]), [example], state)


def test_call_that_was_learned_comes_back_to_the_client(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    folder = write_chat_model(tiny_folder("llama"), tmp_path / "learner", TOOL_TEMPLATE)
    call = {"name": "light", "arguments": '{"on": true}'}
    calling = {"role": "assistant", "content": None, "tool_calls": [{"function": call}]}
    # The order of fields is the client's own: a template writes them so.
    light = {"function": {"parameters": LIGHT, "name": "light"}, "type": "function"}
    scores = learn(folder, [*ASKED, calling], [light])
    assert scores.metrics["call_accuracy"].value == 1
    options: Any = {"model": "learner", "messages": ASKED, "tools": [light], "max_tokens": 100}
    with (
        serving([host(str(folder), Resident(weights="fp32"))]) as found,
        openai.OpenAI(base_url=f"{found.url}/v1", api_key="none", max_retries=0) as client,
    ):
        (choice,) = client.chat.completions.create(**options).choices
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        (made,) = choice.message.tool_calls or []
        assert (made.function.name, made.function.arguments) == tuple(call.values())
        result = {"role": "tool", "tool_call_id": made.id, "content": "done"}
        options["messages"] = [*ASKED, choice.message, result]
        assert client.chat.completions.create(**options).choices[0].message
