"""What is chosen stays while the list around it changes."""

import pytest

from lushan.serving.page.choosing import among


@pytest.mark.parametrize(
    ("names", "current", "chosen"),
    [(["a", "b"], "b", "b"), (["a", "b"], "gone", "a"), (["a"], None, "a"), ([], "gone", None)],
)
def test_choice_stays_if_it_can_else_the_first_is_taken(
    names: list[str], current: str | None, chosen: str | None
) -> None:
    choices = [(name.upper(), name) for name in names]
    update = among(choices, current)
    assert update["value"] == chosen
    assert update["choices"] == choices
