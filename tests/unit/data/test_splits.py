"""Cutting data into parts, and drawing from it."""

import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from lushan.data.example_store import ExampleStore
from lushan.data.splits import Parts, count_labels, split, subsample
from lushan.errors import DataError
from lushan.records import GOES_ON, Example, content_id


def example(text: str, target: str | tuple[str, ...], place: str = "") -> Example:
    return Example(content_id(text, target), text, target, place)


def examples(**num_rows: int) -> list[Example]:
    return [
        example(f"{label} number {number}", label)
        for label, times in num_rows.items()
        for number in range(times)
    ]


def cut(rows: list[Example], *, seed: int = 0) -> Parts:
    return split(rows, validation_fraction=0.1, test_fraction=0.2, seed=seed)


def texts(part: Sequence[Example]) -> set[str]:
    return {each.text for each in part}


def test_every_row_is_in_one_part_and_shares_are_kept_per_label() -> None:
    rows = examples(often=200, seldom=50)
    parts = cut(rows)
    assert count_labels(parts.train) == {"often": 140, "seldom": 35}
    assert count_labels(parts.validation) == {"often": 20, "seldom": 5}
    assert count_labels(parts.test) == {"often": 40, "seldom": 10}
    assert Counter(each.id for part in parts.as_dict().values() for each in part) == Counter(
        each.id for each in rows
    )


def test_the_order_of_the_rows_decides_nothing() -> None:
    rows = examples(a=60, b=40)
    shuffled = random.Random(3).sample(rows, len(rows))
    assert texts(cut(rows).test) == texts(cut(shuffled).test)
    assert texts(cut(rows).validation) == texts(cut(shuffled).validation)


def test_another_seed_cuts_elsewhere() -> None:
    rows = examples(a=60, b=40)
    assert texts(cut(rows).test) != texts(cut(rows, seed=1).test)


def test_parts_keep_the_order_of_the_list() -> None:
    rows = examples(a=60, b=40)
    for part in cut(rows).as_dict().values():
        assert part == sorted(part, key=rows.index)


def test_equal_texts_stay_together_whatever_their_label() -> None:
    rows = examples(a=40, b=40)
    repeated = [example(f"{each.text.upper()} !", "b") for each in rows[:30]]
    parts = cut(rows + repeated)
    homes = [
        {text.casefold().rstrip(" !") for text in texts(part)} for part in parts.as_dict().values()
    ]
    assert sum(map(len, homes)) == len(set().union(*homes)) == 80


def test_rows_of_a_group_stay_together() -> None:
    rows = [
        Example(f"{group}-{n}", f"turn {n} of {group}", "", group=f"talk {group}", labels=())
        for group in range(40)
        for n in range(3)
    ]
    homes = [{each.group for each in part} for part in cut(rows).as_dict().values()]
    assert sum(map(len, homes)) == 40
    assert all(homes)


def cut_behind_each_turn(num_talks: int, *turns: str) -> list[Example]:
    """Rows of conversations, each as long as its number of turns; `{}` in a turn is the number of its conversation."""
    return [
        Example(
            f"{talk}-{n}",
            f"talk {talk}, {n}",
            "",
            group=GOES_ON.join(turns[:n]).format(*[talk] * 9),
            labels=(),
        )
        for talk in range(num_talks)
        for n in range(1, len(turns) + 1)
    ]


@pytest.mark.parametrize("collect", [list, ExampleStore.collect])
def test_rows_of_a_conversation_that_was_cut_stay_together(
    collect: Callable[[list[Example]], Sequence[Example]],
) -> None:
    rows = collect(cut_behind_each_turn(40, "Where is fox {}?", "There.", "And soup {}?"))
    parts = split(rows, validation_fraction=0.1, test_fraction=0.2, seed=0)
    homes = [{each.id.partition("-")[0] for each in part} for part in parts.as_dict().values()]
    assert [len(home) for home in homes] == [28, 4, 8]
    assert sum(map(len, homes)) == len(set().union(*homes))


def test_conversations_that_begin_with_one_greeting_are_dealt_by_themselves() -> None:
    rows = cut_behind_each_turn(
        40, "Hello!", "Good day.", "Where is fox {}?", "There.", "I see {}."
    )
    parts = cut(rows)
    longer = {
        name: [each for each in part if "fox" in each.group]
        for name, part in parts.as_dict().items()
    }
    assert {name: len(part) for name, part in longer.items()} == {
        "train": 84,
        "validation": 12,
        "test": 24,
    }
    assert longer["test"] == parts.test
    assert longer["validation"] == parts.validation
    homes = [{each.id.partition("-")[0] for each in part} for part in longer.values()]
    assert sum(map(len, homes)) == len(set().union(*homes)) == 40


def test_greetings_that_two_conversations_begin_with_are_too_few_to_split() -> None:
    with pytest.raises(DataError, match=r"Too few rows to split: 2 different text\(s\)"):
        cut(cut_behind_each_turn(2, "Hello!", "Good day, {}."))


def test_repeated_texts_can_be_tested() -> None:
    rows = [each for each in examples(a=50, b=50) for _ in range(3)]
    assert len(cut(rows).test) == pytest.approx(60, abs=6)


def test_three_texts_of_a_label_are_enough_for_three_parts() -> None:
    rows = examples(a=50, b=3)
    rows += [rows[-1]] * 40
    for part in cut(rows).as_dict().values():
        assert count_labels(part)["b"] >= 1


def test_two_texts_of_a_label_are_too_few_for_three_parts() -> None:
    with pytest.raises(DataError, match=r"1 label\(s\) have fewer than 3 different texts: `b`"):
        cut(examples(a=50, b=2))


def test_two_texts_without_labels_are_too_few_and_no_label_is_named() -> None:
    rows = [Example(str(n), f"text {n}", "an answer", labels=()) for n in range(2)]
    with pytest.raises(DataError, match=r"split: 2 different text\(s\), at least 3 are needed"):
        cut(rows)


def test_two_texts_are_enough_where_only_validation_is_cut_off() -> None:
    parts = split(examples(a=50, b=2), validation_fraction=0.1, test_fraction=0.0, seed=0)
    assert parts.test == []
    assert count_labels(parts.validation) == {"a": 5, "b": 1}


def test_several_labels_are_shared_out_by_the_rarest_and_lone_ones_train() -> None:
    rows = [
        example(f"text {n}", ("common", "rare") if n % 10 == 0 else ("common",)) for n in range(100)
    ]
    rows += [example("none at all", ()), example("once", ("common", "lone"))]
    parts = cut(rows)
    assert count_labels(parts.test)["rare"] == 2
    assert count_labels(parts.train)["lone"] == 1
    assert "none at all" in texts(parts.train)


def test_a_draw_keeps_shares_and_every_label_and_the_order() -> None:
    rows = examples(a=700, b=290, c=10)
    drawn = subsample(rows, 100, seed=0)
    assert count_labels(drawn) == {"a": 70, "b": 29, "c": 1}
    assert drawn == sorted(drawn, key=rows.index)


def test_a_draw_keeps_one_of_each_label_where_there_is_room() -> None:
    rows = examples(a=990, b=4, c=3, d=3)
    assert count_labels(subsample(rows, 10, seed=0)) == {"a": 7, "b": 1, "c": 1, "d": 1}


def test_a_draw_of_sets_of_labels_keeps_every_label() -> None:
    rows = [example(f"text {n}", ("often", f"{n % 7}", f"{n % 11}")) for n in range(200)]
    rows.append(example("alone", ("often", "rare")))
    drawn = subsample(rows, 12, seed=0)
    assert len(drawn) == 12
    assert count_labels(drawn).keys() == count_labels(rows).keys()


@pytest.mark.parametrize("num_rows", [1, 2, 3, 17, 99])
def test_a_draw_has_the_size_that_was_asked_for(num_rows: int) -> None:
    assert len(subsample(examples(a=50, b=30, c=20), num_rows, seed=0)) == num_rows


def test_a_draw_does_not_depend_on_the_order_but_on_the_seed() -> None:
    rows = examples(a=60, b=40)
    shuffled = random.Random(3).sample(rows, len(rows))
    drawn = texts(subsample(rows, 20, seed=0))
    assert texts(subsample(shuffled, 20, seed=0)) == drawn
    assert texts(subsample(rows, 20, seed=1)) != drawn


def test_a_draw_of_more_than_there_is_gives_all() -> None:
    rows = examples(a=5, b=5)
    assert subsample(rows, 10, seed=0) == rows


def test_equal_texts_count_for_the_label_that_most_of_them_have() -> None:
    same = [example("the same text", label, f"row {n}") for n, label in enumerate("caa")]
    parts = cut([*examples(a=30, b=30), *same])  # `c` and its one text would be refused by itself
    assert sum(len(part) for part in parts.as_dict().values()) == 63


def test_large_groups_of_equal_texts_leave_no_part_empty() -> None:
    rows = [
        example(text, label, f"row {n}")
        for text, label in zip("uvwxyz", "aaabbb", strict=True)
        for n in range(10)
    ]
    for part in cut(rows).as_dict().values():
        assert count_labels(part) == {"a": 10, "b": 10}
