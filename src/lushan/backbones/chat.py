"""Conversations as text: the chat template of a model, and a plain one for base models, which have none."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lushan.backbones.inspect import read_json
from lushan.errors import ModelError

CHAT_TEMPLATE_FILE = "chat_template.jinja"

PLAIN_CHAT = """\
{% if tools %}
Tools, called by <tool_call>{"name": ..., "arguments": ...}</tool_call>:
{% for tool in tools %}
{{ tool | tojson }}
{% endfor %}

{% endif %}
{% for message in messages %}
{% if message.role == 'system' %}
{{ message.content }}

{% else %}
{{ message.role | capitalize }}:
{%- if message.content or not message.tool_calls %} {{ message.content }}{% endif %}
{%- for call in message.tool_calls or [] %}
{{- '\\n' if message.content or not loop.first else ' ' }}<tool_call>
{"name": {{ call.function.name | tojson }}, "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}
{{- eos_token if message.role == 'assistant' }}

{% endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ 'Assistant:' }}
{%- endif %}
"""
"""The chat template of base models, which have none of their own: plain words, and the stop token behind every answer.

Calls of tools are written as those of Hermes and Qwen.
"""
PLAIN_CHAT_AFTER_BOS = "{{- bos_token -}}\n" + PLAIN_CHAT
"""The same where a tokenizer begins every text with `<bos>`: other programs leave that to the template of a conversation."""
TODAY = date(2024, 7, 26)
"""What templates are told is today, so that a model is asked the same every day; it is what Llama 3.2's own fall back on."""
_TURNS = (
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Good day."},
)
"""A conversation that every template should write, to see what it ends a turn with."""


class ChatTemplate:
    """The chat template of a model folder, or the plain one where it has none."""

    def __init__(self, folder: Path, *, begins_with_bos: bool = False) -> None:
        """Name the folder; it is read when the first conversation is written.

        Args:
            folder: Of the model.
            begins_with_bos: Whether the plain template writes `<bos>` first.
        """
        self._folder = folder.absolute()  # read later, when the working directory may be another
        self._plain = PLAIN_CHAT_AFTER_BOS if begins_with_bos else PLAIN_CHAT

    @cached_property
    def source(self) -> str:
        """The template itself."""
        return read_chat_template(self._folder) or self._plain

    @cached_property
    def text(self) -> str:
        """The template as certificates hold it: the plain one as it was before it wrote `<bos>`, which token ids tell."""
        return PLAIN_CHAT if self.source == PLAIN_CHAT_AFTER_BOS else self.source

    @property
    def is_plain(self) -> bool:
        """Whether it is that of models which have none of their own."""
        return self.text == PLAIN_CHAT

    @cached_property
    def _compiled(self) -> Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = TODAY.strftime
        environment.filters["tojson"] = _to_json
        return environment.from_string(self.source)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None,
        add_generation_prompt: bool,
        marks: Mapping[str, str],
    ) -> str:
        """Write messages.

        Args:
            messages: What was said, in order.
            tools: What the assistant may call, as JSON schemas.
            add_generation_prompt: Whether the assistant's next turn is begun.
            marks: `bos_token` and `eos_token`.

        Raises:
            ModelError: If the template is broken or refuses the messages.
        """
        try:
            return self._compiled.render(
                messages=messages, tools=tools, add_generation_prompt=add_generation_prompt, **marks
            )
        except (TemplateError, TypeError) as error:  # filters raise what Python does
            raise ModelError(f"The chat template of `{self._folder.name}`: {error}.") from None

    def behind_answer(self, marks: Mapping[str, str]) -> str:
        """Give what is written behind what the assistant says; nothing where that cannot be told.

        Args:
            marks: `bos_token` and `eos_token`.
        """
        try:
            text = self.render(_TURNS, tools=None, add_generation_prompt=False, marks=marks)
        except (ModelError, ValueError):  # also of a model that never chats
            return ""
        _, answer, behind = text.rpartition(_TURNS[-1]["content"])
        return behind if answer else ""

    def save_if_provided(self, folder: Path) -> None:
        """Write the plain template into a model folder, if it is the one that conversations were written with."""
        if "_compiled" in vars(self) and read_chat_template(self._folder) is None:
            (folder / CHAT_TEMPLATE_FILE).write_text(self.source, encoding="utf-8")


def read_chat_template(folder: Path) -> str | None:
    """Give the chat template of a model folder, wherever its generation of the library keeps it."""
    file = folder / CHAT_TEMPLATE_FILE
    if file.is_file():
        return file.read_text(encoding="utf-8")
    stored = read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(stored, list):  # several named templates
        stored = next((each["template"] for each in stored if each["name"] == "default"), None)
    return stored


class _Generation(Extension):
    """Writes what stands in `{% generation %}`, by which templates mark what the assistant says, as it is."""

    tags = {"generation"}  # noqa: RUF012 - Jinja reads it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # As in `transformers`: what is set inside is not seen outside.
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Callable[[], str]) -> str:
        return caller()


def _to_json(
    value: object,
    *,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as `transformers` has templates do: Jinja's own filter would escape `<`, `>`, `&` and `'` for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(message: str) -> None:
    raise TemplateError(message)
