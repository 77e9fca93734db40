"""Conversations: what calls and tools of any form become, and what is refused."""

import json
from typing import Any

import pytest

from lushan.conversations import calls_in, read_messages, read_tools, shown
from lushan.errors import DataError
from lushan.records import Call, Row

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


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
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
