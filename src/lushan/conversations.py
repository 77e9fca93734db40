"""Conversations of any form of data, as messages: OpenAI's, ShareGPT's and Alpaca's; and what is called in them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lushan.data.columns import unpacked
from lushan.data.near import comparable
from lushan.errors import DataError
from lushan.records import GOES_ON, Call, Row
from lushan.text_answers import read_text

_ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
_KEPT = ("role", "content", "weight", "name", "tool_calls", "tool_call_id")
_SAID = ("reasoning_content", "thinking", "reasoning", "refusal")
"""What others put beside `content`, though it is said."""
_CALLS = ("function_call", "function_calls", "tool_call")
"""Names of `tool_calls` that no template knows."""
_WEIGHTS = ("loss", "train", "training")
"""What others call `weight`, as ms-swift and Axolotl do."""
_ARGUMENTS = ("parameters", "args", "argument", "input")
"""What others call `arguments` of a call."""
_KNOWN = frozenset({*_KEPT, *_SAID, *_CALLS})
_KNOWN_IN_TURNS = _KNOWN - {"role", "content"} | {"from", "value"}
"""In turns of ShareGPT's form."""
_TELLING_CHARACTERS = 40
"""What a conversation begins with tells it from others from so many letters on; a greeting has less."""


def read_messages(row: Row, *, is_learned: bool = True) -> list[dict[str, Any]]:
    """Give the conversation of any form as messages.

    Args:
        row: The row that holds it.
        is_learned: Whether it is learned from. One that is only read may hold turns in which the assistant said nothing, as
            models do now and then.

    Raises:
        DataError: If it is none.
    """
    values = row.values
    system = [{"role": "system", "content": values["system"]}] if values.get("system") else []
    if values.get("instruction") is not None:
        asked = read_text(row, "instruction")
        more = values.get("input")
        content = f"{asked}\n\n{more}" if isinstance(more, str) and more.strip() else asked
        found: Any = [*system, *_earlier(row), {"role": "user", "content": content}]
        if values.get("output") not in (None, ""):
            reply = read_text(row, "output")
            found.append({"role": "assistant", "content": reply})
    elif values.get("conversations") is not None:
        turns = _listed(row, "conversations")
        found = [*system, *(_from_sharegpt(turn) for turn in turns)]
    else:
        found = _listed(row, "messages")
    return [
        _read_message(row, number, each, is_learned=is_learned)
        for number, each in enumerate(found, start=1)
    ]


def unread_names(value: object, *, are_turns: bool = False) -> list[str]:
    """Name what messages hold that is neither read nor refused, each name once.

    Args:
        value: Of a column of messages.
        are_turns: Whether they may have ShareGPT's form.
    """
    messages = unpacked(value)
    found: dict[str, None] = {}
    for each in messages if isinstance(messages, list | tuple) else ():
        if isinstance(each, Mapping):
            known = _KNOWN_IN_TURNS if are_turns and _is_turn(each) else _KNOWN
            names = (name for name, held in each.items() if held not in (None, "", [], {}))
            found |= dict.fromkeys(name for name in names if name not in known)
    return [*found]


def _earlier(row: Row) -> list[dict[str, Any]]:
    """Give the turns of the column `history`, which LLaMA-Factory adds to Alpaca's form: pairs of question and answer."""
    given = row.values.get("history")
    pairs = unpacked(given) if given else []
    found: list[dict[str, Any]] = []
    for pair in pairs if isinstance(pairs, list | tuple) else [given]:
        texts = pair if isinstance(pair, list | tuple) else ()
        if len(texts) != 2 or not all(isinstance(each, str) and each.strip() for each in texts):
            raise DataError(
                f"{row.place}: column `history` must hold pairs of a question and its answer, such as "
                f'[["Hello!", "Good day."]], got {str(pair)[:200]}.'
            )
        asked, answered = (each.strip() for each in texts)
        found += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return found


def _listed(row: Row, name: str) -> Sequence[Any]:
    found = unpacked(row.values.get(name))
    if not isinstance(found, list | tuple) or not found:
        raise DataError(
            f"{row.place}: column `{name}` must hold a list of messages, got {row.values.get(name)!r}."
        )
    return found


def _is_turn(message: Mapping[str, Any]) -> bool:
    return message.get("from") is not None or message.get("role") is None


def _from_sharegpt(turn: object) -> object:
    if not isinstance(turn, Mapping) or not _is_turn(turn):
        return turn  # a message already, or nothing of the kind
    speaker, value = turn.get("from"), turn.get("value")
    role = _SHAREGPT_ROLES.get(str(speaker), speaker)
    kept = {name: each for name, each in turn.items() if name not in ("role", "content")}
    if speaker == "function_call":
        return {"role": role, "content": None, **kept, "tool_calls": unpacked(value) or [value]}
    return {"role": role, "content": value, **kept}


def _read_message(row: Row, number: int, message: object, *, is_learned: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
        raise DataError(
            f"{row.place}: message {number} must be an object with a `role` ({', '.join(_ROLES)}) and `content`, "
            f"got {str(message)[:200]}."
        )
    _refuse_what_is_lost(row, number, message)
    if is_learned:
        _refuse_what_is_not_learned(row, number, message)
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        content = ""
    silent = ("tool",) if is_learned else ("tool", "assistant")
    may_be_empty = message.get("tool_calls") or message["role"] in silent
    if not isinstance(content, str) or not (content.strip() or may_be_empty):
        raise DataError(f"{row.place}: message {number} has no text in `content`, got {content!r}.")
    kept = {name: message[name] for name in _KEPT if message.get(name) not in (None, [])}
    if "tool_calls" in kept:
        kept["tool_calls"] = _read_calls(row, number, kept["tool_calls"])
    if (weight := kept.get("weight", 1)) not in (0, 1):
        raise DataError(
            f"{row.place}: message {number} has `weight` {weight!r}; expected 1, or 0 where it is not learned."
        )
    return kept | {"content": content}


def _refuse_what_is_lost(row: Row, number: int, message: Mapping[str, Any]) -> None:
    """Templates write thoughts in ways of their own, and leave them out of earlier turns; they know calls as `tool_calls` alone."""
    for name in _CALLS:
        if message.get(name):
            raise DataError(
                f"{row.place}: message {number} has `{name}`, which would be lost. Write it into the list `tool_calls`, "
                "and what comes back as a message of the role `tool`; or take it out."
            )
    for name in _SAID:
        value = message.get(name)
        if value.strip() if isinstance(value, str) else value:
            raise DataError(
                f"{row.place}: message {number} has `{name}`, which would be lost. Put it into `content` as the model "
                "writes it, or take it out."
            )


def _refuse_what_is_not_learned(row: Row, number: int, message: Mapping[str, Any]) -> None:
    """A turn that is left out of the loss elsewhere would be learned here."""
    if message["role"] != "assistant" or message.get("weight") is not None:
        return
    for name in _WEIGHTS:
        if message.get(name) == 0:  # also False
            raise DataError(
                f"{row.place}: message {number} has `{name}` {message[name]!r}, but would be learned all the same. Write "
                "`weight` 0 in its place."
            )


def _read_calls(row: Row, number: int, calls: object) -> list[dict[str, Any]]:
    """Give calls with their arguments as objects, as chat templates want them; OpenAI's form has them as a text of JSON."""
    found: list[dict[str, Any]] = []
    for call in calls if isinstance(calls, list | tuple) else [calls]:
        outer: Mapping[str, Any] = call if isinstance(call, Mapping) else {}
        inner = outer.get("function", outer)
        arguments = _arguments(inner)
        name = inner.get("name") if isinstance(inner, Mapping) else None
        if not isinstance(name, str) or not name or not isinstance(arguments, Mapping):
            raise DataError(
                f"{row.place}: message {number} has a call in `tool_calls` without a `name`, or whose `arguments` are no "
                f"JSON object: {str(call)[:200]}."
            )
        told = {**inner, "arguments": arguments}
        kind = {"type": "function"}
        found.append(
            {**outer, **kind, "function": told}
            if "function" in outer
            else kind | {"function": told}
        )
    return found


def _arguments(function: object) -> object:
    """Give what a call is made with; None where that is called otherwise, and templates would lose it."""
    if not isinstance(function, Mapping):
        return None
    is_lost = "arguments" not in function and any(function.get(name) for name in _ARGUMENTS)
    found = None if is_lost else function.get("arguments", {})
    return unpacked(found or "{}") if isinstance(found, str) else found


def read_tools(row: Row) -> list[dict[str, Any]]:
    """Give the column `tools`: what may be called, each as `{"type": "function", "function": {...}}`.

    Raises:
        DataError: If it holds no list, or a tool has no name.
    """
    given = row.values.get("tools")
    tools = unpacked(given) if given else []
    if not isinstance(tools, list | tuple):
        raise DataError(f"{row.place}: column `tools` must hold a list, got {given!r}.")
    return [_read_tool(row, each) for each in tools]


def _read_tool(row: Row, tool: object) -> dict[str, Any]:
    told = dict(tool) if isinstance(tool, Mapping) else {}
    if "function" not in told:  # ShareGPT's form; the server tells the model OpenAI's
        told = {"type": "function", "function": told}
    function = told["function"]
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(
            f"{row.place}: column `tools` holds one without a `name`, got {str(tool)[:200]}."
        )
    return told


def beginning(said: Sequence[str], num_first: int) -> str:
    """Give what a conversation begins with: its first question, and what follows where that has few letters, as a greeting has.

    Args:
        said: What each message says.
        num_first: How many there are up to the first question.
    """
    turns = ["\n".join(said[:num_first])]
    for each in said[num_first:]:
        if len(comparable("\n".join(turns))) >= _TELLING_CHARACTERS:
            break
        turns.append(each)
    return GOES_ON.join(turns)


def calls_in(message: Mapping[str, Any]) -> list[Call]:
    """Give the calls of a message that was read."""
    functions = [each["function"] for each in message.get("tool_calls", ())]
    return [Call(each["name"], each["arguments"]) for each in functions]


def shown(message: Mapping[str, Any]) -> str:
    """Write what a message says, and a line of JSON for each of its calls."""
    calls = [
        json.dumps({"name": each.name, "arguments": each.arguments}, ensure_ascii=False)
        for each in calls_in(message)
    ]
    return "\n".join([message["content"], *calls] if message["content"] else calls)
