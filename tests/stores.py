"""Stores for tests: opened in a folder, filled in other processes, and made to fail as a disk does."""

import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import text

from lushan.database.connect import Database, open_database
from lushan.feedback.given import GivenFeedback, check_given
from lushan.feedback.store import FeedbackStore
from lushan.serving.api_key import KeyPlan, Scope
from lushan.serving.key_store import KeyStore, MadeKey


def new_database(folder: Path) -> Database:
    """Open a store, made if it is missing."""
    return open_database(str(folder), create=True)


def given(**values: Any) -> GivenFeedback:  # noqa: ANN401 - fields of feedback
    """Give feedback with a correction, but for what is said."""
    usual = {"model": "reviews", "input": "A film to see twice.", "correction": "good"}
    return check_given({**usual, **values})


def fill(database: Database, *, num_rows: int) -> None:
    """Store so many corrections, each of another text."""
    store = FeedbackStore(database)
    for number in range(num_rows):
        store.add(given(input=f"text {number}", id=f"row-{number}"), task="classification")


def make_key(
    store: KeyStore,
    name: str,
    *scopes: Scope,
    lifetime: timedelta | None = None,
    requests_per_minute: int | None = None,
) -> MadeKey:
    """Make an API key."""
    return store.create(
        KeyPlan(
            name=name, scopes=scopes, lifetime=lifetime, requests_per_minute=requests_per_minute
        )
    )


def start_python(code: str, arguments: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Run code in a process of its own, whose lines can be read as they come."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True
    )


def forbid_growth(database: Database) -> None:
    """Let SQLite refuse every new page, as on a full disk."""
    with database.reading() as session:
        num_pages = session.scalar(text("PRAGMA page_count"))
        session.execute(text(f"PRAGMA max_page_count={num_pages}"))


def forbid_writing(database: Database) -> None:
    """Let SQLite refuse every write, as on a disk that may only be read."""
    with database.reading() as session:
        session.execute(text("PRAGMA query_only=ON"))
