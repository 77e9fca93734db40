"""The tables, as the newest migration leaves them. Whoever changes one writes a migration beside it."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    CheckConstraint,
    DateTime,
    Dialect,
    Index,
    MetaData,
    String,
    Text,
    TypeDecorator,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMES = {
    "pk": "pk_%(table_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
}
"""How constraints are called, so that a later migration can name them."""


class UtcTime(TypeDecorator[datetime]):
    """A time in UTC; goes in with a time zone and comes out with UTC, which SQLite does not keep."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the time as it is stored: in UTC, without a zone."""
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the time as it is used: with its zone."""
        return None if value is None else value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """What all tables share."""

    metadata = MetaData(naming_convention=NAMES)


class FeedbackRow(Base):
    """What a person said of one answer of a model."""

    __tablename__ = "feedback"
    __table_args__ = (
        CheckConstraint("rating IN ('good', 'bad')", name="rating"),
        Index("ix_feedback_model_number", "model", "number"),
        Index("ix_feedback_input_digest_number", "input_digest", "number"),
        {"sqlite_autoincrement": True},
    )

    number: Mapped[int] = mapped_column(primary_key=True)
    """Order of arrival; never used twice."""
    id: Mapped[str] = mapped_column(String(200), unique=True)
    """Given by the client, so that sending again stores nothing twice; else made up."""
    request_id: Mapped[str | None] = mapped_column(String(200))
    model: Mapped[str] = mapped_column(String(200))
    model_version: Mapped[str] = mapped_column(String(200))
    task: Mapped[str] = mapped_column(String(50))
    input: Mapped[Any] = mapped_column(JSON(none_as_null=True), nullable=False)
    input_digest: Mapped[str] = mapped_column(String(16))
    """Hash of the input: of several corrections of one input the last counts."""
    prediction: Mapped[Any] = mapped_column(JSON(none_as_null=True), nullable=True)
    rating: Mapped[str | None] = mapped_column(String(4))
    correction: Mapped[Any] = mapped_column(JSON(none_as_null=True), nullable=True)
    comment: Mapped[str] = mapped_column(Text)
    source: Mapped[str] = mapped_column(String(50))
    created_at: Mapped[datetime] = mapped_column(UtcTime)


class ApiKeyRow(Base):
    """One API key; what it was made from is not stored."""

    __tablename__ = "api_keys"
    __table_args__ = (Index("ix_api_keys_name", "name"),)

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    """The part of a key that is no secret; finds its row."""
    name: Mapped[str] = mapped_column(String(64))
    """Given by the user; a key and the one that replaces it share it."""
    salt: Mapped[str] = mapped_column(String(32))
    digest: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[str] = mapped_column(String(200))
    """What it may do, with commas between."""
    requests_per_minute: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcTime)
