"""Tools that a model may call: how its chat template writes a call, and how calls are read back from what it wrote.

No template is known by name. It is asked to write a call of a made-up tool; what stands around the JSON there, and the
names of its two fields, are the form of a call.
"""

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lushan.backbones.tokenizer import Tokenizer
from lushan.errors import ModelError, SettingError
from lushan.inference.grammar import Constraint
from lushan.serving.errors import RequestError
from lushan.serving.schemas import ChatRequest, FunctionCall, NamedTool, ToolCall

_NAME = "made_up_tool"
_ARGUMENTS = {"made_up_argument": "made_up_value"}
_ASKED = {"role": "user", "content": "Hello"}
_DEFINITIONS = ("$defs", "definitions")
_WRITTEN_SO = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""To llguidance: the spaces of Python's JSON, which templates write, and no others, of which a model may find no end."""


@dataclass(frozen=True, slots=True)
class ToolForm:
    """How a call is written: `<tool_call>{"name": ..., "arguments": ...}</tool_call>`."""

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


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of one request, and how the answer is to be read."""

    form: ToolForm
    names: frozenset[str]
    is_forced: bool
    """Whether the answer is the JSON of a call and nothing else, because the request asks for one."""
    most_calls: int | None
    """How many calls an answer may have; None where any number may."""

    def read(self, text: str) -> tuple[str, list[ToolCall]]:
        """Part what a model wrote into what it says and what it calls; what is no whole call of a known tool is said."""
        mark = "" if self.is_forced else self.form.mark
        start = text.find(mark)
        calls = list(self._calls(text[start + len(mark) :])) if start >= 0 else []
        if not calls:
            return text, []
        return text[:start].strip(), calls[: self.most_calls]

    def _calls(self, written: str) -> Iterator[ToolCall]:
        """Give the calls that stand one after another, up to the first that is none."""
        marks = [each for each in (self.form.mark, self.form.after.strip()) if each]
        while True:
            written = written.lstrip(" \n,;")
            try:
                value, end = json.JSONDecoder().raw_decode(written)
            except (ValueError, RecursionError):
                return
            called = self._call(value)
            if called is None:
                return
            yield called
            written = written[end:].lstrip()
            for each in reversed(marks):
                written = written.removeprefix(each).lstrip()

    def _call(self, value: Any) -> ToolCall | None:  # noqa: ANN401 - any JSON value
        if not isinstance(value, dict):
            return None
        name, arguments = value.get(self.form.name), value.get(self.form.arguments)
        if not isinstance(name, str) or name not in self.names or not isinstance(arguments, dict):
            return None
        called = FunctionCall(name=name, arguments=json.dumps(arguments, ensure_ascii=False))
        # Some templates refuse any other length, and what is no letter or digit.
        return ToolCall(id=secrets.token_hex(5)[:9], type="function", function=called)


def offered_tools(
    body: ChatRequest, tokenizer: Tokenizer, *, model: str
) -> tuple[Tools, Constraint | None] | None:
    """Tell which tools a request offers, and what the answer must keep to; None where there are none to call.

    Raises:
        RequestError: If the model's chat template knows no tools, one that must be called is not there, or the schema of its
            arguments cannot be used.
    """
    if not body.tools or body.tool_choice == "none":
        return None
    choice = body.tool_choice
    tools = [each.as_told() for each in body.tools]
    form = tool_form(tokenizer, tools)
    if form is None:
        raise RequestError(
            f"`tools`: the chat template of `{model}` does not write tools and their calls, so that they would be lost. Leave "
            "them out, or ask a model whose template does.",
            param="tools",
        )
    known = {each.function.name: each.function.parameters for each in body.tools}
    if len(known) < len(body.tools):
        raise RequestError("`tools`: two have the same name.", param="tools")
    forced = known if choice == "required" else {}
    if isinstance(choice, NamedTool):
        name = choice.function.name
        if name not in known:
            raise RequestError(
                f"`tool_choice`: there is no tool `{name}`. Known: {', '.join(known)}.",
                param="tool_choice",
            )
        forced = {name: known[name]}
    most_calls = 1 if forced or body.parallel_tool_calls is False else None
    found = Tools(form, frozenset(known), bool(forced), most_calls)
    return found, call_constraint(form, forced) if forced else None


def tool_form(tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]]) -> ToolForm | None:
    """Ask a chat template how it writes a call; None where it leaves tools or calls out."""
    function = {"name": _NAME, "arguments": _ARGUMENTS}
    call = {"id": "made_up_1", "type": "function", "function": function}
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    try:
        without = tokenizer.render_chat([_ASKED], add_generation_prompt=True)
        asked = tokenizer.render_chat([_ASKED], tools=tools, add_generation_prompt=True)
        told = tokenizer.render_chat([_ASKED, calling], tools=tools, add_generation_prompt=False)
    except ModelError:
        return None
    if asked == without or not told.startswith(asked.rstrip()):
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


def call_constraint(form: ToolForm, tools: Mapping[str, Mapping[str, Any] | None]) -> Constraint:
    """Allow the JSON of one call of one of the tools, with arguments that its JSON Schema accepts.

    Raises:
        RequestError: If a schema cannot be used.
    """
    definitions: dict[str, dict[str, Any]] = {}
    calls: list[dict[str, Any]] = []
    for name, parameters in tools.items():
        schema = _without_definitions(parameters or {"type": "object"}, definitions)
        calls.append({
            "type": "object",
            "properties": {form.name: {"const": name}, form.arguments: schema},
            "required": [form.name, form.arguments],
            "additionalProperties": False,
        })
    whole = calls[0] if len(calls) == 1 else {"anyOf": calls}
    constraint = Constraint.json_schema({**whole, **definitions, "x-guidance": _WRITTEN_SO})
    try:
        constraint.check()
    except SettingError as error:
        raise RequestError(str(error), param="tools") from None
    return constraint


def _without_definitions(
    schema: Mapping[str, Any], definitions: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Move what a schema defines to the root of the whole one, from where references are looked up.

    Raises:
        RequestError: If another tool's schema defines the same name in another way.
    """
    rest = dict(schema)
    for place in _DEFINITIONS:
        known = definitions.setdefault(place, {})
        own = rest.pop(place, None) or {}
        if not isinstance(own, dict):
            raise RequestError(f"`tools`: `{place}` must be an object.", param="tools")
        for key, value in own.items():
            if known.setdefault(key, value) != value:
                raise RequestError(
                    f"`tools`: two schemas define `{key}` in different ways.", param="tools"
                )
    return rest
