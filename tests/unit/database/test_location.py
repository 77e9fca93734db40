"""Where the store is: what the user names, the environment, the user's data folder."""

import sys
from pathlib import Path

import pytest

from lushan.database.location import check_packages, database_file, store_place
from lushan.errors import MissingExtraError, StoreError


def test_named_place_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUSHAN_STORE", "/from/environment")
    assert store_place("mine") == "mine"
    assert store_place(None) == "/from/environment"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other folders")
def test_usual_place_is_the_data_folder_of_the_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("LUSHAN_STORE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert store_place(None) == str(tmp_path / "lushan")
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store_place(None) == str(tmp_path / ".local" / "share" / "lushan")


def test_folder_and_url_of_sqlite_name_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert database_file("a/b") == Path("a/b/lushan.sqlite3")
    assert database_file("~/a") == tmp_path / "a" / "lushan.sqlite3"
    assert database_file("~nobody-here/a") == Path("~nobody-here/a/lushan.sqlite3")
    assert database_file("sqlite:////srv/my.db") == Path("/srv/my.db")
    assert database_file("sqlite:///my.db") == Path("my.db")


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///a?mode=ro", "mysql:///a"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(StoreError, match="expected a folder, or a URL of SQLite such as"):
        database_file(url)


def test_message_about_a_url_does_not_tell_its_password() -> None:
    with pytest.raises(StoreError, match="`postgresql://server/store` cannot be used"):
        database_file("postgresql://me:secret@server/store")


def test_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(StoreError, match=r"notes\.txt` is a file\. Name a folder"):
        database_file(str(tmp_path / "notes.txt"))


@pytest.mark.parametrize("package", ["sqlalchemy", "alembic"])
def test_missing_package_is_told_with_its_extra(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_packages("Feedback")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"Feedback needs `{package}`.*'\.\[serve\]'"):
        check_packages("Feedback")
