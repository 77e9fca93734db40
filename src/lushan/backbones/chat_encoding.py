"""From a conversation to token ids, as the model's chat template writes it, and what of it is learned.

What the assistant says begins where it is asked for: no token stands across that place, be the turn one that is learned
or an earlier one that is only read. Of a conversation that is too long the oldest turns are left out.
"""

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from lushan.backbones.encoding import LengthLimit, Window, encode_rendered
from lushan.backbones.tokenizer import Tokenizer
from lushan.errors import DataError, ModelError, TooLongError
from lushan.records import Rendered

Message = Mapping[str, Any]
Range = tuple[int, int]


class Chat(NamedTuple):
    """How the conversations of one row are written."""

    tokenizer: Tokenizer
    tools: Sequence[Any] | None
    place: str

    def write(self, messages: Sequence[Message], *, ask: bool) -> str:
        """Write messages as the chat template does; with `ask`, up to where the assistant begins.

        Raises:
            DataError: If the template refuses them.
        """
        try:
            return self.tokenizer.render_chat(messages, tools=self.tools, add_generation_prompt=ask)
        except ModelError as error:
            raise DataError(f"{self.place}: {error}") from None

    def try_write(self, messages: Sequence[Message], *, ask: bool) -> str | None:
        """Write messages; None where the template refuses them."""
        try:
            return self.write(messages, ask=ask)
        except DataError:
            return None


class EncodedChat(NamedTuple):
    """A conversation as tokens."""

    token_ids: tuple[int, ...]
    positions: tuple[int, ...] | None
    """Tokens whose next token is supervised; None where nothing is learned."""
    num_cut_tokens: int
    """Tokens that were left out."""


def encode_chat(
    chat: Chat, messages: Sequence[Message], *, with_target: bool, limit: LengthLimit
) -> EncodedChat:
    """Tokenise a conversation; under `truncate` the oldest turns are left out until it fits, the system's never.

    Args:
        chat: How it is written.
        messages: The conversation; its last message is the answer that is learned, or what is to be answered.
        with_target: Whether it is learned from, or continued.
        limit: How long it may be.

    Raises:
        TooLongError: If it is too long under `error`, or its last turn is by itself.
        DataError: If it holds what would be lost or could speak for somebody else.
        ModelError: If the template writes a turn that is learned anew when a later one comes.
    """
    _refuse_special_tokens(chat, messages)
    refuse_unwritten_tools(chat, messages)
    num_system = 1 if messages[0]["role"] == "system" else 0
    num_tokens = 0
    # A conversation that begins with an answer, or with what a tool says, is one that templates refuse or write anew.
    questions = [n for n, each in enumerate(messages) if each["role"] == "user" and n > num_system]
    for first in (num_system, *questions):
        kept = [*messages[:num_system], *messages[first:]]
        rendered, spans = _rendered(chat, kept, num_system=num_system, with_target=with_target)
        try:
            ((window,),) = encode_rendered(
                [rendered],
                chat.tokenizer,
                limit=replace(limit, policy="truncate"),
                places=[chat.place],
            )
        except DataError:
            if first == (questions or [num_system])[-1]:
                raise
            num_tokens = num_tokens or len(chat.tokenizer.encode([rendered.text])[0].ids)
            continue
        num_tokens = num_tokens or len(window.token_ids) + window.num_cut_tokens
        if limit.policy == "error" and num_tokens > limit.max_tokens:
            raise TooLongError(
                f"{chat.place}: the conversation has {num_tokens} tokens, but at most {limit.max_tokens} fit. Choose "
                "`--set data.over_length=truncate`, which leaves out its oldest part, or raise `model.max_length`.",
                chat.place,
                num_tokens,
            )
        positions = _positions(window, spans) if with_target else None
        return EncodedChat(window.token_ids, positions, num_tokens - len(window.token_ids))
    raise AssertionError("a conversation has messages")


def refuse_unwritten_tools(chat: Chat, messages: Sequence[Message]) -> None:
    """Many templates know no tools, and would leave them out in silence.

    Raises:
        DataError: If a conversation has tools or calls that its template does not write.
    """
    given = {
        "column `tools`": bool(chat.tools),
        "`tool_calls` of a message": any("tool_calls" in each for each in messages),
    }
    if not any(given.values()):
        return
    whole = chat.write(messages, ask=False)
    # Without its calls a turn would be an empty one, which some templates count in another way.
    other_calls = [
        {**each, "tool_calls": [_renamed(call) for call in each["tool_calls"]]}
        if "tool_calls" in each
        else each
        for each in messages
    ]
    others = {
        "column `tools`": chat._replace(tools=None).try_write(messages, ask=False),
        "`tool_calls` of a message": chat.try_write(other_calls, ask=False),
    }
    for name, is_given in given.items():
        if is_given and others[name] == whole:
            raise DataError(
                f"{chat.place}: {name} would be lost: this model's chat template does not write tools. Take them out, "
                "or take a model whose template does."
            )


def _renamed(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "name": f"{function['name']}_"}}


def _refuse_special_tokens(chat: Chat, messages: Sequence[Message]) -> None:
    """A text that holds `<|im_end|>` or its like could speak for somebody else."""
    told = [json.dumps(list(chat.tools or ()), ensure_ascii=False)]
    for each in messages:
        others = {name: value for name, value in each.items() if name != "content"}
        told += [each["content"], json.dumps(others, ensure_ascii=False)]
    for text in told:
        if found := chat.tokenizer.special_names.search(text):
            raise DataError(
                f"{chat.place}: a message holds `{found[0]}`, which this model takes for a mark of its own. Take it out."
            )


def _rendered(
    chat: Chat, messages: Sequence[Message], *, num_system: int, with_target: bool
) -> tuple[Rendered, list[Range]]:
    """Give the written conversation, and the characters of it that are supervised."""
    text = chat.write(messages, ask=not with_target)
    starts, spans = _turns(chat, messages, text, with_target=with_target)
    text = text[: spans[-1][1]] if spans else text
    contents = _content_ranges(text, messages)
    rendered = Rendered(
        text,
        asked_at=tuple(starts),
        # What an assistant says is learned, and begins where it begins.
        cuttable=contents[num_system] if messages[num_system]["role"] == "user" else (0, 0),
        given=tuple(contents[:-1] if with_target else contents),
        cuts_start=True,
        uncut="The last turn",
    )
    return rendered, spans


def _content_ranges(text: str, messages: Sequence[Message]) -> list[Range]:
    """Where each message stands; nowhere, (0, 0), from the first on that the template changed."""
    ranges: list[Range] = []
    end = 0
    for message in messages:
        content = message["content"].strip()
        start = text.find(content, end)
        if start < 0:
            break
        end = start + len(content)
        ranges.append((start, end))
    return ranges + [(0, 0)] * (len(messages) - len(ranges))


def _turns(
    chat: Chat, messages: Sequence[Message], text: str, *, with_target: bool
) -> tuple[list[int], list[Range]]:
    """Find where the assistant begins to speak, and what of it is learned, with what ends its turn; turns of weight 0 are not.

    Raises:
        ModelError: If the template writes a turn that is learned anew when a later one comes.
    """
    starts: list[int] = []
    spans: list[Range] = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        earlier = messages[:number]
        if with_target and message.get("weight", 1):
            before = chat.write(earlier, ask=True)
            spans.append((len(before), _end(chat, messages[: number + 1], text, before)))
            starts.append(len(before))
        elif (asked := chat.try_write(earlier, ask=True)) and text.startswith(asked):
            starts.append(len(asked))
    return starts, spans


def _end(chat: Chat, messages: Sequence[Message], text: str, before: str) -> int:
    """Find where a turn that is learned ends in the whole conversation; `before` is what is written before it."""
    until = chat.write(messages, ask=False)
    if not (until.startswith(before) and text.startswith(until.rstrip())):
        raise ModelError(
            f"{chat.place}: this model's chat template writes a turn in another way once others follow, so that "
            "not every turn can be learned as it is asked. Give the earlier turns of the assistant `weight` 0."
        )
    return len(until.rstrip())


def _positions(window: Window, spans: Sequence[Range]) -> tuple[int, ...]:
    """Tokens whose next token is supervised."""
    starts = [start for start, _ in spans]
    found: list[int] = []
    for index, (start, end) in enumerate(window.offsets):
        place = bisect_right(starts, end - 1) - 1
        if index and end > start and place >= 0 and start < spans[place][1]:
            found.append(index - 1)
    return tuple(found)
