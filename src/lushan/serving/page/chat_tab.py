"""The tab in which people talk to a model, or to two side by side."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple, Self, cast

import anyio.to_thread
import gradio as gr

from lushan.errors import LushanError
from lushan.inference.generation_settings import GenerationSettings
from lushan.records import Row
from lushan.serving.hosted import HostedModel
from lushan.serving.page import drawing
from lushan.serving.page.choosing import Triggers, among
from lushan.serving.page.studio import Studio
from lushan.serving.page.texts import Texts
from lushan.serving.prompts import make_settings
from lushan.serving.schemas import Sampled

Turn = dict[str, str]
"""`role` and `content`, as chat templates take them."""

MOST_TEMPERATURE = 1.5
MOST_PIXELS = 420
"""Height of a conversation; a longer one scrolls."""


class Chat(NamedTuple):
    """What a model is asked."""

    turns: Sequence[Turn]
    """The conversation, the user's message last."""
    system: str
    """What the model is told first; may be empty."""
    temperature: float
    """0 always takes the likeliest token."""


def build(opened: Triggers, studio: Studio, texts: Texts) -> None:
    """Put the tab together; `opened` tells that a visitor comes to it."""
    with gr.Row():
        models = [
            gr.Dropdown(label=texts(key), interactive=True) for key in ("model", "chat.other")
        ]
    with gr.Row(equal_height=True):
        sides = [_Side.build(texts, is_visible=is_visible) for is_visible in (True, False)]
    message = gr.Textbox(
        "", label=texts("chat.message"), placeholder=texts("chat.placeholder"), max_lines=8
    )
    with gr.Row():
        send = gr.Button(texts("chat.send"), variant="primary")
        stop = gr.Button(texts("chat.stop"), variant="stop")
        clear = gr.Button(texts("chat.clear"))
    with gr.Accordion(texts("chat.settings"), open=False):
        system = gr.Textbox("", label=texts("chat.system"), lines=2)
        temperature = gr.Slider(
            0, MOST_TEMPERATURE, value=0.7, step=0.1, label=texts("chat.temperature")
        )
    talk = _Talk(studio, texts)
    asked_by = [message, *(side.turns for side in sides)]
    changed = [*asked_by, *(side.shown for side in sides)]

    gr.on(opened, talk.list_models, inputs=models, outputs=models, show_progress="hidden")
    models[1].change(talk.begin_other, inputs=models[1], outputs=list(sides[1]))
    asked = gr.on(
        [send.click, message.submit],
        talk.add,
        inputs=asked_by,
        outputs=changed,
        show_progress="hidden",
    )
    answered = [
        asked.then(
            talk.answer,
            inputs=[model, side.turns, system, temperature],
            outputs=list(side),
            show_progress="hidden",
        )
        for model, side in zip(models, sides, strict=True)
    ]
    stop.click(None, cancels=cast("Any", answered))
    clear.click(talk.clear, outputs=changed, cancels=cast("Any", answered))


class _Side(NamedTuple):
    """One of two conversations."""

    turns: gr.State
    shown: gr.HTML

    @classmethod
    def build(cls, texts: Texts, *, is_visible: bool) -> Self:
        # Not gradio's own chat: it draws tags and Markdown of what a model writes, pictures from anywhere included.
        shown = gr.HTML(
            drawing.chat([], texts),
            autoscroll=True,
            max_height=MOST_PIXELS,
            visible=is_visible,
        )
        return cls(gr.State([]), shown)


class _Talk(NamedTuple):
    """What happens in the tab."""

    studio: Studio
    texts: Texts

    def list_models(self, *current: str | None) -> list[Any]:
        choices = self.studio.choices(self.texts, lambda each: each.reads_conversations)
        none = (self.texts("none") if choices else self.texts("chat.none"), "")
        return [among(choices or [none], current[0]), among([none, *choices], current[1])]

    def begin_other(self, name: str) -> list[Any]:
        return [[], gr.update(visible=bool(name), value=drawing.chat([], self.texts))]

    def clear(self) -> list[Any]:
        return ["", [], [], *[drawing.chat([], self.texts)] * 2]

    def add(self, text: str, *said: list[Turn]) -> list[Any]:
        """Put a message into both conversations, in the place of one that nobody answered: they take turns."""
        conversations: Sequence[list[Turn]] = said
        if text.strip():
            asked = {"role": "user", "content": text}
            conversations = [[*_answered(each), asked] for each in said]
        return ["", *conversations, *(drawing.chat(each, self.texts) for each in conversations)]

    async def answer(
        self, name: str, said: list[Turn], system: str, temperature: float
    ) -> AsyncIterator[list[Any]]:
        """Write what comes next in a conversation, if it is a model's turn."""
        if not name or not said or said[-1]["role"] != "user":
            yield [gr.skip(), gr.skip()]
            return
        written, turns = "", said
        try:
            chat = Chat(said, system, temperature)
            async with aclosing(reply(self.studio, name, chat)) as pieces:
                async for piece in pieces:
                    written += piece
                    turns = [*said, {"role": "assistant", "content": written}]
                    yield [turns, drawing.chat(turns, self.texts)]
        except LushanError as error:
            # A message that nobody answered leaves: a conversation takes turns.
            kept = turns if written else said[:-1]
            problem = drawing.problem(error, self.texts)
            yield [kept, drawing.chat(turns, self.texts) + problem]


async def reply(studio: Studio, name: str, chat: Chat) -> AsyncGenerator[str]:
    """Write an answer piece by piece.

    Raises:
        UserError: If the conversation cannot be answered, or the answer not be finished.
    """
    asked = await anyio.to_thread.run_sync(_asked, studio.model(name), chat)
    async with aclosing(studio.worker.generate(*asked)) as events:
        async for event in events:
            yield event.text


def _asked(
    hosted: HostedModel, chat: Chat
) -> tuple[HostedModel, Sequence[int], GenerationSettings]:
    predictor = hosted.predictor
    told = [{"role": "system", "content": chat.system.strip()}] if chat.system.strip() else []
    row = Row({"messages": [*told, *chat.turns]}, "chat", 1)
    prompt = predictor.encode([predictor.task.read(row, needs_target=False)])[0]
    settings = make_settings(
        predictor,
        Sampled(model=hosted.name, temperature=float(chat.temperature)),
        most_tokens=predictor.generation.max_new_tokens,
        stop_strings=predictor.state.stop_strings,
    )
    return hosted, prompt.token_ids, settings


def _answered(said: list[Turn]) -> list[Turn]:
    return said[:-1] if said and said[-1]["role"] == "user" else said
