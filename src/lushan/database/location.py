"""Where the store is: what the user named, else `LUSHAN_STORE`, else a folder in the user's data folder."""

import contextlib
import os
import sys
from pathlib import Path

from lushan.errors import StoreError, need

DATABASE_FILE = "lushan.sqlite3"
URL_MARK = "://"
PACKAGES = ("sqlalchemy", "alembic")


def check_packages(purpose: str) -> None:
    """Check that the packages of the extra `serve` are there which the store needs.

    Raises:
        MissingExtraError: If not; says how to install them.
    """
    for package in PACKAGES:
        need(package, extra="serve", purpose=purpose)


def store_place(named: str | None) -> str:
    """Give the folder or the URL of the store, as the user would name it."""
    return named or os.environ.get("LUSHAN_STORE") or str(_data_folder() / "lushan")


def database_file(place: str) -> Path:
    """Give the SQLite file of a folder, or of a URL such as `sqlite:////srv/lushan.sqlite3`.

    Raises:
        StoreError: If it is the URL of another kind of database, or the folder is a file.
    """
    if URL_MARK in place:
        kind, _, path = place.partition(":///")
        if kind != "sqlite" or not path or "?" in path:
            raise StoreError(
                f"The store `{_without_password(place)}` cannot be used: expected a folder, or a URL of SQLite such as "
                "`sqlite:////srv/lushan.sqlite3`, without options."
            )
        return Path(path)
    folder = Path(place)
    with contextlib.suppress(RuntimeError):  # `~name` of no user is the name of a folder
        folder = folder.expanduser()
    if folder.is_file():
        raise StoreError(f"The store `{place}` is a file. Name a folder.")
    return folder / DATABASE_FILE


def _without_password(url: str) -> str:
    kind, _, rest = url.partition(URL_MARK)
    return f"{kind}{URL_MARK}{rest.rpartition('@')[2]}"


def _data_folder() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
