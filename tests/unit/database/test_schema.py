"""The tables as Python sees them."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError

from lushan.database.schema import FeedbackRow
from tests.stores import fill, new_database


def test_time_comes_back_in_utc_whatever_its_zone(tmp_path: Path) -> None:
    noon_in_china = datetime(2026, 5, 1, 12, tzinfo=timezone(timedelta(hours=8)))
    with new_database(tmp_path) as database:
        fill(database, num_rows=1)
        with database.writing() as session:
            row = session.scalars(select(FeedbackRow)).one()
            row.created_at = noon_in_china
        with database.reading() as session:
            stored = session.scalars(select(FeedbackRow.created_at)).one()
            as_text = session.scalar(text("SELECT created_at FROM feedback"))
    assert stored == datetime(2026, 5, 1, 4, tzinfo=UTC)
    assert stored.tzinfo is UTC
    assert as_text == "2026-05-01 04:00:00.000000"


def test_missing_values_are_null_not_json_null(tmp_path: Path) -> None:
    with new_database(tmp_path) as database:
        fill(database, num_rows=1)
        with database.reading() as session:
            assert session.scalar(text("SELECT prediction IS NULL FROM feedback")) == 1


def test_number_of_a_deleted_row_is_not_used_again(tmp_path: Path) -> None:
    with new_database(tmp_path) as database:
        fill(database, num_rows=3)
        with database.writing() as session:
            session.execute(text("DELETE FROM feedback"))
        fill(database, num_rows=1)
        with database.reading() as session:
            assert session.scalar(select(func.max(FeedbackRow.number))) == 4


def test_rating_is_one_of_two_words(tmp_path: Path) -> None:
    with new_database(tmp_path) as database:
        fill(database, num_rows=1)
        with database.reading() as session, pytest.raises(IntegrityError, match="ck_feedback_r"):
            session.execute(text("UPDATE feedback SET rating = 'fine'"))
