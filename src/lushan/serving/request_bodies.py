"""What clients send: the fields of OpenAI's API that are supported, and no others.

A field that is not here is refused, so that nobody believes in a setting that nothing reads; null is taken, as it sets
nothing. Fields that could not change an answer are taken and left alone; their line says so.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    model_validator,
)

MOST_ANSWERS = 16
MOST_INPUTS = 2048
MOST_STOPS = 64
MOST_STOP_CHARACTERS = 1_000
_ONLY_ZERO = Field(default=None, ge=0, le=0)
_ONLY_EMPTY = Field(default=None, max_length=0)

StopText = Annotated[str, Field(max_length=MOST_STOP_CHARACTERS)]
Stop = StopText | Annotated[list[StopText], Field(max_length=MOST_STOPS)]
Prompt = str | list[str] | list[int] | list[list[int]]


class RequestBody(BaseModel):
    """Base of what clients send: nothing unknown, nothing of the wrong type."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, values: Any) -> Any:  # noqa: ANN401 - whatever a client sent
        if not isinstance(values, dict):
            return values
        known = [field.alias or name for name, field in cls.model_fields.items()]
        # Many clients send null for whatever their user left out.
        said = {name: value for name, value in values.items() if name in known or value is not None}
        if unknown := [name for name in said if name not in known]:
            raise ValueError(
                f"`{unknown[0]:.100}` is not supported here. Supported: {', '.join(known)}."
            )
        return said


class StreamOptions(RequestBody):
    """What a stream tells beside the answer."""

    include_usage: bool = False
    """Whether the number of tokens follows at the end."""
    include_obfuscation: bool | None = None
    """Changes nothing here."""


class Sampled(RequestBody):
    """How answers are written. What is left out is as in the run; an untuned model takes the most likely tokens."""

    model: str
    """Name of a model of this server."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of an answer."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """0 takes the most likely tokens; above, tokens are drawn."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Draw from the most likely tokens that make up this probability."""
    top_k: int | None = Field(default=None, ge=1, le=1_000_000)
    """Draw from this many most likely tokens only. Not of OpenAI's API."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Draw from tokens with at least this share of the most likely one's probability. Not of OpenAI's API."""
    repetition_penalty: float | None = Field(default=None, ge=0.1, le=10)
    """Above 1, tokens that were used become less likely. Not of OpenAI's API."""
    n: int | None = Field(default=None, ge=1, le=MOST_ANSWERS)
    """Answers to a prompt; more than one are drawn."""
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    """With the same seed the same answer; without one, each drawn answer is another."""
    stop: Stop | None = None
    """Texts that end an answer; they are cut from it."""
    stream: bool | None = None
    """Whether the answer comes in pieces, as server-sent events."""
    stream_options: StreamOptions | None = None
    """Only with `stream`."""
    frequency_penalty: float | None = _ONLY_ZERO
    """Only 0: there is `repetition_penalty`."""
    presence_penalty: float | None = _ONLY_ZERO
    """Only 0: there is `repetition_penalty`."""
    logit_bias: dict[str, float] | None = _ONLY_EMPTY
    """Only empty."""
    user: str | None = None
    """Changes nothing here."""

    @model_validator(mode="after")
    def _check_together(self) -> "Sampled":
        if self.stream_options and not self.stream:
            raise ValueError("`stream_options` has no effect without `stream`. Remove it.")
        return self


class TextPart(RequestBody):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class FunctionCall(RequestBody):
    """Which tool is called, and with what."""

    name: str
    arguments: str
    """A JSON object, written as a text."""


class ToolCall(RequestBody):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class SentToolCall(ToolCall):
    """A call of a tool that comes back in a conversation."""

    index: int | None = None
    """Changes nothing here: which of an answer's calls it was, as streams tell."""


class Message(RequestBody):
    """What somebody said."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    """`developer` means `system`; a `tool` says what a call gave."""
    content: str | list[TextPart] | None = None
    """May be left out where an assistant calls tools."""
    tool_calls: list[SentToolCall] | None = None
    """Of an assistant: what it called."""
    tool_call_id: str | None = None
    """Of a tool: the `id` of the call that it answers."""
    name: str | None = None
    """Who speaks, or which tool."""
    refusal: None = None
    """Comes back from clients that send an earlier answer of this server, as the three below."""
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content or [])

    @model_validator(mode="after")
    def _check_role(self) -> "Message":
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"`tool_calls` are the assistant's, not those of `{self.role}`.")
        if (self.role == "tool") is (self.tool_call_id is None):
            raise ValueError("`tool_call_id` is needed in messages of a `tool`, and only there.")
        if self.content is None and not self.tool_calls:
            raise ValueError("`content` is missing.")
        return self


class FunctionDefinition(RequestBody):
    """What a tool is for."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON Schema of its arguments; without one, any object."""
    strict: bool | None = None
    """Changes nothing here: a call that is asked for always keeps to the schema."""


class Tool(RequestBody):
    """Something that the model may call."""

    type: Literal["function"]
    function: FunctionDefinition
    _sent: Mapping[str, Any] = PrivateAttr(default_factory=dict[str, Any])

    @model_validator(mode="wrap")
    @classmethod
    def _remember_order(cls, values: Any, read: ModelWrapValidatorHandler[Self]) -> Self:  # noqa: ANN401 - whatever a client sent
        found = read(values)
        found._sent = values if isinstance(values, dict) else {}
        return found

    def as_told(self) -> dict[str, Any]:
        """As chat templates want it: with a schema, which those who ask may leave out; fields in the order of the client.

        A template writes them in that order, and a model may have learned them so.
        """
        told = _ordered_as(self.model_dump(exclude_unset=True), self._sent)
        if not told["function"].get("parameters"):
            told["function"]["parameters"] = {"type": "object", "properties": {}}
        return told


def _ordered_as(told: dict[str, Any], sent: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _ordered_as(told[name], sent[name]) if isinstance(told[name], dict) else told[name]
        for name in sent
        if name in told
    }


class FunctionName(RequestBody):
    """The name of a tool."""

    name: str


class NamedTool(RequestBody):
    """The tool that is to be called."""

    type: Literal["function"]
    function: FunctionName


class JsonSchema(RequestBody):
    """The form of an answer."""

    name: str
    """Changes nothing here."""
    json_schema: dict[str, Any] = Field(alias="schema")
    """The JSON Schema that the answer keeps to."""
    description: str | None = None
    """Changes nothing here."""
    strict: bool | None = None
    """Changes nothing here: an answer always keeps to the schema."""


class TextFormat(RequestBody):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(RequestBody):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(RequestBody):
    """JSON of one form."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class ChatRequest(Sampled):
    """A conversation that the model is to continue."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "reviews", "messages": [{"role": "user", "content": "A great film!"}]}
            ]
        }
    )

    messages: list[Message] = Field(min_length=1)
    """What was said, in order; the last message is the user's, or what a tool gave."""
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """The newer name of `max_tokens`."""
    response_format: ResponseFormat | None = None
    """The form that the answer keeps to."""
    logprobs: bool | None = None
    """Whether to tell the logarithm of each token's probability."""
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    """How many of the most likely tokens to tell at each place; only with `logprobs`."""
    tools: list[Tool] | None = None
    """What the model may call; its chat template must know how to write tools."""
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    """`auto` leaves it to the model; `required`, or the name of a tool, holds the answer to one call, by the schemas of the
    tools; `none` keeps the tools from the model."""
    parallel_tool_calls: bool | None = None
    """False keeps only the first call of an answer."""
    modalities: list[Literal["text"]] | None = None
    """Only text."""
    metadata: dict[str, str] | None = None
    """Changes nothing here."""
    store: Literal[False] | None = None
    """Nothing is stored."""
    service_tier: Literal["auto", "default"] | None = None
    """Changes nothing here."""
    safety_identifier: str | None = None
    """Changes nothing here."""
    prompt_cache_key: str | None = None
    """Changes nothing here."""

    @model_validator(mode="after")
    def _check_chat(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("`top_logprobs` has no effect without `logprobs`. Set it to true.")
        if self.max_tokens and self.max_completion_tokens:
            raise ValueError("Give `max_completion_tokens` or `max_tokens`, not both.")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise ValueError("`tool_choice` has no effect without `tools`. Remove it.")
        has_form = self.response_format is not None and self.response_format.type != "text"
        if has_form and self.tools and self.tool_choice != "none":
            raise ValueError(
                "`response_format` leaves no place for a call: leave out it or `tools`, or set `tool_choice` to `none`."
            )
        return self


class CompletionRequest(Sampled):
    """Texts that the model is to continue as they are, without a template."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "SmolLM2-135M", "prompt": "Once upon a time"}]}
    )

    prompt: Prompt
    """A text, its token ids, or a list of either."""
    logprobs: int | None = Field(default=None, ge=0, le=5)
    """How many of the most likely tokens to tell at each place, beside the one that was taken."""
    echo: Literal[False] | None = None
    """The prompt is not repeated."""


class EmbeddingRequest(RequestBody):
    """Texts of which vectors are wanted."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "SmolLM2-135M", "input": ["the sea", "a hill"]}]}
    )

    model: str
    """Name of a model of this server."""
    input: Prompt
    """A text, its token ids, or a list of either."""
    encoding_format: Literal["float", "base64"] | None = None
    """How vectors are written: as numbers, or as the base64 of little-endian float32."""
    dimensions: int | None = Field(default=None, ge=1)
    """Keep this many of a vector's numbers, and bring it to length 1 again."""
    user: str | None = None
    """Changes nothing here."""
