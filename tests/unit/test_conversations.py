"""Conversations: what calls and tools of any form become, and what is refused."""

import json
from typing import Any

import pytest

from lushan.conversations import (
    beginning,
    calls_in,
    read_messages,
    read_tools,
    shown,
    unread_names,
)
from lushan.errors import DataError
from lushan.records import GOES_ON, Call, Row

ASKED = {"role": "user", "content": "Where is the fox?"}
ANSWER = {"role": "assistant", "content": "Near."}


def row(**values: object) -> Row:
    return Row(values, "a.jsonl", 7)


def test_arguments_of_openais_form_are_objects_to_the_template() -> None:
    written = '{"where": "forest", "much": [1, null]}'
    forms = [
        {"id": "1", "type": "function", "function": {"name": "find", "arguments": written}},
        {"type": "function", "function": {"name": "find", "arguments": json.loads(written)}},
        {"name": "find", "arguments": written},
    ]
    result = {"role": "tool", "tool_call_id": "1", "content": "Near the river."}
    calling = {"role": "assistant", "content": None, "tool_calls": forms}
    messages = read_messages(row(messages=[ASKED, calling, result, ANSWER]))
    assert calls_in(messages[1]) == [Call("find", json.loads(written))] * 3
    assert messages[1]["tool_calls"][0]["id"] == messages[2]["tool_call_id"] == "1"
    assert messages[1]["tool_calls"][1] == messages[1]["tool_calls"][2]


@pytest.mark.parametrize(
    "call",
    [
        "find",
        {"function": "find"},
        {"function": {"name": "a", "arguments": "{"}},
        {"function": {"name": "a", "arguments": "[1]"}},
        {"name": 3, "arguments": {}},
        {"id": 1},
        {"name": "find", "parameters": {"where": "forest"}},
        {"function": {"name": "a", "args": {"b": 1}}},
    ],
)
def test_call_that_is_none_is_refused(call: object) -> None:
    calling = {"role": "assistant", "content": None, "tool_calls": [call]}
    with pytest.raises(DataError, match=r"row 7: message 2 has a call in `tool_calls` without"):
        read_messages(row(messages=[ASKED, calling]))


def test_turns_of_sharegpt_that_call_are_calls() -> None:
    one = {"name": "find", "arguments": {"where": "\u5e90\u5c71"}}
    turns: list[Any] = [
        {"from": "human", "value": "Where is the fox?"},
        {"from": "function_call", "value": json.dumps(one)},
        {"from": "observation", "value": "Near."},
        {"from": "function_call", "value": json.dumps([one, one])},
    ]
    found = read_messages(row(conversations=turns))
    assert [each["role"] for each in found] == ["user", "assistant", "tool", "assistant"]
    assert [len(calls_in(each)) for each in found] == [0, 1, 0, 2]
    assert calls_in(found[1]) == [Call("find", {"where": "\u5e90\u5c71"})]
    with pytest.raises(DataError, match=r"row 7: message 2 has a call .* no JSON object: find it"):
        read_messages(row(conversations=[turns[0], {"from": "function_call", "value": "find it"}]))


def test_turns_of_sharegpt_may_be_messages() -> None:
    told = {"role": "system", "content": "Be brave."}
    found = read_messages(row(conversations=[ASKED, ANSWER], system="Be brave."))
    assert found == [told, ASKED, ANSWER]
    unnamed = {"from": None, "value": None}  # as parquet fills turns where others have these fields
    filled = [{**each, **unnamed} for each in (ASKED, ANSWER)]
    assert read_messages(row(conversations=filled)) == [ASKED, ANSWER]
    with pytest.raises(DataError, match=r"row 7: message 1 has no text in `content`, got ''"):
        read_messages(row(conversations=[{**ASKED, "content": ""}, ANSWER]))


def test_tool_is_told_as_openais_api_has_it() -> None:
    told = {"parameters": {"type": "object"}, "name": "find"}
    wrapped = {"type": "function", "function": told}
    assert read_tools(row(tools=json.dumps([told]))) == read_tools(row(tools=[wrapped]))
    assert json.dumps(read_tools(row(tools=[told]))) == json.dumps([wrapped])
    assert read_tools(row(tools=None)) == []


@pytest.mark.parametrize(
    ("tools", "message"),
    [("find", "must hold a list"), (["find"], "without a `name`"), ([{"a": 1}], "got {'a': 1}")],
)
def test_tools_that_are_none_are_refused(tools: object, message: str) -> None:
    with pytest.raises(DataError, match=rf"a\.jsonl, row 7: column `tools` .*{message}"):
        read_tools(row(tools=tools))


def test_call_is_shown_as_a_line_of_json_behind_what_is_said() -> None:
    calls = [{"name": "find", "arguments": {"where": "\u5e90\u5c71"}}]
    for said, before in ((None, ""), ("Let me look.", "Let me look.\n")):
        message = {"role": "assistant", "content": said, "tool_calls": calls}
        (_, found) = read_messages(row(messages=[ASKED, message]))
        assert shown(found) == before + '{"name": "find", "arguments": {"where": "\u5e90\u5c71"}}'


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning", "refusal"])
def test_reasoning_that_would_be_lost_is_refused_and_none_is_not(name: str) -> None:
    told = rf"a\.jsonl, row 7: message 2 has `{name}`, which would be lost\. Put it into `content`"
    turns = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "Near."}]
    for values in (
        {"messages": [ASKED, {**ANSWER, name: "It was near."}]},
        {"messages": [ASKED, {**ANSWER, name: [{"text": "It was near."}]}]},
        {"conversations": [turns[0], {**turns[1], name: "It was near."}]},
    ):
        with pytest.raises(DataError, match=told):
            read_messages(row(**values))
    for nothing in (None, "", " \n", []):
        found = read_messages(row(messages=[ASKED, {**ANSWER, name: nothing}]))
        assert found == [ASKED, ANSWER]


def test_assistant_may_have_said_nothing_where_nothing_is_learned() -> None:
    silent = [ASKED, {**ANSWER, "content": ""}, ASKED]
    assert read_messages(row(messages=silent), is_learned=False) == silent
    with pytest.raises(DataError, match=r"row 7: message 2 has no text in `content`, got ''"):
        read_messages(row(messages=silent))
    unasked = [{**ASKED, "content": " "}]
    with pytest.raises(DataError, match="message 1 has no text"):
        read_messages(row(messages=unasked), is_learned=False)


@pytest.mark.parametrize("name", ["function_call", "function_calls", "tool_call"])
def test_call_under_another_name_that_would_be_lost_is_refused(name: str) -> None:
    call = {"name": "find", "arguments": "{}"}
    told = rf"a\.jsonl, row 7: message 2 has `{name}`, which would be lost\. Write it into the"
    turns = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "Let me look."}]
    for values in (
        {"messages": [ASKED, {**ANSWER, name: call}]},
        {"messages": [ASKED, {**ANSWER, "content": None, name: call}]},
        {"conversations": [turns[0], {**turns[1], name: call}]},
    ):
        with pytest.raises(DataError, match=told):
            read_messages(row(**values))
    assert read_messages(row(messages=[ASKED, {**ANSWER, name: None}])) == [
        ASKED,
        ANSWER,
    ]


@pytest.mark.parametrize("name", ["loss", "train", "training"])
def test_turn_that_others_leave_out_of_the_loss_is_refused_unless_weight_says_it(name: str) -> None:
    told = rf"row 7: message 2 has `{name}` False, but would be learned .* Write `weight` 0"
    unlearned = {**ANSWER, name: False}
    talk = [ASKED, unlearned, ASKED, ANSWER]
    turns = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "Near.", name: False}]
    for values in ({"messages": talk}, {"conversations": turns}):
        with pytest.raises(DataError, match=told):
            read_messages(row(**values))
    assert read_messages(row(messages=talk), is_learned=False) == [ASKED, ANSWER] * 2
    harmless = [{**ASKED, name: False}, {**unlearned, "weight": 0}, ASKED, {**ANSWER, name: True}]
    assert read_messages(row(messages=harmless))[1] == {**ANSWER, "weight": 0}


def test_names_in_messages_that_are_not_read_are_named_once_and_without_a_value_never() -> None:
    nothing = {"refusal": None, "annotations": [], "audio": {}, "id": ""}
    odd = {**ANSWER, **nothing, "remark": "x", "tool_call_id": "1"}
    talk = [ASKED, odd, {**odd, "images": ["a"]}]
    assert unread_names(talk) == unread_names(json.dumps(talk)) == ["remark", "images"]
    turn = {"from": "gpt", "value": "Near.", "weight": 1, "content": "Far.", "loss": True}
    assert unread_names([turn, odd], are_turns=True) == ["content", "loss", "remark"]
    assert unread_names("hello") == unread_names(None) == unread_names(["a"]) == []


def test_turn_of_sharegpt_keeps_what_a_message_has() -> None:
    told = {"name": "find", "tool_call_id": "1"}
    turn = {"from": "observation", "value": "Near.", "role": None, **told}
    turns = [{"from": "human", "value": "Where?"}, turn, {"from": "gpt", "value": "Near."}]
    assert read_messages(row(conversations=turns))[1] == {
        "role": "tool",
        "content": "Near.",
        **told,
    }


@pytest.mark.parametrize("history", [[[" Hello! ", "Good day."]], '[["Hello!", "Good day."]]'])
def test_history_of_alpacas_form_stands_before_the_question(history: object) -> None:
    values = {"instruction": "Where is the fox?", "output": "Near.", "system": "Be brave."}
    assert read_messages(row(**values, history=history)) == [
        {"role": "system", "content": "Be brave."},
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Good day."},
        ASKED,
        ANSWER,
    ]
    for nothing in (None, [], "[]"):
        assert read_messages(row(**values, history=nothing)) == read_messages(row(**values))


@pytest.mark.parametrize(
    "history", ["Hello!", [["Hello!"]], ["Hello!"], [["Hello!", " "]], [[1, "a"]], {"a": 1}]
)
def test_history_that_is_no_list_of_pairs_is_refused(history: object) -> None:
    told = r"a\.jsonl, row 7: column `history` must hold pairs of a question and its answer.* got "
    with pytest.raises(DataError, match=told):
        read_messages(row(instruction="Where?", output="Near.", history=history))


@pytest.mark.parametrize(
    ("said", "num_first", "expected"),
    [
        (["Where does the brave little fox live in winter?", "Near.", "Why?"], 1, 1),
        (["Hello!", "Good day.", "Where is the fox in winter?", "Near.", "Why?"], 1, 3),
        (["Hello!", "Good day.", "Where is the fox?"], 1, 3),
        (["Good day.", "Hello!", "Where does the brave little fox live in winter?", "Near."], 2, 3),
    ],
)
def test_beginning_goes_on_until_it_tells_one_conversation_from_others(
    said: list[str], num_first: int, expected: int
) -> None:
    parts = beginning(said, num_first).split(GOES_ON)
    assert parts == ["\n".join(said[:num_first]), *said[num_first:expected]]
