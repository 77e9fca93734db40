"""Calls: their form is the template's own, and they are read back from what was written."""

from pathlib import Path

import pytest

from lushan.backbones.chat import PLAIN_CHAT
from lushan.backbones.tokenizer import Tokenizer
from lushan.backbones.tool_calls import read_calls, tool_form
from lushan.records import Call, ToolForm
from tests.conftest import MakeTiny

FORM = ToolForm("<call>\n", "\n</call>", "name", "arguments")
ONE = '{"name": "light", "arguments": {"on": true}}'
UNKNOWN = '{"name": "rm", "arguments": {}}'


def tokenizer_with(template: str, source: Path, folder: Path) -> Tokenizer:
    Tokenizer.load(source).save(folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return Tokenizer.load(folder)


@pytest.mark.parametrize(
    ("call", "form"),
    [
        (
            "<tool_call>\n{{ c | tojson }}\n</tool_call>",
            ToolForm("<tool_call>\n", "\n</tool_call>", "name", "arguments"),
        ),
        (
            '{"name": "{{ c.name }}", "parameters": {{ c.arguments | tojson }}}',
            ToolForm("", "", "name", "parameters"),
        ),
        (
            '[TOOL_CALLS] [{{ {"id": "a", "name": c.name, "arguments": c.arguments} | tojson }}]',
            ToolForm("[TOOL_CALLS] [", "]", "name", "arguments"),
        ),
        (
            '{"function": {{ {"tool": c.name, "with": c.arguments} | tojson }}}',
            ToolForm('{"function": ', "}", "tool", "with"),
        ),
        (
            "{{ eos_token }}{{ c | tojson }}",
            ToolForm("<eos>", "", "name", "arguments", num_hidden=5),
        ),
        ("{{ c.name }}()", None),
        ("", None),
    ],
)
def test_form_of_a_call_is_that_of_the_template(
    call: str, form: ToolForm | None, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    template = (
        "{{ tools }}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
        "{% for t in m.tool_calls or [] %}{% set c = t.function %}" + call + "{% endfor %}"
        "{{ eos_token if m.role == 'assistant' }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert tool_form(tokenizer_with(template, tiny_folder("llama"), tmp_path), [{}]) == form


def test_plain_template_writes_calls_and_without_tools_too(tiny_folder: MakeTiny) -> None:
    tokenizer = Tokenizer.load(tiny_folder("llama"))
    form = ToolForm(" <tool_call>\n", "\n</tool_call>\n\n", "name", "arguments")
    assert tokenizer.chat.text == PLAIN_CHAT
    assert tool_form(tokenizer, [{}]) == tool_form(tokenizer, []) == form


def test_known_names_alone_are_calls_and_without_names_all_are() -> None:
    text = f"Look. <call>\n{ONE}\n</call>"
    light = Call("light", {"on": True})
    assert read_calls(text, FORM, names=["light"]) == ("Look.", [light])
    assert read_calls(text, FORM, names=None) == ("Look.", [light])
    assert read_calls(text, FORM, names=["weather"]) == (text, [])
    assert read_calls(ONE, FORM, names=None, has_mark=False) == ("", [light])


@pytest.mark.parametrize(
    "arguments", ['{"a": "\\ud83d"}', '{"\\udc00": 1}', '{"a": NaN}', '{"a": [1e999]}']
)
def test_call_that_could_not_be_sent_stays_text(arguments: str) -> None:
    text = '<call>\n{"name": "light", "arguments": ' + arguments + "}\n</call>"
    assert read_calls(text, FORM, names=["light"]) == (text, [])


@pytest.mark.parametrize(
    ("behind", "said", "num_more"),
    [
        ("</call>\nIt is on.", "Wait.\nIt is on.", 0),
        (f"</call>\n<call>{UNKNOWN}</call>", f"Wait.\n<call>{UNKNOWN}</call>", 0),
        (f"</call>\n<call>{ONE[:-3]}", f"Wait.\n<call>{ONE[:-3]}", 0),
        (f"</call> Again: <call>{ONE}</call> Done.", "Wait.\nAgain:\nDone.", 1),
        (f"</call> <call>{UNKNOWN} <call>{ONE}", f"Wait.\n<call>{UNKNOWN} <call>{ONE}", 0),
        ("\n</call>;\n", "Wait.", 0),
        ("\n</ca", "Wait.", 0),
    ],
)
def test_what_is_behind_a_call_is_said_or_called(behind: str, said: str, num_more: int) -> None:
    text = f"Wait. <call>\n{ONE}{behind}"
    calls = [Call("light", {"on": True})] * (1 + num_more)
    assert read_calls(text, FORM, names=["light"]) == (said, calls)


def test_behind_calls_in_a_list_or_without_a_mark_is_text_too() -> None:
    light = Call("light", {"on": True})
    listed = ToolForm("[CALLS] [", "]", "name", "arguments")
    bare = ToolForm("", "", "name", "arguments")
    text = f"[CALLS] [{ONE}, {ONE}] See [1]."
    assert read_calls(text, listed, names=["light"]) == ("See [1].", [light, light])
    assert read_calls(f"{ONE}\nDone.", bare, names=["light"]) == ("Done.", [light])


def test_character_that_is_written_as_two_halves_can_be_sent() -> None:
    text = '<call>{"name": "light", "arguments": {"a": "\\ud83d\\ude00"}}'
    assert read_calls(text, FORM, names=["light"]) == ("", [Call("light", {"a": "\U0001f600"})])
