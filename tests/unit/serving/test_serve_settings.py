"""Settings of a server."""

import pytest

from lushan.errors import SettingError
from lushan.serving.serve_settings import ServeSettings
from lushan.settings import build


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False)],  # noqa: S104
)
def test_loopback_is_known(host: str, *, expected: bool) -> None:
    assert ServeSettings(host=host).is_on_loopback is expected


@pytest.mark.parametrize(
    ("name", "value"), [("port", 70000), ("max_rows", 0), ("deadline_seconds", 0.0), ("host", "")]
)
def test_value_out_of_range_is_told(name: str, value: object) -> None:
    with pytest.raises(SettingError, match=f"setting `{name}` is wrong"):
        build(ServeSettings, {name: value}, source="lushan serve")
