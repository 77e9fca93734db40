"""The nouns."""

import hashlib
import json

from lushan.records import Features, Row, content_id


def test_content_id_is_the_start_of_the_sha256_of_the_parts_as_json() -> None:
    text = json.dumps(["a text", "good"])
    assert content_id("a text", "good") == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_content_id_differs_when_text_moves_from_one_part_to_the_next() -> None:
    assert content_id("ab", "c") != content_id("a", "bc")


def test_content_id_takes_any_text() -> None:
    assert len(content_id("\ud800 \u5e90\u5c71 \x00")) == 16


def test_row_tells_its_place() -> None:
    assert Row({}, "reviews.csv", 12).place == "reviews.csv, row 12"


def test_features_of_a_head_have_one_target_and_those_of_a_text_one_per_token() -> None:
    assert Features((1, 2, 3), "id", 0).num_supervised == 1
    assert Features((1, 2, 3), "id", 0, targets_from=1).num_supervised == 2
