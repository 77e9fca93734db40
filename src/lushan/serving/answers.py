"""What a model has written, as clients are told: whole, or piece by piece."""

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lushan.backbones.tokenizer import Tokenizer
from lushan.inference.draft import TokenEvent
from lushan.inference.text_stream import TextStream
from lushan.serving.answer_bodies import (
    AnswerMessage,
    ChatChoice,
    ChatLogprobs,
    CompletionChoice,
    CompletionLogprobs,
    FinishReason,
    PromptTokensDetails,
    TokenLogprob,
    TopLogprob,
    WrittenUsage,
)
from lushan.serving.prompts import NO_TOKEN, Asked
from lushan.serving.request_bodies import ToolCall

Events = AsyncGenerator[TokenEvent, None]

_BROKEN = "\ufffd"
"""How a part of a character reads."""


class Piece(NamedTuple):
    """What one token adds to an answer."""

    choice: int
    event: TokenEvent
    text: str
    """What is certain now, and was not before."""
    is_first: bool
    finish_reason: FinishReason | None
    tool_calls: Sequence[ToolCall] = ()


@dataclass(slots=True)
class Answer:
    """One answer so far."""

    choice: int
    text: str = ""
    """What clients have been told."""
    written: str = ""
    """What the model wrote, before it was cleaned."""
    events: list[TokenEvent] = field(default_factory=list[TokenEvent])
    finish_reason: FinishReason = "length"
    tool_calls: list[ToolCall] = field(default_factory=list[ToolCall])

    @property
    def tokens(self) -> Iterator[TokenEvent]:
        """Its tokens, without the one that ends it."""
        return (each for each in self.events if each.ended != "stop")


class Answers:
    """All answers to one request, while they come."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._by_choice: dict[int, Answer] = {}

    async def collect(self, events: Events) -> None:
        """Wait for all of them."""
        async with aclosing(self.pieces(events)) as pieces:
            async for _ in pieces:
                pass

    async def pieces(self, events: Events) -> AsyncGenerator[Piece, None]:
        """Give what each token adds."""
        async with aclosing(events):
            async for event in events:
                yield self._add(event)

    def _add(self, event: TokenEvent) -> Piece:
        choice = event.prompt_index * self._asked.num_answers + event.answer_index
        is_first = choice not in self._by_choice
        answer = self._by_choice.setdefault(choice, Answer(choice))
        answer.events.append(event)
        answer.written += event.text
        tools = self._asked.tools
        # Only the whole answer tells what of it is a call, and only a whole list can be told as JSON.
        waits = event.ended is None and (tools is not None or self._asked.is_list)
        cleaned = "" if waits else self._asked.clean(answer.written)
        if tools is not None and not waits:
            cleaned, answer.tool_calls = tools.read(cleaned)
        # Cleaning takes spaces off the ends; what was told stays told.
        added = cleaned[len(answer.text) :] if cleaned.startswith(answer.text) else ""
        answer.text += added
        reason = _reason(event, answer)
        answer.finish_reason = reason or answer.finish_reason
        return Piece(choice, event, added, is_first, reason, answer.tool_calls)

    @property
    def in_order(self) -> list[Answer]:
        """The answers to the first prompt, then those to the next."""
        return [self._by_choice[choice] for choice in sorted(self._by_choice)]

    @property
    def usage(self) -> WrittenUsage:
        """Tokens that were read and written; a prompt counts once its answer has begun."""
        written = sum(
            event.token_id != NO_TOKEN
            for answer in self._by_choice.values()
            for event in answer.events
        )
        reused = {
            event.prompt_index: event.num_reused_tokens
            for answer in self._by_choice.values()
            for event in answer.events[:1]
        }
        read = sum(len(self._asked.prompted[index].prompt_ids) for index in reused)
        return WrittenUsage(
            prompt_tokens=read,
            completion_tokens=written,
            total_tokens=read + written,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(reused.values())),
        )


def _reason(event: TokenEvent, answer: Answer) -> FinishReason | None:
    if event.ended is None:
        return None
    if event.ended == "length":
        return "length"
    return "tool_calls" if answer.tool_calls else "stop"


class TokenPlaces:
    """Where the tokens of one answer begin in its text."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> None:
        self._text = TextStream(tokenizer, prompt_ids)
        self._num_characters = 0

    def add(self, token_id: int) -> int:
        """Give the place of the next token; that of a part of a character is where the character begins."""
        pending = self._text.pending
        new = self._text.push(token_id)
        before = pending if new.startswith(pending) else pending.rstrip(_BROKEN)
        place = self._num_characters + len(before)
        self._num_characters += len(new)
        return place


def chat_choice(answer: Answer, tokenizer: Tokenizer, *, with_logprobs: bool) -> ChatChoice:
    """Write one answer as chat completions do."""
    logprobs = None
    if with_logprobs:
        logprobs = ChatLogprobs(content=token_logprobs(answer.tokens, tokenizer))
    return ChatChoice(
        index=answer.choice,
        message=AnswerMessage(
            content=None if answer.tool_calls and not answer.text else answer.text,
            tool_calls=answer.tool_calls or None,
        ),
        logprobs=logprobs,
        finish_reason=answer.finish_reason,
    )


def completion_choice(
    answer: Answer, tokenizer: Tokenizer, *, places: TokenPlaces | None
) -> CompletionChoice:
    """Write one text as completions do; its log-probabilities with the places of its tokens, or without."""
    return CompletionChoice(
        index=answer.choice,
        text=answer.text,
        logprobs=None if places is None else completion_logprobs(answer.tokens, tokenizer, places),
        finish_reason=answer.finish_reason,
    )


def token_logprobs(events: Iterator[TokenEvent], tokenizer: Tokenizer) -> list[TokenLogprob]:
    """Tell tokens and their probabilities as chat completions do."""
    name = _namer(tokenizer)
    return [
        TokenLogprob(
            **_told(name(each.token_id), each.log_probability),
            top_logprobs=[
                TopLogprob(**_told(name(top), value)) for top, value in each.alternatives
            ],
        )
        for each in events
    ]


def completion_logprobs(
    events: Iterator[TokenEvent], tokenizer: Tokenizer, places: TokenPlaces
) -> CompletionLogprobs:
    """Tell tokens and their probabilities as completions do; `places` goes along with the answer."""
    name = _namer(tokenizer)
    told = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    tops: list[dict[str, float]] = []
    for each in events:
        told.tokens.append(name(each.token_id))
        told.token_logprobs.append(each.log_probability)
        told.text_offset.append(places.add(each.token_id))
        tops.append({name(top): value for top, value in reversed(each.alternatives)})
    told.top_logprobs = tops if any(tops) else None
    return told


def _namer(tokenizer: Tokenizer) -> Callable[[int], str]:
    """Give what calls a token by the text that it adds behind a letter: many tokenizers cut the space off a first token."""
    (anchor,) = tokenizer.encode(["a"])
    num_known = len(tokenizer.decode(anchor.ids))
    return lambda token_id: tokenizer.decode([*anchor.ids, token_id])[num_known:]


def _told(token: str, log_probability: float) -> dict[str, Any]:
    is_broken = _BROKEN in token
    return {
        "token": token,
        "logprob": log_probability,
        "bytes": None if is_broken else list(token.encode()),
    }
