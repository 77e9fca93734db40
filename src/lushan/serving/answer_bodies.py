"""What clients get: the fields of OpenAI's answers."""

from typing import Literal

from pydantic import BaseModel

from lushan.serving.request_bodies import ToolCall


class Usage(BaseModel):
    """Tokens that were read and written."""

    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int


class PromptTokensDetails(BaseModel):
    """What was asked, more closely."""

    cached_tokens: int
    """Tokens that were known from earlier requests, and not read again."""


class WrittenUsage(Usage):
    """Tokens of an answer that was written."""

    prompt_tokens_details: PromptTokensDetails


class TopLogprob(BaseModel):
    """One of the most likely tokens."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of an answer, and the natural logarithm of its probability."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """The tokens of an answer."""

    content: list[TokenLogprob]
    refusal: None = None


class AnswerMessage(BaseModel):
    """What the model said."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    """None where the model calls tools and says nothing."""
    refusal: None = None
    tool_calls: list[ToolCall] | None = None


FinishReason = Literal["stop", "length", "tool_calls"]


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    """Version of the model that answered."""
    choices: list[ChatChoice]
    usage: WrittenUsage
    num_cut_tokens: int = 0
    """Tokens of a text that the model did not read, because it is too long and the run cuts such texts. Not of OpenAI's API."""


class CompletionLogprobs(BaseModel):
    """The tokens of a text that was written."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One text that was written."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason


class Completion(BaseModel):
    """The texts that continue the prompts."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    """Version of the model that answered."""
    choices: list[CompletionChoice]
    usage: WrittenUsage


class Embedding(BaseModel):
    """The vector of one text."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingList(BaseModel):
    """The vectors of all texts, in order."""

    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: Usage


class ModelCard(BaseModel):
    """A model of this server."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["lushan"] = "lushan"
    version: str
    """Digest of its weights and what they mean."""
    task: str
    """What it was tuned for; `dialogue` of an untuned model."""
    tuned: bool
    certified: bool
    """Whether it was shown to answer as when it was tuned."""
    labels: list[str]
    """What it can answer, where that is a closed list."""


class ModelList(BaseModel):
    """The models of this server."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
