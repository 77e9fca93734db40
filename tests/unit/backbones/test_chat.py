"""Conversations as text: as `transformers` writes them, and for models that have no template."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lushan.backbones.chat import PLAIN_CHAT
from lushan.backbones.tokenizer import Tokenizer
from lushan.errors import ModelError
from tests.conftest import MakeTiny
from tests.unit.backbones.test_tokenizer import change

CHAT = """{% for m in messages %}
    {% if m['role'] == 'user' %}
<{{ m['role'] }}>
{{ m['content'] }}{{ eos_token }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
<assistant>
{% endif %}"""
MESSAGES = [{"role": "user", "content": "Who are you?"}]


@pytest.mark.parametrize("prompt", [True, False])
def test_chat_is_written_as_transformers_writes_it(
    prompt: bool,
    tiny_folder: MakeTiny,
    tmp_path: Path,
) -> None:
    folder = change(tiny_folder("llama"), tmp_path / "model", chat_template=CHAT)
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=prompt
    )
    assert Tokenizer.load(folder).render_chat(MESSAGES, add_generation_prompt=prompt) == theirs


def test_template_of_a_relative_folder_is_read_from_any_working_directory(
    tiny_folder: MakeTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = change(tiny_folder("llama"), tmp_path / "model", chat_template=CHAT)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    tokenizer = Tokenizer.load(Path("model"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert tokenizer.render_chat(MESSAGES) == Tokenizer.load(folder).render_chat(MESSAGES)


def test_json_in_a_template_is_that_of_transformers(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    template = (
        "{{ tools | tojson }}{{ tools | tojson(indent=2) }}{{ messages | tojson(sort_keys=True) }}"
    )
    folder = change(tiny_folder("llama"), tmp_path / "model", chat_template=template)
    function = {
        "name": "a",
        "description": "The user's <b>\u5317\u4eac</b> & more",
        "parameters": {},
    }
    tools: list[Any] = [{"type": "function", "function": function}]
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        MESSAGES, tools=tools, tokenize=False
    )
    assert Tokenizer.load(folder).render_chat(MESSAGES, tools=tools) == theirs


def test_base_model_gets_a_plain_template_which_is_saved_once_it_was_used(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.load(tiny_folder("llama"))
    (tmp_path / "unused").mkdir()
    tokenizer.save(tmp_path / "unused")
    stop = tokenizer._token(tokenizer.stop_id)
    turns = [*MESSAGES[:1], {"role": "assistant", "content": "Hello."}]
    assert tokenizer.render_chat(turns, add_generation_prompt=False).endswith(
        f"\n\nAssistant: Hello.{stop}\n\n"
    )
    (tmp_path / "used").mkdir()
    tokenizer.save(tmp_path / "used")
    assert not (tmp_path / "unused" / "chat_template.jinja").exists()
    theirs = AutoTokenizer.from_pretrained(tmp_path / "used").apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True
    )
    assert Tokenizer.load(tmp_path / "used").render_chat(turns) == theirs
    assert theirs.endswith("Assistant:")


@pytest.mark.parametrize("model_type", ["gemma3_text", "gpt2"])
def test_saved_plain_template_gives_other_programs_the_ids_that_were_trained(
    model_type: str, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.load(tiny_folder(model_type))
    (ours,) = tokenizer.encode([tokenizer.render_chat(MESSAGES)])
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        MESSAGES, add_generation_prompt=True
    )["input_ids"]
    assert ours.ids == theirs
    assert theirs.count(tokenizer.bos_id) == (model_type == "gemma3_text")
    again = Tokenizer.load(tmp_path)
    assert again.encode([again.render_chat(MESSAGES)]) == [ours]
    assert again.chat.is_plain


def test_plain_template_without_bos_of_earlier_runs_is_kept_and_certified_as_it_was(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    base = Tokenizer.load(tiny_folder("gemma3_text"))
    base.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(PLAIN_CHAT, encoding="utf-8")
    (ids,) = base.encode([base.render_chat(MESSAGES)])
    for earlier in (Tokenizer.load(tmp_path), base.with_chat_of(tmp_path)):
        assert earlier.chat.source == earlier.chat.text == base.chat.text == PLAIN_CHAT
        assert earlier.chat.is_plain
        assert earlier.encode([earlier.render_chat(MESSAGES)])[0].ids == ids.ids


def test_adapter_keeps_the_template_that_it_was_saved_with(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    base = Tokenizer.load(tiny_folder("llama"))
    assert base.with_chat_of(tmp_path) is base
    base.render_chat(MESSAGES)
    base.save(tmp_path)
    assert base.with_chat_of(tmp_path) is base
    (tmp_path / "chat_template.jinja").write_text("of an earlier version", encoding="utf-8")
    assert base.with_chat_of(tmp_path).render_chat(MESSAGES) == "of an earlier version"
    assert base.render_chat(MESSAGES).startswith("User: Who are you?")


def test_chat_template_may_refuse(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    folder = change(tiny_folder("llama"), tmp_path / "model", chat_template=template)
    with pytest.raises(ModelError, match="roles must alternate"):
        Tokenizer.load(folder).render_chat(MESSAGES)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endfor %}",
        "{% set a = 1 %}\n  {%- generation -%}\n  {% set a = 2 %}{{ a }}\n{% endgeneration %}\n{{ a }}",
    ],
)
def test_what_templates_mark_as_generated_is_written_as_transformers_does(
    template: str, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    folder = change(tiny_folder("llama"), tmp_path / "model", chat_template=template)
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(MESSAGES, tokenize=False)
    assert Tokenizer.load(folder).render_chat(MESSAGES) == theirs


def test_today_is_the_same_every_day(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    template = "{{ strftime_now('%d %b %Y') }} {{ strftime_now(format='%H:%M') }}"
    folder = change(tiny_folder("llama"), tmp_path / "model", chat_template=template)
    assert Tokenizer.load(folder).render_chat(MESSAGES) == "26 Jul 2024 00:00"
