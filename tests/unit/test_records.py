"""The nouns."""

import hashlib
import json

import pytest

from lushan.records import (
    Answer,
    Example,
    Features,
    Mention,
    Prediction,
    Rendered,
    Row,
    Span,
    Triple,
    answer_from_plain,
    content_id,
    plain_answer,
    plain_prediction,
)


def test_content_id_is_the_start_of_the_sha256_of_the_parts_as_json() -> None:
    text = json.dumps(["a text", "good"])
    assert content_id("a text", "good") == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_content_id_differs_when_text_moves_from_one_part_to_the_next() -> None:
    assert content_id("ab", "c") != content_id("a", "bc")


def test_content_id_takes_any_text() -> None:
    assert len(content_id("\ud800 \u5e90\u5c71 \x00")) == 16


def test_row_tells_its_place() -> None:
    assert Row({}, "reviews.csv", 12).place == "reviews.csv, row 12"


def test_content_of_a_document_tells_its_branches_from_its_tokens() -> None:
    assert Features((1, 2, 3), "id", 0).content == (1, 2, 3)
    branched = Features((1, 2, 3), "id", 0, branches=((1, 9), (2, 4)))
    assert branched.branch_starts == (1, 2)
    assert branched.content == (1, 2, 3, -2, -3)


def test_features_of_a_head_have_one_target_and_those_of_a_text_one_per_token() -> None:
    assert Features((1, 2, 3), "id", 0).num_supervised == 1
    assert Features((1, 2, 3), "id", 0, targets_from=1).num_supervised == 2
    assert Features((1, 2, 3), "id", 0, positions=(0, 2)).num_supervised == 2
    assert Features((1, 2, 3), "id", 0, positions=()).num_supervised == 0


BORN = Triple(Mention("Ada", 0, 3), "born in", Mention("Ulm", 16, 19))


@pytest.mark.parametrize(
    "answer", ["a label", ("one", "two"), (), (Span(0, 3, "city", "Ulm", 0.5),), (BORN,), None]
)
def test_answer_survives_json(answer: Answer | None) -> None:
    assert answer_from_plain(json.loads(json.dumps(plain_answer(answer)))) == answer


def test_span_keeps_text_and_probability_in_json_but_is_equal_by_place_and_label() -> None:
    (found,) = answer_from_plain(plain_answer((Span(0, 3, "city", "Ulm", 0.5),)))
    assert (found.text, found.probability) == ("Ulm", 0.5)
    assert found == Span(0, 3, "city") != Span(0, 3, "name")


def test_triples_keep_their_places_in_json_but_are_equal_by_their_letters_and_relation() -> None:
    plain = plain_answer((BORN,))
    assert plain == [
        {
            "head": {"text": "Ada", "start": 0, "end": 3},
            "label": "born in",
            "tail": {"text": "Ulm", "start": 16, "end": 19},
        }
    ]
    (found,) = answer_from_plain(plain)
    assert (found.head.start, found.tail.end) == (0, 19)
    elsewhere = Triple(Mention("Ada", 4, 7), "born in", BORN.tail)
    assert found == elsewhere != Triple(BORN.tail, "born in", BORN.head)
    assert len({found, elsewhere, Triple(BORN.head, "at", BORN.tail)}) == 2


def test_classes_are_those_of_the_target_unless_it_is_free_text() -> None:
    assert Example("1", "a", "good").classes == ("good",)
    assert Example("1", "a", ("x", "y")).classes == ("x", "y")
    assert Example("1", "a", (Span(0, 1, "x"), Span(2, 3, "x"))).classes == ("x",)
    assert Example("1", "a", (BORN, BORN)).classes == ("born in",)
    assert Example("1", "a", "a free answer", labels=()).classes == ()
    assert Example("1", "a", None).classes == ()


def test_people_are_shown_the_question_in_front_of_the_text() -> None:
    assert Example("id", "text", None).shown == "text"
    assert Example("id", "text", None, extra={"question": "why"}).shown == "why\ntext"


def test_the_user_wrote_what_may_be_cut_unless_it_is_said_otherwise() -> None:
    assert Rendered("Text: a b", cuttable=(6, 9)).given_ranges == ((6, 9),)
    assert Rendered("Text: a b", cuttable=(6, 7), given=((6, 9),)).given_ranges == ((6, 9),)


def test_prediction_tells_what_was_cut_only_where_something_was() -> None:
    whole = plain_prediction(Prediction("id", (BORN,)))
    assert "num_cut_tokens" not in whole
    assert whole["answer"][0]["head"]["text"] == "Ada"
    assert plain_prediction(Prediction("id", "a", num_cut_tokens=3))["num_cut_tokens"] == 3
