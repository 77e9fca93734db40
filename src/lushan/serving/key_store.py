"""The table of API keys: made, shown once, stored as a salted hash, found, replaced, revoked.

A key reads `lushan_<id>_<secret>`. The id finds the row and is no secret. The secret has 256 random bits, which nobody
can guess, so one round of SHA-256 hides it as well as a slow hash would.
"""

import hmac
import secrets
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from lushan.database.connect import Database
from lushan.database.schema import ApiKeyRow
from lushan.errors import ConflictError, SettingError
from lushan.serving.api_key import ApiKey, KeyPlan, parse_scopes

KEY_MARK = "lushan"
USE_STEP = timedelta(minutes=1)
"""How exactly the time of the last use is kept: a write for every request would cost more than many answers."""
_NO_SALT, _NO_DIGEST = "00" * 16, "00" * 32
"""What the secret of an unknown id is compared with, so that the time of an answer tells nothing about ids."""


class MadeKey(NamedTuple):
    """A new key; its text is nowhere else."""

    text: str
    key: ApiKey


class KeyStore:
    """The API keys in a store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, plan: KeyPlan) -> MadeKey:
        """Make a key.

        Raises:
            ConflictError: If an active key has its name.
            StoreError: If the store cannot be written.
        """
        with self._database.writing() as session:
            if _active(session, plan.name):
                raise ConflictError(
                    f"There is an active key `{plan.name}`. Choose another name, or `lushan keys rotate {plan.name}`."
                )
            return _make(session, plan)

    def rotate(self, name: str, *, grace: timedelta) -> MadeKey:
        """Make a key that may do the same for as long; the one it replaces works on for `grace`, at most.

        Raises:
            SettingError: If there is no active key of that name.
            StoreError: If the store cannot be written.
        """
        with self._database.writing() as session:
            rows = _known(session, name)
            newest = _key(rows[-1])
            end = datetime.now(UTC) + grace
            for row in rows:
                row.expires_at = end if row.expires_at is None else min(end, row.expires_at)
            plan = KeyPlan(
                name=name,
                scopes=newest.scopes,
                lifetime=newest.lifetime,
                requests_per_minute=newest.requests_per_minute,
            )
            return _make(session, plan)

    def revoke(self, name: str) -> list[ApiKey]:
        """Make every active key of a name useless, at once and for ever.

        Raises:
            SettingError: If there is no active key of that name.
            StoreError: If the store cannot be written.
        """
        with self._database.writing() as session:
            rows = _known(session, name)
            for row in rows:
                row.revoked_at = datetime.now(UTC)
            return [_key(row) for row in rows]

    def all(self) -> list[ApiKey]:
        """Give every key there ever was, the oldest first.

        Raises:
            StoreError: If the store cannot be read.
        """
        with self._database.reading() as session:
            rows = session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created_at))
            return [_key(row) for row in rows]

    def find(self, text: str) -> ApiKey | None:
        """Give the key of this text, whatever its state; None where it is none of ours.

        Raises:
            StoreError: If the store cannot be read.
        """
        _, _, rest = text.partition(f"{KEY_MARK}_")
        id_, _, secret = rest.partition("_")
        with self._database.reading() as session:
            row = session.get(ApiKeyRow, id_)
        salt, digest = (_NO_SALT, _NO_DIGEST) if row is None else (row.salt, row.digest)
        is_equal = hmac.compare_digest(_digest(secret, salt), digest)
        return _key(row) if row is not None and is_equal else None

    def note_use(self, key: ApiKey) -> None:
        """Keep when a key was last used; writes at most once a minute.

        Raises:
            StoreError: If the store cannot be written.
        """
        now = datetime.now(UTC)
        if key.last_used_at is not None and now - key.last_used_at < USE_STEP:
            return
        with self._database.writing() as session:
            row = session.get(ApiKeyRow, key.id)
            if row is not None:
                row.last_used_at = now


def _make(session: Session, plan: KeyPlan) -> MadeKey:
    id_, salt, secret = secrets.token_hex(6), secrets.token_hex(16), secrets.token_urlsafe(32)
    now = datetime.now(UTC)
    row = ApiKeyRow(
        id=id_,
        name=plan.name,
        salt=salt,
        digest=_digest(secret, salt),
        scopes=",".join(plan.scopes),
        requests_per_minute=plan.requests_per_minute,
        created_at=now,
        expires_at=None if plan.lifetime is None else now + plan.lifetime,
    )
    session.add(row)
    session.flush()
    return MadeKey(f"{KEY_MARK}_{id_}_{secret}", _key(row))


def _digest(secret: str, salt: str) -> str:
    return hmac.digest(bytes.fromhex(salt), secret.encode("utf-8", "replace"), "sha256").hex()


def _active(session: Session, name: str) -> list[ApiKeyRow]:
    wanted = select(ApiKeyRow).where(ApiKeyRow.name == name).order_by(ApiKeyRow.created_at)
    return [row for row in session.scalars(wanted) if _key(row).state == "active"]


def _known(session: Session, name: str) -> list[ApiKeyRow]:
    """Give the active keys of a name, the oldest first.

    Raises:
        SettingError: If there is none; lists the names there are.
    """
    if rows := _active(session, name):
        return rows
    keys = [_key(row) for row in session.scalars(select(ApiKeyRow))]
    names = sorted({key.name for key in keys if key.state == "active"})
    raise SettingError(f"There is no active key `{name}`. There are: {', '.join(names) or 'none'}.")


def _key(row: ApiKeyRow) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        scopes=parse_scopes(row.scopes),
        requests_per_minute=row.requests_per_minute,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )
