"""Calls of tools: how a chat template writes one, and how calls are read back from what a model wrote.

No template is known by name. It is asked to write a call of a made-up tool; what stands around the JSON there, and the
names of its two fields, are the form of a call.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lushan.backbones.tokenizer import Tokenizer
from lushan.errors import ModelError
from lushan.records import Call, ToolForm

_NAME = "made_up_tool"
_ARGUMENTS = {"made_up_argument": "made_up_value"}
_ASKED = {"role": "user", "content": "Hello"}
_BETWEEN = " \n,;"
"""Characters that may stand between calls, and mean nothing there."""


def tool_form(tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]]) -> ToolForm | None:
    """Ask a chat template how it writes a call; None where it leaves tools or calls out, or writes no JSON.

    Without tools it is asked how it writes a call all the same, as of tools that are known without a word.
    """
    function = {"name": _NAME, "arguments": _ARGUMENTS}
    call = {"id": "made_up_1", "type": "function", "function": function}
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    try:
        without = tokenizer.render_chat([_ASKED], add_generation_prompt=True)
        asked = tokenizer.render_chat([_ASKED], tools=tools, add_generation_prompt=True)
        told = tokenizer.render_chat([_ASKED, calling], tools=tools, add_generation_prompt=False)
    except ModelError:
        return None
    if (tools and asked == without) or not told.startswith(asked.rstrip()):
        return None
    written = told[len(asked) :] if told.startswith(asked) else told[len(asked.rstrip()) :]
    return _form_in(written, tokenizer)


def _form_in(written: str, tokenizer: Tokenizer) -> ToolForm | None:
    """Find the JSON of the made-up call."""
    for start in (place for place, each in enumerate(written) if each == "{"):
        try:
            value, length = json.JSONDecoder().raw_decode(written[start:])
        except ValueError:
            continue
        fields = {name: key for key, name in value.items() if isinstance(name, str)}
        arguments = [key for key, each in value.items() if each == _ARGUMENTS]
        if _NAME in fields and arguments:
            after = tokenizer.special_names.sub("", written[start + length :])
            before = written[:start]
            hidden = [each.end() for each in tokenizer.special_names.finditer(before)]
            return ToolForm(before, after, fields[_NAME], arguments[0], max(hidden, default=0))
    return None


def read_calls(
    text: str, form: ToolForm, *, names: Collection[str] | None, has_mark: bool = True
) -> tuple[str, list[Call]]:
    """Part what a model wrote into what it says and what it calls; what is no whole call of a known tool is said.

    Behind the first mark with no such call nothing more is called.

    Args:
        text: What was written, without special tokens.
        form: How calls are written.
        names: The tools that may be called; None takes any.
        has_mark: Whether a call begins with its mark; else the text is the JSON of calls and nothing else.
    """
    mark = form.mark if has_mark else ""
    said, calls, rest = list[str](), list[Call](), text
    while (start := rest.find(mark)) >= 0:
        found, behind = _calls(rest[start + len(mark) :], form, names)
        if not found:
            break
        said.append(rest[:start])
        calls += found
        rest = behind
    parts = [each.strip() for each in (*said, rest)]
    return ("\n".join(filter(None, parts)), calls) if calls else (text, [])


def _calls(written: str, form: ToolForm, names: Collection[str] | None) -> tuple[list[Call], str]:
    """Give the calls that stand one after another, up to the first that is none, and what is behind them."""
    found: list[Call] = []
    while True:
        written = written.lstrip(_BETWEEN)
        try:
            value, end = json.JSONDecoder().raw_decode(written)
        except (ValueError, RecursionError):
            return found, written
        called = _call(value, form, names)
        if called is None:
            return found, written
        found.append(called)
        written = _without_end(written[end:].lstrip(), form.after.strip())


def _without_end(written: str, mark: str) -> str:
    """Take off what ends a call, or as much of it as was written before the answer was cut."""
    return "" if mark.startswith(written) else written.removeprefix(mark)


def _call(value: Any, form: ToolForm, names: Collection[str] | None) -> Call | None:  # noqa: ANN401 - any JSON value
    if not isinstance(value, dict):
        return None
    name, arguments = value.get(form.name), value.get(form.arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    if not _is_writable([name, arguments]):
        return None
    return Call(name, arguments) if names is None or name in names else None


def _is_writable(value: object) -> bool:
    r"""Whether what was read can be written again: Python reads `NaN`, `1e999` and `"\ud800"`, which are no JSON or no text."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return False
    return True
