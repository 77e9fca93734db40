"""Settings of explanations."""

from typing import Any

import pytest

from lushan.errors import SettingError
from lushan.explain.settings import ExplainSettings
from lushan.settings import build


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"baseline": "black"}, "baseline"),
        ({"most_gap": 0.0}, "most_gap"),
        ({"most_steps": 8}, "most_steps"),
        ({"top_fraction": 0.0}, "top_fraction"),
        ({"steps": 8}, "steps"),
    ],
)
def test_wrong_setting_is_refused_by_name(values: dict[str, Any], name: str) -> None:
    with pytest.raises(SettingError, match=f"explain: .*`{name}`"):
        build(ExplainSettings, values, source="explain")
