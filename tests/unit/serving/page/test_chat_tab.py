"""A conversation goes on with what the model writes, and a conversation that is left stops it."""

import asyncio
from contextlib import aclosing

from lushan.inference.generate import generate
from lushan.records import Row
from lushan.serving.hosted import HostedModel
from lushan.serving.page.chat_tab import Chat, reply
from lushan.serving.page.studio import Studio
from tests.unit.serving.page.conftest import MakeStudio

TURNS = [{"role": "user", "content": "The children ran"}]


async def whole_reply(studio: Studio, name: str, chat: Chat) -> str:
    return "".join([piece async for piece in reply(studio, name, chat)])


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
        async with aclosing(reply(studio, "talker", Chat(TURNS, "", 0))) as pieces:
            await anext(pieces)

    asyncio.run(leave_after_one_piece())
    assert studio.app.state.worker.num_closed == 1


def test_problem_is_told_in_the_conversation(make_studio: MakeStudio, talker: HostedModel) -> None:
    too_long = [{"role": "user", "content": "ran home " * 100}]
    told = asyncio.run(whole_reply(make_studio(talker), "talker", Chat(too_long, "", 0)))
    assert told.startswith("\n[chat, row 1")
