"""Rows whose answers would not fit into memory."""

import pytest

from lushan.data import example_store
from lushan.data.example_store import ExampleStore
from lushan.records import Example


@pytest.fixture
def long_answers(monkeypatch: pytest.MonkeyPatch) -> ExampleStore:
    """Give 2,000 rows with answers of some 6 kB that are all different, none of which stays in memory."""
    monkeypatch.setattr(example_store, "_MOST_KIND_CHARACTERS", 0)
    monkeypatch.setattr(example_store, "_ROWS_PER_READ", 16)
    return ExampleStore.collect(
        Example(f"{n}", f"text {n}", f"answer {n} " * 500, labels=()) for n in range(2_000)
    )
