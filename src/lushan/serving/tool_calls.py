"""Tools that a request offers: what an answer that must call one keeps to, and calls as OpenAI's API sends them."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lushan.backbones.tokenizer import Tokenizer
from lushan.backbones.tool_calls import read_calls, tool_form
from lushan.errors import SettingError
from lushan.inference.grammar import Constraint
from lushan.records import Call, ToolForm
from lushan.serving.errors import RequestError
from lushan.serving.request_bodies import ChatRequest, FunctionCall, NamedTool, ToolCall

_DEFINITIONS = ("$defs", "definitions")
_WRITTEN_SO = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""To llguidance: the spaces of Python's JSON, which templates write, and no others, of which a model may find no end."""


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
        said, found = read_calls(text, self.form, names=self.names, has_mark=not self.is_forced)
        return said, [_as_sent(each) for each in found[: self.most_calls]]


def _as_sent(call: Call) -> ToolCall:
    told = FunctionCall(name=call.name, arguments=json.dumps(call.arguments, ensure_ascii=False))
    # Some templates refuse any other length, and what is no letter or digit.
    return ToolCall(id=secrets.token_hex(5)[:9], type="function", function=told)


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
