"""API keys as the server speaks of them: what one is for, what is known of it, and what a new one shall be."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, get_args

from lushan.errors import SettingError

Scope = Literal["predict", "chat", "feedback", "admin"]
"""What a key may do: ask models, talk to them, send feedback; `admin` may do all of it, and read what is stored."""
SCOPES: tuple[Scope, ...] = get_args(Scope)
State = Literal["active", "expired", "revoked"]
NAME_FORM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPlan:
    """What a new key shall be called and may do.

    Raises:
        SettingError: If the name, a scope or the lifetime cannot be.
    """

    name: str
    scopes: tuple[Scope, ...]
    lifetime: timedelta | None = None
    """How long it works; None until it is revoked."""
    requests_per_minute: int | None = None
    """Most requests in a minute; None sets no limit."""

    def __post_init__(self) -> None:
        if not NAME_FORM.fullmatch(self.name):
            raise SettingError(
                f"`{self.name}` cannot be a key's name: use letters, digits, `.`, `_` and `-`, at most 64."
            )
        if self.lifetime is not None and self.lifetime <= timedelta(0):
            raise SettingError("A key that expires at once opens nothing. Give it a longer time.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """All that is known of a key, without what would open a door."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    requests_per_minute: int | None
    """Most requests in a minute; None where there is no limit."""
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """To the minute."""

    @property
    def state(self) -> State:
        """Whether the key works now, and if not, why."""
        if self.revoked_at is not None:
            return "revoked"
        is_over = self.expires_at is not None and self.expires_at <= datetime.now(UTC)
        return "expired" if is_over else "active"

    @property
    def lifetime(self) -> timedelta | None:
        """How long it works in all; None where it has no end."""
        return None if self.expires_at is None else self.expires_at - self.created_at

    def allows(self, scope: Scope) -> bool:
        """Whether the key may do this."""
        return scope in self.scopes or "admin" in self.scopes


def parse_scopes(text: str) -> tuple[Scope, ...]:
    """Read scopes with commas between them, such as `predict,chat`.

    Raises:
        SettingError: If one is unknown; lists the known ones.
    """
    named = [each.strip() for each in text.split(",")]
    if unknown := [each for each in named if each not in SCOPES]:
        raise SettingError(f"Unknown scope `{unknown[0]}`. Known: {', '.join(SCOPES)}.")
    return tuple(scope for scope in SCOPES if named.count(scope))
