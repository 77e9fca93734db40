"""What blocks a run, and what is told."""

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace

import pytest

from lushan.data import example_store
from lushan.data.checks import check_parts
from lushan.data.example_store import ExampleStore
from lushan.data.splits import Parts
from lushan.errors import DataError
from lushan.records import Example, Span, content_id

Pairs = Sequence[tuple[str, str | tuple[str, ...]]]


def part(name: str, pairs: Pairs) -> list[Example]:
    return [
        Example(f"{name}{number}", text, target, f"{name}.csv, row {number}")
        for number, (text, target) in enumerate(pairs, start=1)
    ]


def parts(train: Pairs, validation: Pairs = (), test: Pairs = ()) -> Parts:
    fine: Pairs = [("one", "a"), ("two", "b")]
    return Parts(
        part("train", train), part("validation", validation or fine), part("test", test or fine)
    )


MANY: Pairs = [(f"text {number}", "ab"[number % 2]) for number in range(20)]


def test_good_parts_have_no_warnings_and_their_labels_are_counted() -> None:
    findings = check_parts(parts(MANY))
    assert findings.warnings == ()
    assert findings.labels["train"] == {"a": 10, "b": 10}


def test_repeats_are_counted_but_for_the_first() -> None:
    findings = check_parts(parts([*MANY, ("TEXT  1", "b"), ("text 1", "b")]))
    assert findings.num_repeats == {"train": 2, "validation": 0, "test": 0}
    assert findings.warnings == ("train: 2 row(s) repeat a text of the same split; kept.",)


def test_one_text_with_two_labels_is_counted_and_shown_with_its_places() -> None:
    findings = check_parts(parts([*MANY, ("Text 1", "a")]))
    assert findings.num_contradictions["train"] == 1
    (shown,) = findings.contradictions
    assert shown.labels == ("a", "b")
    assert shown.places == ("train.csv, row 2", "train.csv, row 21")


def test_contradictions_are_shown_in_the_order_of_the_file() -> None:
    rows = [(f"text {number}", label) for label in "ab" for number in range(20)]
    findings = check_parts(parts(rows, rows[:4], rows[:4]))
    assert findings.num_contradictions["train"] == 20
    assert [each.text for each in findings.contradictions] == [f"text {n}" for n in range(5)]


def test_one_label_only_is_refused() -> None:
    with pytest.raises(DataError, match=r"All 2 training rows have the same label, 'a'"):
        check_parts(parts([("x", "a"), ("y", "a")]))


def test_one_label_that_is_sometimes_absent_can_be_learned() -> None:
    several = [(f"text {number}", ("a",) if number % 2 else ()) for number in range(20)]
    check_parts(parts(several, several[:4], several[:4]))


@pytest.mark.parametrize("name", ["validation", "test"])
def test_labels_that_training_never_sees_are_refused_with_count_and_place(name: str) -> None:
    unknown: Pairs = [("u", "a"), ("v", "c"), ("w", "c")]
    with pytest.raises(
        DataError, match=rf"{name} split has 1 label\(s\).*`c` \(2\); first in {name}\.csv, row 2"
    ):
        check_parts(parts(MANY, **{name: unknown}))


def test_an_unknown_label_among_several_is_refused() -> None:
    train: Pairs = [("x", ("a",)), ("y", ("b",))]
    with pytest.raises(DataError, match=r"`c` \(1\); first in test\.csv, row 1"):
        check_parts(parts(train, train, [("z", ("a", "c"))]))


def test_an_empty_part_is_refused() -> None:
    empty = Parts(part("train", MANY), part("validation", MANY), [])
    with pytest.raises(DataError, match=r"The test split has no rows left.*`--overlap keep`"):
        check_parts(empty)


def test_rare_untested_and_unbalanced_labels_are_told() -> None:
    train: Pairs = [*[(f"text {number}", "a") for number in range(50)], ("x", "b"), ("y", "c")]
    warnings = check_parts(parts(train)).warnings
    assert warnings == (
        "2 label(s) have fewer than 5 training rows: `b`, `c`.",
        "1 label(s) are in no test row: `c`.",
        "The most frequent label has 50 training rows, the rarest 1; "
        "consider `--set task_settings.class_weights=balanced`.",
    )


def test_weights_of_classes_are_not_suggested_where_there_are_none() -> None:
    train: Pairs = [*[(f"text {number}", "a") for number in range(50)], ("x", "b")]
    warnings = check_parts(parts(train), weighs_classes=False).warnings
    assert not any("class_weights" in each for each in warnings)
    assert any("class_weights" in each for each in check_parts(parts(train)).warnings)


def test_equal_spans_in_every_row_are_something_to_learn() -> None:
    rows = [Example(f"{n}", f"text {n}", (Span(0, 4, "x"),)) for n in range(6)]
    found = check_parts(Parts(rows[:2], rows[2:4], rows[4:]))
    assert found.labels["train"] == {"x": 2}


def test_labels_that_differ_only_in_capital_letters_are_told() -> None:
    train: Pairs = [(f"text {number}", ("a", "b", "A")[number % 3]) for number in range(30)]
    warnings = check_parts(parts(train, train, train)).warnings
    assert warnings == ("Labels that differ only in capital letters: `A`, `a`.",)


def test_different_questions_about_one_text_are_no_repeats() -> None:
    asked = [
        Example(f"{n}", "text", label, f"row {n}", {"question": question})
        for n, (question, label) in enumerate([("who", "a"), ("why", "b"), ("why", "c")])
    ]
    findings = check_parts(
        Parts(asked, part("validation", [("v", "a")]), part("test", [("t", "a")]))
    )
    assert findings.num_repeats["train"] == findings.num_contradictions["train"] == 1
    assert [each.text for each in findings.contradictions] == ["why\ntext"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"target_lang": "de"}, {"target_lang": "fr"}),
        ({"source_lang": "de"}, {"source_lang": "nl"}),
        ({"length": "short"}, {"length": 20}),
        (
            {"question": "It rains.", "relation": "cause"},
            {"question": "It rains.", "relation": "effect"},
        ),
        (
            {"messages": [{"role": "system", "content": "Be brief."}]},
            {"messages": [{"role": "system", "content": "Be kind."}]},
        ),
        ({"tools": [{"function": {"name": "add"}}]}, {}),
    ],
)
def test_whatever_else_was_asked_tells_equal_texts_apart(
    one: dict[str, object], other: dict[str, object]
) -> None:
    for second, times in ((other, 0), (one, 1)):
        asked = [
            Example(answer, "text", answer, f"row {answer}", extra)
            for answer, extra in (("a", one), ("b", second))
        ]
        findings = check_parts(
            Parts(asked, part("validation", [("v", "a")]), part("test", [("t", "a")]))
        )
        assert findings.num_repeats["train"] == findings.num_contradictions["train"] == times


def test_free_answers_are_called_answers_and_shown_where_they_differ() -> None:
    def row(text: str, answer: str) -> Example:
        return Example(content_id(text, answer), text, answer, "a.csv, row 1", {}, ())

    same = [row(f"text {n}", "fox") for n in range(3)]
    with pytest.raises(DataError, match="All 3 training rows have the same answer, 'fox'"):
        check_parts(Parts(same, same, same))
    several = [row("text", "fox"), row("text", "wolf"), row("other", "fox")]
    (shown,) = check_parts(Parts(several, same, same)).contradictions
    assert shown.labels == ("fox", "wolf")


def test_rows_are_checked_alike_wherever_they_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example_store, "_MOST_KIND_CHARACTERS", 100)
    rows = part("train", [*MANY, ("Text 1", "a"), ("text 2", "a"), ("text 3", ("a", "b"))])
    store = ExampleStore.collect(rows)
    found = check_parts(Parts(store, store[3:8], store[::-1]))
    assert found == check_parts(Parts(rows, rows[3:8], rows[::-1]))
    assert found.num_contradictions["train"] == 2
    unknown = Example("u", "text", "c", "u.csv, row 9")
    with pytest.raises(
        DataError, match=r"test split .*`c` \(1\); first in u\.csv, row 9\. Known: `a`"
    ):
        check_parts(Parts(store, store, ExampleStore.collect([*rows, unknown])))
    same = ExampleStore.collect(replace(each, target="a") for each in rows)
    with pytest.raises(DataError, match="All 23 training rows have the same label, 'a'"):
        check_parts(Parts(same, store, store))


def test_answers_that_are_all_different_are_not_in_memory_at_once(
    long_answers: ExampleStore,
) -> None:
    tracemalloc.start()
    check_parts(Parts(long_answers, long_answers, long_answers))
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most_bytes < 200 * len(long_answers) + 2**20
