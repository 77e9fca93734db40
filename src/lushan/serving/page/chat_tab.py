"""The tab in which people talk to a model, or to two side by side."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, NamedTuple, Self, cast

import anyio.to_thread
import gradio as gr

from lushan.errors import LushanError
from lushan.inference.generation_settings import GenerationSettings
from lushan.records import Row
from lushan.serving.hosted import HostedModel
from lushan.serving.page import drawing
from lushan.serving.page.choosing import Triggers, among
from lushan.serving.page.merging import merged
from lushan.serving.page.studio import Studio
from lushan.serving.page.texts import Texts
from lushan.serving.prompts import make_settings, told_by_client
from lushan.serving.request_bodies import Sampled

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


class Question(NamedTuple):
    """The same, as the model reads it."""

    hosted: HostedModel
    token_ids: Sequence[int]
    settings: GenerationSettings
    num_cut_tokens: int
    """Of the oldest turns, which were left out."""


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
    said = [side.turns for side in sides]
    changed = [message, *said, *(side.shown for side in sides)]

    gr.on(opened, talk.list_models, inputs=models, outputs=models, show_progress="hidden")
    models[1].change(talk.begin_other, inputs=models[1], outputs=list(sides[1]))
    # While it goes on gradio does not begin it anew: the next message stays in its box.
    sent = gr.on(
        [send.click, message.submit],
        talk.send,
        inputs=[message, system, temperature, *models, *said],
        outputs=changed,
        trigger_mode="once",
        show_progress="hidden",
    )
    stop.click(None, cancels=cast("Any", sent))
    clear.click(talk.clear, outputs=changed, cancels=cast("Any", sent))


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
        choices = self._models()
        none = (self.texts("none") if choices else self.texts("chat.none"), "")
        return [among(choices or [none], current[0]), among([none, *choices], current[1])]

    def _models(self) -> list[tuple[str, str]]:
        return self.studio.choices(self.texts, lambda each: each.reads_conversations)

    def begin_other(self, name: str) -> list[Any]:
        return [[], gr.update(visible=bool(name), value=drawing.chat([], self.texts))]

    def clear(self) -> list[Any]:
        return ["", [], [], *[drawing.chat([], self.texts)] * 2]

    async def send(
        self,
        text: str,
        system: str,
        temperature: float,
        *sides: *tuple[str | None, str | None, list[Turn], list[Turn]],
    ) -> AsyncGenerator[list[Any]]:
        """Put a message into both conversations, and have both models answer at once.

        Args:
            text: The message; where it is empty, those that nobody answered are asked again.
            system: As in `Chat`.
            temperature: As in `Chat`.
            sides: The names of the models, None while they are not listed yet, and what was said so far.
        """
        first, other, *said = sides
        first = first or next((name for _, name in self._models()), "")
        added = self.add(text, *said)
        yield added
        answers = [
            self.answer(name, turns, system, temperature)
            for name, turns in zip((first, other), added[1:3], strict=True)
        ]
        async with aclosing(merged(answers)) as steps:
            async for place, (turns, shown) in steps:
                changes = {1 + place: turns, 3 + place: shown}
                yield [changes.get(output, gr.skip()) for output in range(len(added))]

    def add(self, text: str, *said: list[Turn]) -> list[Any]:
        """Put a message into both conversations, in the place of one that nobody answered: they take turns."""
        conversations: Sequence[list[Turn]] = said
        if text.strip():
            asked = {"role": "user", "content": text}
            conversations = [[*_answered(each), asked] for each in said]
        return ["", *conversations, *(drawing.chat(each, self.texts) for each in conversations)]

    async def answer(
        self, name: str | None, said: list[Turn], system: str, temperature: float
    ) -> AsyncGenerator[list[Any]]:
        """Write what comes next in a conversation, if it is a model's turn."""
        if not name or not said or said[-1]["role"] != "user":
            yield [gr.skip(), gr.skip()]
            return
        # A message that nobody answered leaves: a conversation takes turns.
        kept, turns = said[:-1], said
        notes, end = "", drawing.note(self.texts("chat.silent"), self.texts)
        try:
            chat = Chat(said, system, temperature)
            question = await anyio.to_thread.run_sync(_asked, self.studio.model(name), chat)
            notes = _note_of_cut(question, self.texts)
            async with aclosing(reply(self.studio, question)) as steps:
                async for written in steps:
                    # Base models begin with a space; in the next prompt the template writes it.
                    kept = turns = [*said, {"role": "assistant", "content": written.strip()}]
                    end = ""
                    yield [kept, drawing.chat(turns, self.texts) + notes]
        except LushanError as error:
            end = drawing.problem(error, self.texts)
        if end:
            yield [kept, drawing.chat(turns, self.texts) + notes + end]


async def reply(studio: Studio, question: Question) -> AsyncGenerator[str]:
    """Write an answer; gives what is written so far, from the first piece on that says something.

    Raises:
        UserError: If the answer cannot be finished.
    """
    written = ""
    events = studio.worker.generate(question.hosted, question.token_ids, question.settings)
    async with aclosing(events):
        async for event in events:
            written += event.text
            if written.strip():
                yield written


def _asked(hosted: HostedModel, chat: Chat) -> Question:
    system = chat.system.strip()
    told: list[Turn] = [{"role": "system", "content": system}] if system else []
    row = Row({"messages": [*told, *chat.turns]}, "chat", 1)
    example = hosted.predictor.task.read(row, needs_target=False)
    # A conversation only grows: where one that is too long were refused, nobody could go on with it.
    limit = replace(hosted.predictor.limit, policy="truncate")
    predictor = told_by_client(replace(hosted.predictor, limit=limit), example)
    prompt = predictor.encode([example])[0]
    settings = make_settings(
        predictor,
        Sampled(model=hosted.name, temperature=float(chat.temperature)),
        most_tokens=predictor.generation.max_new_tokens,
        stop_strings=predictor.state.stop_strings,
    )
    return Question(hosted, prompt.token_ids, settings, prompt.num_cut_tokens)


def _note_of_cut(question: Question, texts: Texts) -> str:
    """Tell that the model does not read the whole conversation; nothing where it does."""
    if not question.num_cut_tokens:
        return ""
    most = question.hosted.predictor.asked_limit.max_tokens
    return drawing.note(texts("chat.cut", count=f"{most:,}"), texts)


def _answered(said: list[Turn]) -> list[Turn]:
    return said[:-1] if said and said[-1]["role"] == "user" else said
