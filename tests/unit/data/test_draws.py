"""Draws: so many of each kind, in turn, by the seed alone."""

from lushan.data.draws import draw_in_turn

ROWS = [("rare", "a"), *(("common", str(number)) for number in range(500))]


def drawn(rows: list[tuple[str, str]], *, num_each: int = 3, seed: int = 0) -> list[str]:
    return [rows[place][1] for place in draw_in_turn(rows, num_each=num_each, seed=seed)]


def test_kinds_take_turns_and_each_gives_what_it_has() -> None:
    found = drawn(ROWS)
    assert len(found) == 4
    assert "a" in found[:2]
    assert drawn(ROWS, num_each=0) == []
    assert drawn([]) == []


def test_order_of_the_rows_does_not_matter_and_the_seed_does() -> None:
    found = drawn(ROWS)
    assert drawn(ROWS[::-1]) == found
    assert drawn(ROWS, seed=1) != found


def test_fewer_of_a_kind_are_the_first_of_many() -> None:
    assert drawn(ROWS, num_each=2) == drawn(ROWS)[:3]
