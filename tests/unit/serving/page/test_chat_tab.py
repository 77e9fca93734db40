"""A conversation goes on with what the model writes, and a conversation that is left stops it."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import gradio as gr
import pytest

from lushan.backbones.encoding import LengthLimit, LengthPolicy
from lushan.inference.draft import TokenEvent
from lushan.inference.generate import generate
from lushan.inference.generation_settings import GenerationSettings, check_settings
from lushan.records import Row, TaskState
from lushan.serving.errors import DeadlineError
from lushan.serving.hosted import HostedModel
from lushan.serving.page.chat_tab import Chat, Turn, _asked, _Talk, build, reply
from lushan.serving.page.studio import Studio
from lushan.serving.page.texts import Texts
from tests.unit.serving.page.conftest import MakeStudio

TURNS: list[Turn] = [{"role": "user", "content": "The children ran"}]


async def whole_reply(studio: Studio, name: str, chat: Chat) -> str:
    question = _asked(studio.model(name), chat)
    return [written async for written in reply(studio, question)][-1]


def test_reply_is_what_the_model_writes_to_the_whole_conversation(
    make_studio: MakeStudio, talker: HostedModel
) -> None:
    written = asyncio.run(
        whole_reply(make_studio(talker), "talker", Chat(TURNS, "Be brief.", temperature=0))
    )
    predictor = talker.predictor
    messages = [{"role": "system", "content": "Be brief."}, *TURNS]
    example = predictor.task.read(Row({"messages": messages}, "", 1), needs_target=False)
    prompt = predictor.encode([example])[0].token_ids
    assert written == generate(predictor.backbone, [prompt], predictor.generation)[0].text
    assert written


def test_leaving_a_reply_closes_the_request(make_studio: MakeStudio, talker: HostedModel) -> None:
    studio = make_studio(talker)

    async def leave_after_one_piece() -> None:
        async with aclosing(reply(studio, _asked(talker, Chat(TURNS, "", 0)))) as pieces:
            await anext(pieces)

    asyncio.run(leave_after_one_piece())
    assert studio.app.state.worker.num_closed == 1


def with_predictor(model: HostedModel, **changes: object) -> HostedModel:
    return replace(model, predictor=replace(model.predictor, **changes))


def test_text_that_the_model_learned_to_stop_at_ends_a_reply(
    make_studio: MakeStudio, talker: HostedModel
) -> None:
    asked = Chat(TURNS, "", temperature=0)
    whole = asyncio.run(whole_reply(make_studio(talker), "talker", asked))
    stop = whole[-1]
    model = with_predictor(talker, state=TaskState(stop_strings=(stop,)))
    found = asyncio.run(whole_reply(make_studio(model), "talker", asked))
    assert found == whole[: whole.index(stop)]


@pytest.mark.parametrize(
    ("own", "temperature"),
    [
        (GenerationSettings(max_new_tokens=8, num_beams=2), 0.7),
        (GenerationSettings(max_new_tokens=8, temperature=0.7, top_p=0.9, top_k=5), 0),
    ],
)
def test_temperature_of_the_page_takes_the_place_of_how_a_run_was_measured(
    own: GenerationSettings, temperature: float, talker: HostedModel
) -> None:
    model = with_predictor(talker, generation=own)
    settings = _asked(model, Chat(TURNS, "", temperature)).settings
    check_settings(settings)
    assert (settings.temperature, settings.max_new_tokens) == (temperature, 8)


async def all_shown(studio: Studio, said: list[Turn], texts: Texts) -> list[list[Any]]:
    talk = _Talk(studio, texts)
    return [shown async for shown in talk.answer("talker", said, "", 0)]


async def last_shown(studio: Studio, said: list[Turn], texts: Texts) -> list[Any]:
    return (await all_shown(studio, said, texts))[-1]


def test_problem_is_shown_and_its_message_leaves_the_conversation(
    make_studio: MakeStudio, talker: HostedModel, english: Texts
) -> None:
    before = [*TURNS, {"role": "assistant", "content": "home."}]
    said = [*before, {"role": "user", "content": "ran home <eos>"}]
    turns, shown = asyncio.run(last_shown(make_studio(talker), said, english))
    assert turns == before
    assert "ran home" in shown.partition("lushan-problem")[0]
    assert "chat, row 1" in shown.partition("lushan-problem")[2]


def test_message_that_nobody_answered_gives_way_to_the_next(
    make_studio: MakeStudio, talker: HostedModel, english: Texts
) -> None:
    answered = [*TURNS, {"role": "assistant", "content": "home."}]
    asked = {"role": "user", "content": "Where to?"}
    talk = _Talk(make_studio(talker), english)
    assert talk.add("Where to?", TURNS, answered)[1:3] == [[asked], [*answered, asked]]
    assert talk.add(" ", TURNS, answered)[1:3] == [TURNS, answered]


def test_what_was_written_before_a_problem_stays_without_it(
    make_studio: MakeStudio, talker: HostedModel, english: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def break_off(*_: object) -> AsyncGenerator[TokenEvent]:
        yield TokenEvent(0, 0, 5, 0.0, "They ran", None)
        raise DeadlineError(1)

    studio = make_studio(talker)
    monkeypatch.setattr(studio.worker, "generate", break_off)
    turns, shown = asyncio.run(last_shown(studio, TURNS, english))
    assert turns == [*TURNS, {"role": "assistant", "content": "They ran"}]
    assert "not finished after 1 seconds" in shown


def writes(*texts: str) -> Callable[..., AsyncGenerator[TokenEvent]]:
    """Give what writes these pieces, whatever it is asked."""

    async def generate(*_: object) -> AsyncGenerator[TokenEvent]:
        for text in texts:
            yield TokenEvent(0, 0, 5, 0.0, text, None)

    return generate


@pytest.mark.parametrize("pieces", [(), ("",), ("", " \n")])
def test_model_that_says_nothing_leaves_no_turn(
    pieces: tuple[str, ...], make_studio: MakeStudio, talker: HostedModel, english: Texts
) -> None:
    studio = make_studio(talker)
    studio.app.state.worker.generate = writes(*pieces)
    before = [*TURNS, {"role": "assistant", "content": "home."}]
    ((turns, shown),) = asyncio.run(all_shown(studio, [*before, *TURNS], english))
    assert turns == before
    assert "The model said nothing." in shown


async def sent(studio: Studio, names: tuple[str | None, str | None], texts: Texts) -> list[Any]:
    steps = _Talk(studio, texts).send("The children ran", "", 0, *names, [], [])
    return [each async for each in steps]


def last_answer(steps: list[Any], *, place: int) -> Turn:
    return [each[place] for each in steps if isinstance(each[place], list)][-1][-1]


def test_message_that_is_written_meanwhile_stays_in_its_box(
    make_studio: MakeStudio, talker: HostedModel, english: Texts
) -> None:
    steps = asyncio.run(sent(make_studio(talker), ("talker", ""), english))
    assert [each[0] for each in steps] == ["", *[gr.skip()] * (len(steps) - 1)]
    assert steps[0][1:3] == [TURNS, TURNS]
    assert last_answer(steps, place=1)["role"] == "assistant"
    assert last_answer(steps, place=2) == TURNS[-1]  # nobody answers there


def test_nothing_is_sent_while_an_answer_is_written(
    make_studio: MakeStudio, english: Texts
) -> None:
    async def built() -> gr.Blocks:  # where no event loop runs, gradio makes some of its own
        with gr.Blocks() as page:
            build([page.load], make_studio(), english)
        return page

    page = asyncio.run(built())
    (send,) = [each for each in page.fns.values() if each.name == "send"]
    assert send.trigger_mode == "once"
    assert {event for _, event in send.targets} == {"click", "submit"}
    cancelling = [each.targets[0] for each in page.fns.values() if send._id in each.cancels]
    assert len(cancelling) == 2  # "Stop" and "New conversation"


def test_both_models_answer(make_studio: MakeStudio, talker: HostedModel, english: Texts) -> None:
    studio = make_studio(talker, replace(talker, name="other"))
    steps = asyncio.run(sent(studio, ("talker", "other"), english))
    answers = [last_answer(steps, place=place) for place in (1, 2)]
    assert answers[0] == answers[1]
    assert answers[0]["role"] == "assistant"


def test_message_that_is_sent_before_the_models_are_listed_is_answered(
    make_studio: MakeStudio, talker: HostedModel, english: Texts
) -> None:
    steps = asyncio.run(sent(make_studio(talker), (None, None), english))
    assert last_answer(steps, place=1)["role"] == "assistant"


@pytest.mark.parametrize("policy", ["error", "truncate"])
def test_talk_goes_on_without_the_turns_that_a_model_does_not_read_and_says_so(
    policy: LengthPolicy, make_studio: MakeStudio, talker: HostedModel, english: Texts
) -> None:
    num_tokens = len(_asked(talker, Chat(TURNS, "", 0)).token_ids) + 1
    model = with_predictor(talker, limit=LengthLimit(num_tokens, policy))
    note = f"longer than the {num_tokens} tokens that the model reads"
    said = [*TURNS, {"role": "assistant", "content": "home."}, *TURNS]
    studio = make_studio(model)
    turns, shown = asyncio.run(last_shown(studio, said, english))
    assert note in shown
    assert turns[:-1] == said
    assert note not in asyncio.run(last_shown(studio, TURNS, english))[1]


def test_system_prompt_takes_the_place_of_what_a_run_was_tuned_to_be_told(
    talker: HostedModel,
) -> None:
    run = with_predictor(talker, state=TaskState(instruction="Speak like a sailor."))
    found = [_asked(run, Chat(TURNS, system, 0)).token_ids for system in ("", "Be brief.")]
    told = ("Speak like a sailor.", "Be brief.")
    assert found == [_asked(talker, Chat(TURNS, system, 0)).token_ids for system in told]


def test_answer_is_kept_without_the_space_that_base_models_begin_with(
    make_studio: MakeStudio, talker: HostedModel, english: Texts
) -> None:
    studio = make_studio(talker)
    studio.app.state.worker.generate = writes(" They", " ran\n")
    turns, _ = asyncio.run(last_shown(studio, TURNS, english))
    assert turns == [*TURNS, {"role": "assistant", "content": "They ran"}]
