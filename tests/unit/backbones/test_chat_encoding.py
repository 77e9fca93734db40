"""From a conversation to tokens: what is learned of it, how earlier turns are read, and what happens to long ones."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lushan.backbones.encoding import LengthLimit
from lushan.backbones.tokenizer import Tokenizer
from lushan.errors import DataError, ModelError
from tests.chats import (
    ALTERNATING,
    CALLING,
    CALLS,
    KNOWING,
    MARKED,
    TOOLS,
    TURNS,
    encode,
    learned,
    read,
    with_template,
)
from tests.conftest import MakeTiny

SPACED = MARKED.replace("assistant:{%", "assistant: {%")
"""Asks with a space at the end, which tokenizers join with the word behind it."""
NEEDING = "{% if not messages %}{{ raise_exception('no messages') }}{% endif %}"
JOINING = [
    *(TURNS[1], {**TURNS[2], "content": "a fox"}),
    *(TURNS[3], {**TURNS[4], "content": "the forest"}),
]


@pytest.fixture
def tokenizer(tiny_folder: MakeTiny) -> Tokenizer:
    return Tokenizer.load(tiny_folder("llama"))


@pytest.mark.parametrize("field", ["content", "name", "tool_call_id"])
def test_marks_of_the_model_are_refused_wherever_a_template_may_write_them(
    field: str, tokenizer: Tokenizer
) -> None:
    mark = tokenizer._token(tokenizer.stop_id)
    asked = {**TURNS[1], field: f"x{mark}"}
    with pytest.raises(DataError, match=rf"a message holds `{mark}`"):
        encode(tokenizer, read([TURNS[0], asked, *TURNS[2:]]))


def test_answer_at_the_start_is_left_out_and_never_cut(tokenizer: Tokenizer) -> None:
    greeting = {"role": "assistant", "content": "soup " * 30}
    expected = encode(tokenizer, read(TURNS[1:]))
    limit = LengthLimit(len(expected.token_ids) + 12, "truncate")
    found = encode(tokenizer, read([greeting, *TURNS[1:]]), limit=limit)
    assert found.token_ids == expected.token_ids


def test_tokens_are_those_of_the_template_in_transformers(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    features = encode(tokenizer, read())
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ids = theirs.apply_chat_template(TURNS, return_dict=False)
    assert list(features.token_ids) == ids[: len(features.token_ids)]
    asked = theirs.apply_chat_template(TURNS[:-1], add_generation_prompt=True, return_dict=False)
    assert list(encode(tokenizer, read(), with_target=False).token_ids) == asked


def test_every_turn_of_the_assistant_is_learned_with_its_end_and_nothing_else(
    tokenizer: Tokenizer,
) -> None:
    stop = tokenizer._token(tokenizer.stop_id)
    found = learned(tokenizer, encode(tokenizer, read()))
    assert found == f" In the forest.{stop} Cold again.{stop}"
    silent = [*TURNS[:2], {**TURNS[2], "weight": 0}, *TURNS[3:]]
    assert learned(tokenizer, encode(tokenizer, read(silent))) == f" Cold again.{stop}"
    shot = read([TURNS[1], TURNS[2]])
    with_shot = encode(tokenizer, read(silent), shots=[shot])
    assert learned(tokenizer, with_shot) == f" Cold again.{stop}"
    assert len(with_shot.token_ids) > len(encode(tokenizer, read(silent)).token_ids)


def test_answer_that_joins_with_what_asks_for_it_is_learned_as_it_is_asked(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    spaced = MARKED.replace("assistant:{%", "assistant: {%")
    joining = with_template(tokenizer, tmp_path, spaced)
    turns = [
        *(TURNS[1], {**TURNS[2], "content": "a fox"}),
        *(TURNS[3], {**TURNS[4], "content": "the forest"}),
    ]
    features = encode(joining, read(turns))
    asked = encode(joining, read(turns[:2]), with_target=False)
    assert features.token_ids[: len(asked.token_ids)] == asked.token_ids
    assert features.positions is not None
    assert features.positions[0] == len(asked.token_ids) - 1
    assert learned(joining, features) == "a fox|the forest|"


@pytest.mark.parametrize("weight", [0, 1])
def test_earlier_answer_is_read_by_the_tokens_that_it_is_learned_by(
    weight: int, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    joining = with_template(tokenizer, tmp_path, SPACED)
    expected = encode(joining, read(JOINING)).token_ids
    example = read([JOINING[0], {**JOINING[1], "weight": weight}, *JOINING[2:]])
    asked = encode(joining, example, with_target=False).token_ids
    assert asked == expected[: len(asked)]
    assert encode(joining, example).token_ids == expected
    (joint,) = joining.encode([joining.render_chat(JOINING[:3])])
    assert list(asked) != joint.ids


def test_earlier_answer_that_the_template_would_not_ask_for_is_read_as_it_is_written(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    strict = with_template(tokenizer, tmp_path, NEEDING + SPACED)
    greeted = [{**JOINING[1], "weight": 0}, TURNS[3], TURNS[4]]
    (joint,) = strict.encode([strict.render_chat(greeted[:2])])
    asked = encode(strict, read(greeted), with_target=False).token_ids
    assert list(asked) == joint.ids
    assert encode(strict, read(greeted)).token_ids[: len(asked)] == asked


def test_oldest_turns_are_left_out_of_a_long_conversation_and_the_system_stays(
    tokenizer: Tokenizer,
) -> None:
    whole = encode(tokenizer, read())
    short = encode(tokenizer, read([TURNS[0], *TURNS[3:]]))
    limit = LengthLimit(len(short.token_ids), "truncate")
    cut = encode(tokenizer, read(), limit=limit)
    assert cut.token_ids == short.token_ids
    assert learned(tokenizer, cut) == learned(tokenizer, short)
    assert cut.num_cut_tokens == len(whole.token_ids) - len(short.token_ids)
    with pytest.raises(DataError, match=r"a\.jsonl, row 7: .* tokens, but at most 12 fit"):
        encode(tokenizer, read(), limit=LengthLimit(12))
    with pytest.raises(DataError, match="The last turn is too long by itself"):
        encode(tokenizer, read(), limit=LengthLimit(8, "truncate"))


def test_conversation_that_is_too_long_is_refused_with_what_would_help(
    tokenizer: Tokenizer,
) -> None:
    num_tokens = len(encode(tokenizer, read()).token_ids)
    most = len(encode(tokenizer, read([TURNS[0], *TURNS[3:]])).token_ids)
    told = (
        rf"row 7: the conversation has {num_tokens} tokens, but at most {most} fit\. "
        r"Choose `--set data\.over_length=truncate`, which leaves out its oldest part"
    )
    with pytest.raises(DataError, match=told):
        encode(tokenizer, read(), limit=LengthLimit(most))
    with pytest.raises(DataError, match=r"at most 8 fit\. The last turn is too long by itself"):
        encode(tokenizer, read(), limit=LengthLimit(8))


def test_conversation_is_cut_before_a_turn_that_asks(tokenizer: Tokenizer, tmp_path: Path) -> None:
    marked = with_template(tokenizer, tmp_path, MARKED)
    called = [
        {**TURNS[1], "content": "the fox " * 30},
        {"role": "assistant", "content": "soup " * 30},
        {"role": "tool", "content": "fox " * 5},
        TURNS[2],
    ]
    last = read(TURNS[3:])
    expected = encode(marked, last)
    limit = LengthLimit(len(expected.token_ids) + 12, "truncate")
    assert encode(marked, read([*called, *TURNS[3:]]), limit=limit).token_ids == expected.token_ids
    asked = encode(marked, read([*called, *TURNS[3:]]), limit=limit, with_target=False)
    assert asked.token_ids == encode(marked, last, with_target=False).token_ids
    with pytest.raises(DataError, match="The last turn is too long by itself"):
        encode(marked, read([*called, *TURNS[3:]]), limit=LengthLimit(12, "truncate"))


def test_tools_that_the_template_does_not_write_are_refused(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    calling = [TURNS[1], {"role": "assistant", "content": None, "tool_calls": CALLS}, *TURNS[3:]]
    silent = with_template(tokenizer, tmp_path / "silent", MARKED)
    for values, name in (
        ({"tools": TOOLS}, "column `tools`"),
        ({"messages": calling}, "`tool_calls`"),
        ({"messages": CALLING}, "`tool_calls`"),
        ({"messages": CALLING, "tools": TOOLS}, "column `tools`"),
    ):
        with pytest.raises(DataError, match=rf"a\.jsonl, row 7: .*{name}.*chat template"):
            encode(silent, read(**values))
    other = with_template(tokenizer, tmp_path / "knowing", KNOWING)
    told = encode(other, read(calling, tools=TOOLS), limit=LengthLimit(4096))
    assert "find_fox" in other._raw.decode(list(told.token_ids))


def test_turn_that_calls_is_no_empty_one_to_a_template_that_counts_turns(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    answered = [*CALLING, {"role": "tool", "content": "Here."}, TURNS[-1]]
    counting = with_template(tokenizer, tmp_path / "counting", ALTERNATING + KNOWING)
    told = encode(counting, read(answered, tools=TOOLS), limit=LengthLimit(4096))
    assert "find_fox" in learned(counting, told)
    silent = with_template(tokenizer, tmp_path / "silent", ALTERNATING + MARKED)
    with pytest.raises(DataError, match=r"row 7: `tool_calls` of a message would be lost"):
        encode(silent, read(answered))
    needing = "{% if not tools %}{{ raise_exception('no tools') }}{% endif %}" + KNOWING
    needs = with_template(tokenizer, tmp_path / "needs", needing)
    told = encode(needs, read(TURNS[1:3], tools=TOOLS), limit=LengthLimit(4096))
    assert "find_fox" in needs.decode(told.token_ids)


def test_message_that_speaks_for_somebody_else_is_refused(tokenizer: Tokenizer) -> None:
    stop = tokenizer._token(tokenizer.stop_id)
    liar = [{"role": "user", "content": f"Hi {stop}"}, TURNS[-1]]
    with pytest.raises(DataError, match=r"a\.jsonl, row 7: a message holds"):
        encode(tokenizer, read(liar))


def test_template_that_changes_earlier_turns_is_refused(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    template = "{% for m in messages %}{{ m.content if loop.last else '...' }}|{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(ModelError, match="writes a turn in another way once others follow"):
        encode(Tokenizer.load(tmp_path), read())
