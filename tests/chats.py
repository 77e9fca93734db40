"""Conversations and chat templates for tests, read and encoded by the task that chats."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lushan.backbones.encoding import LengthLimit
from lushan.backbones.tokenizer import Tokenizer
from lushan.records import Example, Features, Row, TaskState
from lushan.tasks.dialogue import Task

TASK = Task()
STATE = TaskState()
LIMIT = LengthLimit(128)
TURNS = [
    {"role": "system", "content": "Be brave."},
    {"role": "user", "content": "Where is the fox?"},
    {"role": "assistant", "content": "In the forest."},
    {"role": "user", "content": "And the soup?"},
    {"role": "assistant", "content": "Cold again."},
]


CALLS = [{"type": "function", "function": {"name": "find_fox", "arguments": {}}}]
TOOLS = [{"type": "function", "function": {"name": "find_fox", "parameters": {}}}]
CALLING = [TURNS[1], {"role": "assistant", "content": None, "tool_calls": CALLS}]
MARKED = (
    "{% if messages and messages[0].role != 'system' %}system: Be kind.|{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}|{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""As that of SmolLM2: says something before the first message, and knows no tools."""
KNOWING = MARKED.replace("{{ m.content }}", "{{ m.content }}{{ m.tool_calls }}{{ tools }}")
ALTERNATING = (
    "{% for m in messages if not m.tool_calls and m.role != 'tool' %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('conversation roles must alternate') }}{% endif %}{% endfor %}"
)
"""As in that of Mistral: turns that call, and what tools say, are not counted."""


def with_template(tokenizer: Tokenizer, folder: Path, template: str) -> Tokenizer:
    folder.mkdir(exist_ok=True)
    tokenizer.save(folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return Tokenizer.load(folder)


def read(messages: Sequence[Any] = TURNS, **values: object) -> Example:
    return TASK.read(Row({"messages": list(messages), **values}, "a.jsonl", 7))


def encode(
    tokenizer: Tokenizer,
    example: Example,
    *,
    limit: LengthLimit = LIMIT,
    with_target: bool = True,
    shots: Sequence[Example] = (),
) -> Features:
    (found,) = TASK.encode(
        [example],
        STATE,
        tokenizer,
        answer="generate",
        limit=limit,
        with_target=with_target,
        shots=shots,
    )
    return found


def learned(tokenizer: Tokenizer, features: Features) -> str:
    """What is supervised, with its special tokens."""
    assert features.positions is not None
    ids = [features.token_ids[place + 1] for place in features.positions]
    return tokenizer._raw.decode(ids, skip_special_tokens=False)
