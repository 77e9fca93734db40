"""Rows that two splits share: what is found, and what is taken out."""

import pytest

from lushan.data.overlap import (
    OverlapCounts,
    OverlapPolicy,
    places_found_in,
    places_of_repeats,
    remove_overlap,
)
from lushan.data.splits import Parts
from lushan.errors import DataError
from lushan.records import EITHER_WAY, Example

LONG = "The committee will publish its report on the harbour in the first week of {month}."


def part(name: str, *texts: str) -> list[Example]:
    return [
        Example(f"{name}{number}", text, "a", f"{name}.csv, row {number}")
        for number, text in enumerate(texts, start=1)
    ]


def fillers(name: str, num_rows: int) -> list[str]:
    return [f"{name} {word} {number}" for number in range(num_rows // 2) for word in ("x", "yy")]


def make_parts() -> Parts:
    return Parts(
        train=part(
            "train",
            *("alone", "In  Both", "in both", "In both!", LONG.format(month="March"), "of all"),
        ),
        validation=part(
            "validation",
            *("of validation", "in both", "of ALL", "in test"),
        ),
        test=part("test", "of all", "in test", LONG.format(month="April"), *fillers("test", 80)),
    )


def removed(parts: Parts, policy: OverlapPolicy = "remove") -> tuple[Parts, OverlapCounts]:
    return remove_overlap(parts, policy)


def test_rows_are_taken_out_of_the_earlier_split_and_test_is_never_touched() -> None:
    before = make_parts()
    after, _ = removed(before)
    assert [each.text for each in after.train] == ["alone"]
    assert [each.text for each in after.validation] == ["of validation", "in both"]
    assert after.test == before.test


def test_exact_and_near_rows_are_counted_apart_for_each_two_splits() -> None:
    _, counts = removed(make_parts())
    found = {
        (each.earlier, each.later): (each.num_exact, each.num_near, each.num_later_exact)
        for each in counts.pairs
    }
    assert found == {
        ("train", "validation"): (3, 1, 2),
        ("train", "test"): (1, 1, 1),
        ("validation", "test"): (2, 0, 2),
    }


def test_a_row_that_overlaps_twice_is_removed_once() -> None:
    _, counts = removed(make_parts())
    assert counts.num_exact_removed == {"train": 3, "validation": 2, "test": 0}
    assert counts.num_near_removed == {"train": 2, "validation": 0, "test": 0}
    assert counts.num_test_rows == 3


def test_a_row_that_overlaps_exactly_and_nearly_is_counted_as_exact() -> None:
    march, april = LONG.format(month="March"), LONG.format(month="April")
    test = part("test", april, *fillers("test", 80))
    _, counts = removed(Parts(part("train", "alone", march), part("validation", march), test))
    assert counts.num_exact_removed == {"train": 1, "validation": 0, "test": 0}
    assert counts.num_near_removed == {"train": 0, "validation": 1, "test": 0}


def test_overlap_is_said_and_shown_with_places() -> None:
    _, counts = removed(make_parts())
    assert counts.lines()[1] == (
        "2 row(s) of train are also in test (1 exactly, 1 nearly): taken out."
    )
    shown = {(each.earlier_place, each.later_place) for each in counts.shown}
    assert ("train.csv, row 5", "test.csv, row 3") in shown
    assert ("train.csv, row 4", "validation.csv, row 2") in shown


def test_an_exact_row_is_shown_with_the_row_that_it_equals() -> None:
    test = part("test", "A film: good", "a film good", "a film, good", *fillers("test", 80))
    _, counts = removed(Parts(part("train", "A Film good", "other"), part("validation", "x"), test))
    assert [each.later_text for each in counts.shown] == ["a film good"]


def test_keep_leaves_the_rows_and_counts_them() -> None:
    before = make_parts()
    after, counts = removed(before, "keep")
    assert after == before
    assert sum(counts.num_exact_removed.values()) == 0
    assert "kept, as asked" in counts.lines()[0]


def test_error_names_two_rows() -> None:
    with pytest.raises(DataError, match=r"also in validation.*Such as train\.csv, row 4 and valid"):
        removed(make_parts(), "error")


def test_error_is_silent_without_overlap() -> None:
    parts = Parts(part("train", "a b c"), part("validation", "d e f"), part("test", "g h i"))
    assert removed(parts, "error")[0] == parts


def overlapping(num_rows: int) -> Parts:
    test = fillers("test", 100)
    return Parts(
        part("train", "alone", *test[:num_rows]), part("validation", "v"), part("test", *test)
    )


def test_five_percent_of_the_test_rows_may_overlap() -> None:
    after, counts = removed(overlapping(5))
    assert counts.num_test_rows == 5
    assert len(after.train) == 1


def test_more_than_five_percent_of_the_test_rows_stop() -> None:
    with pytest.raises(DataError, match=r"6 of 100 test rows are also in train.*more than 5%"):
        removed(overlapping(6))


def test_more_than_five_percent_go_on_where_lushan_made_the_splits() -> None:
    after, _ = remove_overlap(overlapping(6), "remove", are_given=False)
    assert len(after.train) == 1


def test_places_found_in_others_are_those_of_equal_and_nearly_equal_texts() -> None:
    new = part("new", "fresh", "IN both.", LONG.format(month="May"))
    assert places_found_in(new, part("old", "In both", LONG.format(month="March"))) == {1, 2}
    assert places_found_in(new, []) == set()
    assert places_found_in([], new) == set()


def test_repeats_are_the_places_of_texts_that_an_earlier_one_is_like() -> None:
    march, may = LONG.format(month="March"), LONG.format(month="May")
    assert places_of_repeats(part("new", "one", march, "One!", may, "two", "one")) == {2, 3, 5}
    assert places_of_repeats([]) == set()


ORDER = (
    "Read the following note of a reader with care, find out what it is mainly about, and say so in a single word that a child "
    "would understand; where several words would fit, take the one that comes first in the alphabet, and add no more. Note: "
)


def templated(name: str, num_rows: int) -> list[Example]:
    return part(name, *(f"{ORDER}{name} {number:04} {number * 7:05}" for number in range(num_rows)))


def test_an_instruction_in_all_rows_is_no_overlap_of_splits_large_or_small() -> None:
    train = templated("train", 300)
    parts = Parts(train, templated("validation", 20), templated("test", 20))
    after, counts = removed(parts)
    assert after == parts
    assert counts.lines() == []
    few = Parts(train[:30], parts.validation, parts.test)
    _, counts = remove_overlap(few, "remove", are_given=False)
    assert counts.num_near_removed["train"] == 30


def translations(name: str, *pairs: tuple[str, str]) -> list[Example]:
    return [
        Example(
            f"{name}{number}",
            source,
            target,
            f"{name}.csv, row {number}",
            labels=(),
            group=EITHER_WAY.join(sorted((source, target), key=str.casefold)),
        )
        for number, (source, target) in enumerate(pairs, start=1)
    ]


def test_a_translation_whose_reverse_a_later_split_has_is_taken_out() -> None:
    test = translations(
        "test", ("Good day", "Guten Tag"), *((f"x {n}", f"y {n}") for n in range(60))
    )
    pairs = [("guten tag!", "Good day."), ("Guten Tag", "Hello"), ("Fox", "Fuchs"), ("x 7", "z 7")]
    parts = Parts(translations("train", *pairs), translations("validation", ("a", "b")), test)
    after, counts = removed(parts)
    assert [each.text for each in after.train] == ["Guten Tag", "Fox"]
    assert counts.lines() == [
        "2 row(s) of train are also in test (1 exactly, 1 nearly): taken out."
    ]
    assert counts.num_test_rows == 2
    assert (counts.shown[0].earlier_text, counts.shown[0].later_text) == ("guten tag!", "Good day")
    assert counts.shown[0].later_place == "test.csv, row 1"


def test_groups_that_are_no_two_answers_are_no_overlap() -> None:
    def row(name: str, text: str) -> Example:
        return Example(name, text, "a", f"{name}.csv, row 1", group="How a talk begins")

    parts = Parts([row("train", "one")], [row("validation", "two")], [row("test", "three")])
    assert removed(parts)[1].lines() == []
