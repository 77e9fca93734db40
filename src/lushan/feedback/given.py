"""What a person says of one answer, checked: the form in which feedback comes in, is stored, and goes out."""

import json
import reprlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    JsonValue,
    StringConstraints,
    ValidationError,
    model_validator,
)

from lushan.errors import DataError

Rating = Literal["good", "bad"]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Version = Annotated[str, StringConstraints(max_length=200)]


class FeedbackContent(BaseModel):
    """One answer of a model, and what a person says of it: a rating, the right answer, or both."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    model: Name
    """The model that answered."""
    model_version: Version = ""
    """Its version, as its predictions tell it; empty where it is not known."""
    request_id: Name | None = None
    """The request that it answered."""
    input: str | dict[str, JsonValue]
    """What was asked: a text, or a row with the columns of the task."""
    prediction: JsonValue = None
    """What the model answered."""
    rating: Rating | None = None
    """Whether the answer was `good` or `bad`."""
    correction: JsonValue = None
    """The right answer, as the data of the task hold it: a label, a text, a list of entities."""
    comment: Annotated[str, StringConstraints(max_length=10_000)] = ""
    """Anything else, in words."""
    source: Annotated[str, StringConstraints(min_length=1, max_length=50)] = "api"
    """Where it comes from, such as `api` or `page`."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.rating is None and self.correction is None:
            raise ValueError("it needs a `rating` (`good` or `bad`), a `correction`, or both")
        return self

    @model_validator(mode="after")
    def _can_be_written(self) -> Self:
        values = [self.input, self.prediction, self.correction]
        try:
            json.dumps(values, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("it has half a character (a lone surrogate)") from None
        return self


class GivenFeedback(FeedbackContent):
    """Feedback as it comes in."""

    id: Name | None = None
    """Chosen by the sender: feedback that is sent again with its id is stored once. Made up where it is missing."""


class Feedback(FeedbackContent):
    """Feedback as it is stored."""

    id: Name
    """Chosen by the sender, or made up."""
    task: Name
    """What the model does."""
    created_at: AwareDatetime
    """When it was stored, in UTC."""


def check_given(values: Mapping[str, Any]) -> GivenFeedback:
    """Make feedback of plain values.

    Raises:
        DataError: If a value is missing, unknown or wrong.
    """
    try:
        return GivenFeedback.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise DataError(f"Feedback cannot be stored: {reason}.") from None
        raise DataError(
            f"Feedback cannot be stored: `{first['loc'][0]}` is wrong: {reason}. Got {reprlib.repr(first['input'])}."
        ) from None
