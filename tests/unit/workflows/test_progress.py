"""What takes long says how far it is, and what is quick says nothing."""

import pytest

from lushan.workflows import progress
from lushan.workflows.progress import Progress


def test_what_is_quick_is_not_told() -> None:
    told: list[str] = []
    Progress(told.append, "Read {} rows.").advance(1_000)
    assert told == []


def test_what_takes_long_is_told_with_all_rows_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    counter = Progress(told.append, "Read {} rows.")
    counter.advance(999)
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.0)
    counter.advance()
    counter.advance(200)
    assert told == ["Read 1,000 rows.", "Read 1,200 rows."]
