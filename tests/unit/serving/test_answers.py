"""Answers while they come: pieces, ends, tokens, usage."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lushan.backbones.tokenizer import Tokenizer
from lushan.inference.draft import TokenEvent
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.predict import Prompted
from lushan.records import ToolForm
from lushan.serving.answers import (
    Answers,
    TokenPlaces,
    chat_choice,
    completion_logprobs,
    token_logprobs,
)
from lushan.serving.hosted import HostedModel
from lushan.serving.prompts import NO_TOKEN, Asked
from lushan.serving.tool_calls import Tools
from tests.tiny import write_byte_fallback_tokenizer

PROMPTED = Prompted((5, 6, 7), GenerationSettings(), None)


def event(text: str, *, prompt: int = 0, answer: int = 0, token_id: int = 9) -> TokenEvent:
    return TokenEvent(prompt, answer, token_id, -0.5, text, None)


async def told(events: Sequence[TokenEvent]) -> AsyncGenerator[TokenEvent, None]:
    for each in events:
        yield each


def collected(asked: Asked, events: Sequence[TokenEvent]) -> tuple[Answers, list[str]]:
    answers = Answers(asked)

    async def pieces() -> list[str]:
        return [each.text async for each in answers.pieces(told(events))]

    return answers, asyncio.run(pieces())


def test_pieces_are_those_of_the_cleaned_text() -> None:
    asked = Asked([PROMPTED], 1, 0, str.strip)
    answers, pieces = collected(asked, [event(x) for x in (" ", " a", " ", "", "b ", " ")])
    assert pieces == ["", "a", "", "", " b", ""]
    assert answers.in_order[0].text == "a b"


def test_list_is_told_once_it_is_whole() -> None:
    asked = Asked([PROMPTED], 1, 0, lambda text: f"[{text}]", is_list=True)
    last = replace(event("b"), ended="stop")
    assert collected(asked, [event("a"), last])[1] == ["", "[ab]"]


def test_last_piece_tells_calls_and_what_was_said_behind_them() -> None:
    form = ToolForm("<call>", "</call>", "name", "arguments")
    tools = Tools(form, frozenset({"light"}), is_forced=False, most_calls=None)
    call = '<call>{"name": "light", "arguments": {}}</call>'
    events = [event(call), replace(event(" It is on."), ended="stop")]
    answers, pieces = collected(Asked([PROMPTED], 1, 0, str, tools), events)
    assert pieces == ["", "It is on."]
    (answer,) = answers.in_order
    assert [each.function.name for each in answer.tool_calls] == ["light"]
    assert answer.finish_reason == "tool_calls"


def test_choices_count_the_answers_to_all_prompts() -> None:
    asked = Asked([PROMPTED, PROMPTED], 2, 0, str)
    events = [event(f"{p}{a}", prompt=p, answer=a) for p in (1, 0) for a in (1, 0)]
    events = [replace(each, num_reused_tokens=1 + each.prompt_index) for each in events]
    answers, _ = collected(asked, events)
    assert [(each.choice, each.text) for each in answers.in_order] == [
        *[(0, "00"), (1, "01")],
        *[(2, "10"), (3, "11")],
    ]
    assert answers.usage.model_dump() == {
        "prompt_tokens": 6,
        "completion_tokens": 4,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 3},
    }


def test_answer_that_was_not_written_has_no_tokens() -> None:
    answers, _ = collected(Asked([PROMPTED], 1, 0, str), [event("sea", token_id=NO_TOKEN)])
    assert answers.usage.completion_tokens == 0


def test_stop_token_is_counted_and_not_shown(chatter: HostedModel) -> None:
    end = TokenEvent(0, 0, 2, -0.1, "", "stop")
    answers, _ = collected(Asked([PROMPTED], 1, 0, str), [event("a"), end])
    tokenizer = chatter.predictor.backbone.tokenizer
    found = chat_choice(answers.in_order[0], tokenizer, with_logprobs=True)
    assert (found.message.content, found.finish_reason) == ("a", "stop")
    assert found.logprobs is not None
    assert len(found.logprobs.content) == 1
    assert answers.usage.completion_tokens == 2


def test_half_a_character_has_no_bytes(chatter: HostedModel) -> None:
    tokenizer = chatter.predictor.backbone.tokenizer
    first_half = tokenizer.encode(["\u00e9"])[0].ids[0]
    whole = tokenizer.encode(["a"])[0].ids[0]
    found = token_logprobs(
        iter([event("", token_id=first_half), event("", token_id=whole)]), tokenizer
    )
    assert [each.bytes for each in found] == [None, [97]]


def test_prompt_counts_once_its_answer_has_begun() -> None:
    asked = Asked([PROMPTED, PROMPTED], 1, 0, str)
    assert Answers(asked).usage.prompt_tokens == 0
    assert collected(asked, [event("a", prompt=1)])[0].usage.prompt_tokens == 3


@pytest.fixture
def byte_fallback(tmp_path: Path) -> Tokenizer:
    write_byte_fallback_tokenizer(tmp_path)
    return Tokenizer.load(tmp_path)


def test_tokens_are_named_by_what_they_add_and_placed_in_the_text(byte_fallback: Tokenizer) -> None:
    prompt_ids = byte_fallback.encode(["a fox"])[0].ids
    ids = byte_fallback.encode(["r\u00e9 \u5c71n"])[0].ids  # begins with a space of its own
    events = [replace(event(""), token_id=each, alternatives=((each, -0.5),)) for each in ids]
    places = TokenPlaces(byte_fallback, prompt_ids)
    found = completion_logprobs(iter(events), byte_fallback, places)
    assert found.tokens == [" ", "r", "\ufffd", "\ufffd", " ", "\u5c71", "n"]
    assert found.text_offset == [0, 1, 2, 2, 3, 4, 5]
    assert found.top_logprobs == [{token: -0.5} for token in found.tokens]
    whole = byte_fallback.decode([*prompt_ids, *ids]).removeprefix("a fox")
    assert [whole[n] for n in found.text_offset] == list(" r\u00e9\u00e9 \u5c71n")
    told = token_logprobs(iter(events), byte_fallback)
    assert [each.token for each in told] == found.tokens
    assert (told[0].bytes, told[2].bytes) == ([32], None)


def test_first_token_has_its_space_only_where_the_text_has_it(byte_fallback: Tokenizer) -> None:
    ids = byte_fallback.encode(["fox"])[0].ids
    places = TokenPlaces(byte_fallback, [])
    assert [places.add(each) for each in ids] == [0, 0, 1, 2]


def test_byte_that_becomes_no_character_has_a_place_of_its_own(byte_fallback: Tokenizer) -> None:
    half, letter = byte_fallback.encode(["\u00e9r"])[0].ids[1:4:2]
    places = TokenPlaces(byte_fallback, byte_fallback.encode(["fox"])[0].ids)
    assert [places.add(each) for each in (half, letter, letter)] == [0, 1, 2]
