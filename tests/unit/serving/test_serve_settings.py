"""Settings of a server."""

import re

import pytest

from lushan.errors import SettingError
from lushan.serving.serve_settings import AccessSettings, ServeSettings
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


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("https://example.org/", "https://example.org"),
        ("HTTPS://Example.org:443", "https://example.org"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("chrome-extension://abcdefgh", "chrome-extension://abcdefgh"),
    ],
)
def test_origin_is_written_as_browsers_do(given: str, told: str) -> None:
    found = build(ServeSettings, {"cors_origins": (given,)}, source="lushan serve")
    assert found.cors_origins == (told,)


@pytest.mark.parametrize(
    "given", ["*", "null", "example.org", "https://*.example.org", "https://a.org/page", "https://"]
)
def test_what_is_no_origin_is_refused(given: str) -> None:
    with pytest.raises(SettingError, match=r"`cors_origins\.0` is wrong: Expected `scheme://host`"):
        build(ServeSettings, {"cors_origins": (given,)}, source="lushan serve")


@pytest.mark.parametrize(
    ("host", "require_keys", "expected"),
    [("localhost", False, False), ("localhost", True, True), ("0.0.0.0", False, True)],  # noqa: S104
)
def test_keys_are_asked_for_beyond_this_machine_and_where_it_is_wanted(
    host: str, *, require_keys: bool, expected: bool
) -> None:
    access = AccessSettings(require_keys=require_keys)
    assert ServeSettings(host=host, access_settings=access).asks_for_keys is expected


@pytest.mark.parametrize(
    ("given", "told"),
    [("127.0.0.1", "127.0.0.1/32"), ("10.1.2.3/8", "10.0.0.0/8"), ("::1", "::1/128")],
)
def test_proxy_is_named_by_its_address_or_network(given: str, told: str) -> None:
    found = build(AccessSettings, {"trusted_proxies": (given,)}, source="lushan serve")
    assert found.trusted_proxies == (told,)


@pytest.mark.parametrize("given", ["*", "example.org", "127.0.0.1:80"])
def test_what_is_no_address_is_refused(given: str) -> None:
    values = {"access_settings": {"trusted_proxies": (given,)}}
    told = rf"`access_settings\.trusted_proxies\.0` is wrong: Expected an IP address.* Got '{re.escape(given)}'"
    with pytest.raises(SettingError, match=told):
        build(ServeSettings, values, source="lushan serve")
