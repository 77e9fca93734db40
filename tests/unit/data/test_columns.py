"""Finding columns, and turning their values into text and labels."""

import math

import pytest

from lushan.data.columns import (
    Cleaner,
    Columns,
    Notes,
    check_mapping,
    find_columns,
    form_of,
    unpacked,
)
from lushan.errors import DataError

WANTED = Columns(
    required=("text", "label"),
    optional=("note",),
    guesses={"text": ("review", "body"), "label": ("category",)},
    labels=("label",),
)
SEVERAL = Columns(required=("text", "label"), labels=("label",), lists=("label",))


def find(*found: str, **mapping: str) -> tuple[dict[str, str], list[str]]:
    notes = Notes("data.csv")
    return find_columns(found, mapping=mapping, wanted=WANTED, notes=notes), notes.lines()


def clean(name: str, value: object, wanted: Columns = WANTED) -> tuple[object, list[str]]:
    notes = Notes("data.csv")
    return Cleaner(wanted, notes).clean(name, value, 7), notes.lines()


def test_equal_names_are_taken_without_a_word() -> None:
    assert find("label", "other", "text") == ({"text": "text", "label": "label"}, [])


FORMS = Columns(
    required=("text", "spans"),
    guesses={"text": ("body",)},
    others=(Columns(required=("tokens", "tags"), guesses={"tags": ("labels",)}),),
)


@pytest.mark.parametrize(
    ("found", "mapping", "read"),
    [
        (("text", "spans"), {}, "text"),
        (("tokens", "tags", "body"), {}, "tokens"),
        (("tokens", "text"), {"tags": "text"}, "tokens"),
        (("Body", "labels"), {}, "text"),
        (("words", "labels"), {}, "text"),
        (("words", "text"), {"tokens": "words"}, "tokens"),
    ],
)
def test_form_is_the_first_whose_read_column_is_named_there_or_guessed(
    found: tuple[str, ...], mapping: dict[str, str], read: str
) -> None:
    assert form_of(found, mapping=mapping, wanted=FORMS).required[0] == read


LENGTHS = Columns(required=("text",), optional=("note", "length"), lengths=("length",))


def test_wanted_length_is_read_only_where_the_model_keeps_to_one() -> None:
    notes = Notes("a.csv")
    found = ("text", "length")
    assert find_columns(found, mapping={}, wanted=LENGTHS, notes=notes) == {
        "text": "text",
        "length": "length",
    }
    assert notes.lines() == []
    wanted = LENGTHS.without_lengths()
    for form in (wanted, wanted.asked):
        notes = Notes("a.csv")
        assert find_columns(found, mapping={}, wanted=form, notes=notes) == {"text": "text"}
        (note,) = notes.lines()
        assert note.startswith("a.csv: column `length` is not read: ")
        assert "task_settings.length_control=true" in note
    notes = Notes("a.csv")
    mapped = find_columns(found, mapping={"note": "length"}, wanted=wanted, notes=notes)
    assert mapped == {"text": "text", "note": "length"}
    assert notes.lines() == []


def test_wanted_length_that_nobody_keeps_to_cannot_be_named() -> None:
    check_mapping({"length": "words"}, LENGTHS)
    with pytest.raises(DataError, match=r"`data\.columns\.length` has no effect: .*length_control"):
        check_mapping({"length": "words"}, LENGTHS.without_lengths())


def test_missing_column_of_several_forms_names_them() -> None:
    with pytest.raises(DataError, match=r"no column `text` \(nor `tokens`\)\. Found: `words`"):
        find_columns(["words"], mapping={}, wanted=FORMS, notes=Notes("a.csv"))


def test_mapping_may_name_a_column_of_any_form() -> None:
    check_mapping({"tags": "ner"}, FORMS)
    with pytest.raises(DataError, match="Its columns: `text`, `spans`, `tokens`, `tags`"):
        check_mapping({"tag": "ner"}, FORMS)


def test_row_that_is_only_asked_about_needs_what_is_read_in_any_form() -> None:
    assert [form.required for form in FORMS.asked.forms] == [("text",), ("tokens",)]
    assert FORMS.asked.forms[0].guesses == {"text": ("body",)}
    optional = Columns(required=("text", "label"), optional=("head",)).asked
    assert optional.names == ("text", "head")


def test_row_that_is_only_asked_about_may_need_several_columns() -> None:
    wanted = Columns(required=("context", "question", "answers"), asked_with=("question",))
    assert wanted.asked.required == ("context", "question") == wanted.asked.asked.required


def test_guessed_names_are_told() -> None:
    names, notes = find("Review", "category")
    assert names == {"text": "Review", "label": "category"}
    assert notes == [
        "data.csv: column `Review` is read as `text`.",
        "data.csv: column `category` is read as `label`.",
    ]


def test_an_equal_name_wins_over_a_guess() -> None:
    assert find("review", "text", "label") == ({"text": "text", "label": "label"}, [])


def test_a_mapped_column_is_not_guessed_for_another() -> None:
    names, _ = find("review", "body", "category", text="body")
    assert names == {"text": "body", "label": "category"}


def test_an_optional_column_is_taken_where_it_is_there() -> None:
    assert find("text", "label", "note")[0]["note"] == "note"


def test_a_missing_column_lists_what_was_found() -> None:
    with pytest.raises(DataError, match=r"data\.csv: no column `label`\. Found: `text`, `stars`\."):
        find("text", "stars")


def test_one_column_is_not_read_as_two() -> None:
    with pytest.raises(DataError, match=r"`text`, `label` would be read from the same .*, `label`"):
        find("body", "label", text="label")


def test_an_unknown_name_in_the_mapping_lists_the_columns_of_the_task() -> None:
    with pytest.raises(DataError, match=r"no column `lable`.*`text`, `label`, `note`"):
        check_mapping({"lable": "stars"}, WANTED)


@pytest.mark.parametrize("value", [None, math.nan, "", " \t", "\u3000"])
def test_nothing_and_blanks_are_no_text(value: object) -> None:
    assert clean("text", value) == (None, [])


@pytest.mark.parametrize("value", [None, math.nan, "", " ", "NaN", "null"])
def test_nothing_and_words_for_nothing_are_no_label(value: object) -> None:
    assert clean("label", value) == (None, [])


def test_the_text_nan_is_a_text() -> None:
    assert clean("text", "nan") == ("nan", [])


@pytest.mark.parametrize(
    ("value", "label"), [(3, "3"), (True, "true"), (2.0, "2"), (2.5, "2.5"), ("1.00", "1")]
)
def test_numbers_and_truth_values_become_labels_and_are_told(value: object, label: str) -> None:
    cleaned, notes = clean("label", value)
    assert cleaned == label
    assert "(first in row 7)" in notes[0]


def test_spaces_around_a_label_are_taken_off_and_told() -> None:
    cleaned, notes = clean("label", " good ")
    assert cleaned == "good"
    assert notes == ["data.csv: `label` had spaces around it; taken off: 1 (first in row 7)."]


def test_spaces_around_a_text_stay() -> None:
    assert clean("text", " good ") == (" good ", [])


def test_a_number_for_a_text_is_read_as_text_and_told() -> None:
    cleaned, notes = clean("text", 12)
    assert cleaned == "12"
    assert notes == ["data.csv: `text` was no text but int; read as text: 1 (first in row 7)."]


def test_a_broken_character_is_told_and_kept() -> None:
    cleaned, notes = clean("text", "caf\ufffd")
    assert cleaned == "caf\ufffd"
    assert "U+FFFD" in notes[0]


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        (["a", " b ", "a"], ("a", "b")),
        ([], ()),
        ("a|b", ("a", "b")),
        ("a; b;", ("a", "b")),
        ("a;b|c", ("a;b", "c")),
        ("\u4f53\u80b2\uff1b\u8d22\u7ecf", ("\u4f53\u80b2", "\u8d22\u7ecf")),
        ("a\uff1bb; c", ("a", "b", "c")),
        ("a\uff1bb|c", ("a\uff1bb", "c")),
        ("[a]|[b]", ("[a]", "[b]")),
        ("[a]; [b]", ("[a]", "[b]")),
        ("a", ("a",)),
        ("", ()),
    ],
)
def test_several_labels_are_a_list_or_text_with_a_separator(
    value: object, labels: tuple[str, ...]
) -> None:
    assert clean("label", value, SEVERAL)[0] == labels


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([0.0, 1.0, 0.0, 0.0], "`0` 3 times"),
        ([1, 1], "`1` 2 times"),
        ([False, True, False], "`false` 2 times"),
        ([0.5, 0.25, 0.25], "`0.25` 2 times"),
        ("0|1|0", "`0` 2 times"),
    ],
)
def test_number_for_every_label_is_refused_where_names_are_expected(
    value: object, said: str
) -> None:
    with pytest.raises(
        DataError, match=rf"data\.csv, row 7: `label` has {said} in its list.*Give the names"
    ):
        clean("label", value, SEVERAL)
    assert clean("label", [0, 3], SEVERAL)[0] == ("0", "3")


def test_name_that_a_list_gives_twice_is_read_once_and_told() -> None:
    labels, notes = clean("label", ["good", "2nd", "good"], SEVERAL)
    assert labels == ("good", "2nd")
    assert notes == [
        "data.csv: `label` had a label twice in its list; read once: 1 (first in row 7)."
    ]


def test_cutting_a_label_at_a_separator_is_told() -> None:
    assert "cut into several labels at `|`" in clean("label", "a|b", SEVERAL)[1][0]
    assert "cut into several labels at `\uff1b`" in clean("label", "a\uff1bb", SEVERAL)[1][0]


def test_no_value_is_not_the_same_as_no_label() -> None:
    assert clean("label", None, SEVERAL) == (None, [])


def test_label_that_says_a_list_as_json_is_several() -> None:
    assert clean("label", '["a|b", "c"]', SEVERAL) == (("a|b", "c"), [])
    assert clean("label", '["a", "b"]') == ('["a", "b"]', [])


@pytest.mark.parametrize("value", ["['joy', 'anger']", ' ["joy" "anger"] ', "[joy, anger]"])
def test_text_that_is_a_list_but_no_json_is_refused_where_a_list_is_expected(value: str) -> None:
    with pytest.raises(DataError, match=r"data\.csv, row 7: `label` holds a list that is not JSON"):
        clean("label", value, SEVERAL)
    assert clean("label", value)[0] == value.strip()


def test_one_label_is_not_cut_where_a_text_has_one() -> None:
    assert clean("label", "rock|pop") == ("rock|pop", [])
    assert clean("label", "rock\uff1bpop") == ("rock\uff1bpop", [])


def test_names_in_messages_that_are_not_read_are_counted_by_row_and_few_are_named() -> None:
    wanted = Columns(required=("talk",), inner={"talk": lambda value: str(value).split()})
    assert wanted.asked.inner == wanted.inner
    notes = Notes("data.csv")
    cleaner = Cleaner(wanted, notes)
    for number in range(30):
        value = f"id name-{number}"
        assert cleaner.clean("talk", value, number) == value
    first, *_, last = notes.lines()
    assert first == "data.csv: `id` of a message in `talk` is not read: 30 (first in row 0)."
    assert last == "data.csv: `...` of a message in `talk` is not read: 11 (first in row 19)."
    assert len(notes.lines()) == 21


def test_notes_count_each_kind_once_and_keep_the_first_place() -> None:
    notes = Notes("data.csv")
    notes.count("empty rows left out", 4)
    notes.count("empty rows left out", 9)
    notes.say("read as JSON Lines.")
    assert notes.lines() == [
        "data.csv: empty rows left out: 2 (first in row 4).",
        "data.csv: read as JSON Lines.",
    ]
    assert notes.times("empty rows left out") == 2


CHOICES = Columns(
    required=("question", "choices", "answer"),
    optional=("relation",),
    asked_with=("choices",),
    others=(Columns(required=("premise", "choice1"), optional=("question",)),),
)


def test_what_a_question_cannot_do_without_is_also_read_where_it_is_only_asked() -> None:
    assert CHOICES.asked.names == ("question", "choices", "relation")
    assert WANTED.asked.required == ("text",)


def test_form_is_the_one_of_which_all_read_columns_are_there() -> None:
    found = ("premise", "question", "choice1")
    assert form_of(found, mapping={}, wanted=CHOICES).required[0] == "premise"
    assert form_of(("question", "choices"), mapping={}, wanted=CHOICES) is CHOICES


CONTROLLED = Columns(
    required=("prompt", "completion"),
    optional=("topic",),
    others=(Columns(required=("text",), optional=("topic",)),),
)


@pytest.mark.parametrize(
    ("wanted", "found", "mapping", "read"),
    [
        (CONTROLLED, ("text", "subject"), {"topic": "subject"}, "text"),
        (CONTROLLED, ("prompt", "completion", "subject"), {"topic": "subject"}, "prompt"),
        (CONTROLLED, ("body", "subject"), {"topic": "subject", "text": "body"}, "text"),
        (CHOICES, ("premise", "choice1", "asked"), {"question": "asked"}, "premise"),
        (CHOICES, ("asked", "choices", "premise"), {"question": "asked"}, "question"),
    ],
)
def test_named_column_that_several_forms_have_does_not_decide_between_them(
    wanted: Columns, found: tuple[str, ...], mapping: dict[str, str], read: str
) -> None:
    assert form_of(found, mapping=mapping, wanted=wanted).required[0] == read


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([1], [1]),
        ({"a": 1}, {"a": 1}),
        (' [1, {"a": "b"}]', [1, {"a": "b"}]),
        ("B-PER O", None),
        ("", None),
        ("[" * 100_000, None),
        (None, None),
    ],
)
def test_text_of_a_cell_is_what_it_says_as_json(value: object, said: object) -> None:
    assert unpacked(value) == said
