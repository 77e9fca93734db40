"""Cutting data into parts, and drawing from it."""

import random
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from lushan.data import example_store, splits
from lushan.data.example_store import ExampleStore
from lushan.data.splits import Parts, count_labels, split, subsample
from lushan.errors import DataError
from lushan.records import EITHER_WAY, GOES_ON, Example, content_id


def example(text: str, target: str | tuple[str, ...], place: str = "") -> Example:
    return Example(content_id(text, target), text, target, place)


def examples(**num_rows: int) -> list[Example]:
    return [
        example(f"{label} number {number}", label)
        for label, times in num_rows.items()
        for number in range(times)
    ]


def cut(rows: Sequence[Example], *, seed: int = 0) -> Parts:
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


def test_rows_that_all_belong_together_are_too_few_to_split_and_told_why() -> None:
    rows = [Example(str(n), f"text {n}", "", group="one", labels=()) for n in range(100)]
    message = r"split: 1 different text\(s\), at least 3 are needed; rows that belong together \("
    with pytest.raises(DataError, match=message):
        cut(rows)
    whole = split(rows, validation_fraction=0.0, test_fraction=0.0, seed=0)
    assert [len(part) for part in whole.as_dict().values()] == [100, 0, 0]


def test_text_that_most_rows_have_leaves_others_for_training() -> None:
    parts = cut([*[example("the same text", "a")] * 1000, *examples(a=50)])
    assert [len(part) for part in parts.as_dict().values()] == [1017, 11, 22]
    assert "the same text" in texts(parts.train)


def test_group_that_would_be_most_of_a_part_is_for_training() -> None:
    dealt = splits._deal([15, *[1] * 85], {"test": 0.2, "validation": 0.1})
    assert dealt[0] == "train"
    assert Counter(dealt) == {"train": 56, "validation": 10, "test": 20}


def test_sets_of_labels_that_are_all_different_are_too_few_to_split() -> None:
    rows = [example(f"text {n}", ("often", f"label {n}")) for n in range(9)]
    message = "none is left for test, as no 3 different texts have the same rarest label"
    with pytest.raises(DataError, match=message):
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


@pytest.mark.parametrize("num_characters", [2**20, 0])
def test_rows_are_cut_drawn_and_counted_alike_wherever_they_are_kept(
    num_characters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example_store, "_MOST_KIND_CHARACTERS", num_characters)
    rows = [example(f"text {n}", ("often", f"{n % 7}", f"{n % 11}")) for n in range(200)]
    rows += examples(a=40, b=30)
    store = ExampleStore.collect(rows)
    assert [list(part) for part in cut(store).as_dict().values()] == [*cut(rows).as_dict().values()]
    assert [*subsample(store, 31, seed=1)] == subsample(rows, 31, seed=1)
    assert [*count_labels(store).items()] == [*count_labels(rows).items()]


def test_answers_that_are_all_different_are_not_in_memory_at_once(
    long_answers: ExampleStore,
) -> None:
    tracemalloc.start()
    cut(long_answers)
    subsample(long_answers, 500, seed=0)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most_bytes < 300 * len(long_answers) + 2**20


def translations(*pairs: tuple[str, str]) -> list[Example]:
    return [
        Example(
            content_id(*pair),
            pair[0],
            pair[1],
            labels=(),
            group=EITHER_WAY.join(sorted(pair, key=str.casefold)),
        )
        for pair in pairs
    ]


def both_ways(num: int) -> list[Example]:
    """Translations of which every third has a second wording, each with its reverse."""
    pairs = [(f"fox {n}", f"Fuchs {n}") for n in range(num)]
    pairs += [(f"fox {n}", f"Rotfuchs {n}") for n in range(0, num, 3)]
    return translations(*pairs, *((target.upper(), source) for source, target in pairs))


@pytest.mark.parametrize("collect", [list, ExampleStore.collect])
def test_translations_stay_with_their_reverse_and_with_equal_texts(
    collect: Callable[[list[Example]], Sequence[Example]],
) -> None:
    parts = cut(collect(both_ways(60)))
    homes = [{each.text.split()[1] for each in part} for part in parts.as_dict().values()]
    assert sum(map(len, homes)) == len(set().union(*homes)) == 60
    assert len(parts.test) == pytest.approx(32, abs=2)
    assert len(parts.validation) == pytest.approx(16, abs=2)


def test_the_order_of_translations_decides_nothing() -> None:
    rows = both_ways(60)
    shuffled = random.Random(3).sample(rows, len(rows))
    assert texts(cut(rows).test) == texts(cut(shuffled).test)


def test_a_long_chain_of_texts_that_hang_together_stays_together() -> None:
    chain = [(f"word {n}", f"word {n + 1}") for n in range(1000)]
    rows = translations(
        *chain, *((other, one) for one, other in chain), ("fox", "Fuchs"), ("ox", "Ochse")
    )
    random.Random(5).shuffle(rows)
    assert {len(part) for part in cut(rows).as_dict().values()} == {2000, 1}
