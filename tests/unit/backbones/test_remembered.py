"""A comparison is made once, and again when a side of it has changed or what was kept is broken."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lushan.backbones.remembered import remembered
from lushan.backbones.sources import cache_folder
from lushan.errors import ModelError


@pytest.fixture
def asked() -> list[str]:
    """Collect the comparisons that were made."""
    return []


def comparing(asked: list[str], name: str) -> Callable[[], list[str]]:
    def compare() -> list[str]:
        asked.append(name)
        return [name]

    return compare


def test_the_same_sides_are_compared_once(asked: list[str]) -> None:
    found = [remembered("kind", ("a", "b"), comparing(asked, name)) for name in ("first", "second")]
    assert found == [["first"], ["first"]]
    assert asked == ["first"]


@pytest.mark.parametrize(("kind", "sides"), [("other", ("a", "b")), ("kind", ("ab", ""))])
def test_other_sides_are_compared_by_themselves(
    kind: str, sides: tuple[str, str], asked: list[str]
) -> None:
    remembered("kind", ("a", "b"), comparing(asked, "first"))
    assert remembered(kind, sides, comparing(asked, "second")) == ["second"]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "\0"])
def test_what_is_broken_is_compared_anew(content: str, asked: list[str]) -> None:
    remembered("kind", ("a",), comparing(asked, "first"))
    (file,) = (cache_folder() / "kind").iterdir()
    file.write_text(content, encoding="utf-8")
    for name in ("second", "third"):
        assert remembered("kind", ("a",), comparing(asked, name)) == ["second"]


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path: Path, asked: list[str]) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "kind").write_text("a file", encoding="utf-8")
    for name in ("first", "second"):
        assert remembered("kind", ("a",), comparing(asked, name)) == [name]


def test_a_comparison_that_fails_is_not_kept(asked: list[str]) -> None:
    def fail() -> None:
        raise ModelError("no")

    with pytest.raises(ModelError):
        remembered("kind", ("a",), fail)
    assert remembered("kind", ("a",), comparing(asked, "second")) == ["second"]
