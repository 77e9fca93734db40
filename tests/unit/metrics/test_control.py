"""Whether texts keep to what was asked."""

from typing import Any

import pytest

from lushan.metrics.control import satisfied_shares


@pytest.mark.parametrize(
    ("control", "share"),
    [
        ({"keywords": ["Fox", "soup"]}, 0.5),
        ({"length": 5}, 1.0),
        ({"length": 7}, 1.0),
        ({"length": 8}, 0.0),
        ({"form": {"must": ["fox"], "must_not": ["soup"]}}, 1.0),
        ({"form": {"must_not": ["BRAVE"]}}, 0.0),
        ({"form": {"regex": r"The .*\."}}, 1.0),
        ({"form": {"regex": "The"}}, 0.0),
        ({"form": {"json_schema": {}}}, 0.0),
        ({"keywords": ["fox"], "length": 90}, 0.5),
    ],
)
def test_share_of_the_fields_that_are_kept(control: dict[str, Any], share: float) -> None:
    assert satisfied_shares(["The brave fox ran home."], [control]) == [share]


def test_row_that_asks_for_nothing_that_can_be_checked_is_left_out() -> None:
    controls = [{"topic": "animals"}, {"form": {"json_schema": {}}}, {}]
    assert satisfied_shares(["a", '{"a": 1}', ""], controls) == [1.0]
