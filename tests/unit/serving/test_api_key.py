"""API keys as nouns: what can be planned, what a scope opens, how commas are read."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lushan.errors import SettingError
from lushan.serving.api_key import SCOPES, ApiKey, KeyPlan, Scope, parse_scopes

NOW = datetime.now(UTC)


def key(*scopes: Scope, **values: Any) -> ApiKey:  # noqa: ANN401 - fields of a key
    usual: dict[str, Any] = {"id": "1", "name": "web", "requests_per_minute": None}
    times = {"created_at": NOW, "expires_at": None, "revoked_at": None, "last_used_at": None}
    return ApiKey(**{**usual, **times, **values}, scopes=scopes)


def test_admin_may_do_all_and_others_what_they_are_for() -> None:
    assert [scope for scope in SCOPES if key("chat", "predict").allows(scope)] == [
        "predict",
        "chat",
    ]
    assert [scope for scope in SCOPES if key("admin").allows(scope)] == list(SCOPES)


def test_state_follows_from_the_times() -> None:
    past, future = NOW - timedelta(seconds=1), NOW + timedelta(days=1)
    assert key("chat").state == "active"
    assert key("chat", expires_at=future).state == "active"
    assert key("chat", expires_at=past).state == "expired"
    assert key("chat", expires_at=past, revoked_at=past).state == "revoked"
    assert key("chat", expires_at=future).lifetime == timedelta(days=1)


def test_scopes_are_read_in_one_order_each_once() -> None:
    assert parse_scopes("chat, predict,chat") == ("predict", "chat")


@pytest.mark.parametrize(("text", "unknown"), [("chat,fly", "fly"), ("", ""), ("chat,", "")])
def test_unknown_scope_is_told_with_the_known_ones(text: str, unknown: str) -> None:
    message = f"Unknown scope `{unknown}`. Known: predict, chat, feedback, admin"
    with pytest.raises(SettingError, match=message):
        parse_scopes(text)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "web/1"}, r"`web/1` cannot be a key's name: use letters, digits"),
        ({"name": ""}, r"`` cannot be a key's name"),
        ({"name": "x" * 65}, r"cannot be a key's name: .* at most 64"),
        ({"lifetime": timedelta(0)}, r"expires at once opens nothing\. Give it a longer time"),
    ],
    ids=str,
)
def test_plan_that_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        KeyPlan(**{"name": "web", "scopes": ("chat",), **values})
